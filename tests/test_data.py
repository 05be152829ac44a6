"""Training data: what is read, split, encoded, cached, packed and mixed, and what is refused."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim import codecs
from seriatim.codecs import text
from seriatim.codecs._cuts import CUTS
from seriatim.codecs._safe import cuttable, last_cut
from seriatim.codecs.byte import END, ByteCodec
from seriatim.errors import FileError, RequestError, ResourceError
from seriatim.kernels.torch_fast import TorchOps
from seriatim.models.forward import forward
from seriatim.train import data, encoding, loop, packing, reading, run, shards, splitting
from seriatim.train.batches import NOTHING, Batches, Group
from seriatim.train.dial import dial
from seriatim.train.isolated import IsolatedOps
from seriatim.train.model import initial
from seriatim.train.reading import Bad, Reading
from seriatim.train.report import Note, Started
from seriatim.train.shards import Corpus, spooled

WORDS = "The quick brown fox née Zoë jumps over 13 lazy dogs and rests; it's over\n"

BYTES = Reading(text=False)


def prose(length: int, seed: int = 0) -> str:
    """About `length` characters."""
    return " ".join(Random(seed).choices(WORDS.split(" "), k=1 + length // 5))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path: Path, texts: list[str]) -> Path:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def prepare(given, tmp_path: Path, **options) -> data.Prepared:
    options = {"codec": "byte", "vocab_size": 300, "cache": tmp_path / "cache"} | options
    return data.prepare(given, **options)


def documents(made: data.Prepared) -> list[bytes]:
    """What is learned from, as bytes."""
    return [
        made.codec.decode(group.corpus.ids(start, end - start).tolist())
        for group in made.groups
        for start, end in zip(group.starts.tolist(), group.ends.tolist(), strict=True)
    ]


def held(made: data.Prepared) -> list[bytes]:
    return [made.codec.decode(ids.tolist()) for ids in made.held]


# Which files, and what is in them


def test_files_are_found_in_folders_and_by_pattern_each_once(tmp_path):
    for name in ("b/two.txt", "b/.hidden", "one.txt"):
        write(tmp_path / name, "x")
    names = [tmp_path, str(tmp_path / "*.txt"), tmp_path / "b"]
    assert reading.files(names) == [tmp_path / "b/two.txt", tmp_path / "one.txt"]


def test_a_name_without_files_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.txt names no file"):
        reading.files(tmp_path / "nothing.txt")


@pytest.mark.parametrize("name", ["a.parquet", "b.zip", "c.txt.zst"])
def test_kinds_that_are_not_read_are_refused_by_name(tmp_path, name):
    with pytest.raises(FileError, match=f"{name} is not read.*convert"):
        reading.files(write(tmp_path / name, "x"))


def test_text_that_is_not_utf8_stops_the_run_with_its_offset(tmp_path):
    write(tmp_path / "good.txt", prose(300))
    bad = write(tmp_path / "bad.txt", prose(600_000).encode() + b" \xff bad")
    at = bad.read_bytes().index(b"\xff")
    with pytest.raises(FileError, match=rf"bad\.txt is not UTF-8 at byte {at}: invalid start"):
        prepare(tmp_path / "*.txt", tmp_path, codec="text")


def test_any_bytes_are_a_document_of_the_byte_codec(tmp_path):
    content = bytes(range(256)) * 8
    made = prepare(write(tmp_path / "x.bin", content), tmp_path)
    assert documents(made)[0] + held(made)[0] == content


@pytest.mark.parametrize("name", ["void.txt", "void.jsonl", "void.txt.gz"])
def test_an_empty_file_is_refused(tmp_path, name):
    content = gzip.compress(b"") if name.endswith("gz") else b""
    paths = [write(tmp_path / name, content), write(tmp_path / "full.txt", prose(400))]
    with pytest.raises(FileError, match=r"void.* is empty"):
        prepare(paths, tmp_path)


def test_a_damaged_gzip_file_stops_the_run(tmp_path):
    whole = gzip.compress(prose(5000).encode())
    paths = [write(tmp_path / "x.txt", prose(400)), write(tmp_path / "y.txt.gz", whole[:-9])]
    with pytest.raises(FileError, match=r"y\.txt\.gz cannot be read: Compressed file ended"):
        prepare(paths, tmp_path)


def test_gzipped_files_are_what_they_hold(tmp_path):
    texts = [prose(200, seed) for seed in range(20)]
    plain = lines(tmp_path / "a/x.jsonl", texts)
    packed = write(tmp_path / "b/x.jsonl.gz", gzip.compress(plain.read_bytes()))
    assert documents(prepare(plain, tmp_path)) == documents(prepare(packed, tmp_path))


def test_bad_records_are_counted_and_listed_with_file_and_line(tmp_path):
    good = [json.dumps({"text": prose(80, seed)}).encode() for seed in range(8)]
    bad = {
        3: (b'{"text": "caf\xe9"}', "not UTF-8 at byte 13"),
        5: (b'{"text": "x"', "not JSON"),
        6: (b'["text"]', "a JSON list instead of an object"),
        8: (b'{"body": "x"}', "no field 'text'; it has body"),
        9: (b'{"text": 7}', "'text' is a JSON int instead of text"),
        11: (b'{"text": ""}', "'text' is empty"),
        12: (b'{"text": "\\ud800"}', "character 0 is half a surrogate pair"),
        13: (b"[" * 100_000, "nested too deep"),
    }
    rows, left = [], iter(good)
    for number in range(1, 17):
        rows.append(bad[number][0] if number in bad else next(left))
    path = write(tmp_path / "x.jsonl", b"\n".join(rows) + b"\n\n")
    said: list = []
    for _ in range(2):  # the second time from the cache
        made = prepare(path, tmp_path, say=said.append)
        assert [int(place.split()[1]) for _, place, _ in made.refused] == sorted(bad)
        for (name, _, why), (_, expected) in zip(made.refused, bad.values(), strict=True):
            assert name == str(path)
            assert expected in why
        assert len(documents(made)) + len(held(made)) == 8
    notes = [event.text for event in said if isinstance(event, Note)]
    assert sum("8 records refused" in note and "line 3: not UTF-8" in note for note in notes) == 2


def test_a_run_lists_every_refused_record_in_its_folder(tmp_path):
    path = lines(tmp_path / "x.jsonl", [prose(200, seed) for seed in range(20)])
    write(path, path.read_bytes() + b"{}\n")
    options = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 2, "threads": 1}
    loop.train(path, steps=1, out=tmp_path / "out", report=lambda event: None, **options)
    listed = (tmp_path / "out/checkpoints/refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == ["line 21"]


@pytest.mark.parametrize("codec", ["byte", "text"])
def test_a_file_of_which_no_record_is_one_stops_the_run(tmp_path, codec):
    paths = [write(tmp_path / "bad.jsonl", '{"txt": "x"}\n'), write(tmp_path / "x.txt", prose(400))]
    with pytest.raises(FileError, match=r"bad\.jsonl holds no document: line 1 is no field 'text'"):
        prepare(paths, tmp_path, codec=codec)


def test_a_line_beyond_the_limit_is_passed_over_in_blocks_and_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LIMIT", 1000)
    monkeypatch.setattr(reading, "BLOCK", 300)
    texts = [prose(100, seed) for seed in range(12)]
    texts[4] = "x" * 5000
    made = prepare(lines(tmp_path / "x.jsonl", texts), tmp_path)
    assert [(place, why) for _, place, why in made.refused] == [
        ("line 5", "longer than 1,000 bytes")
    ]
    assert Counter(documents(made) + held(made)) == Counter(
        text.encode() for text in texts if len(text) < 5000
    )


def test_text_without_a_place_to_cut_is_refused_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LIMIT", 10_000)
    monkeypatch.setattr(reading, "BLOCK", 1000)
    paths = [write(tmp_path / "long.txt", "x" * 30_000), write(tmp_path / "x.txt", prose(4000))]
    with pytest.raises(FileError, match=r"long\.txt has no place to cut in .* from byte 0 on"):
        prepare(paths, tmp_path, codec="text")
    assert len(prepare(paths, tmp_path).held) == 1  # bytes can be cut anywhere


def test_a_separator_makes_documents_of_a_plain_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 7)  # separators lie across blocks
    texts = [prose(60, seed).strip() + f" {seed}" for seed in range(15)]
    path = write(tmp_path / "x.txt", "<|end|>".join(texts) + "<|end|><|end|>")
    made = prepare(path, tmp_path, separator="<|end|>")
    assert Counter(documents(made) + held(made)) == Counter(map(str.encode, texts))
    with pytest.raises(RequestError, match="separator is empty"):
        prepare(path, tmp_path, separator="")


def test_another_field_of_a_line_can_be_meant(tmp_path):
    rows = [json.dumps({"body": f"{n} {prose(60)}", "text": "no"}) for n in range(10)]
    made = prepare(write(tmp_path / "x.jsonl", "\n".join(rows)), tmp_path, field="body")
    assert b"no" not in documents(made)
    assert len(documents(made)) == 9


def test_a_long_file_of_lines_is_cut_between_them_and_keeps_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART", 2000)
    monkeypatch.setattr(reading, "BLOCK", 150)
    texts = [f"{n} {prose(100, n)}" for n in range(100)]
    path = lines(tmp_path / "x.jsonl", texts)
    rows = path.read_bytes().split(b"\n")
    rows[70] = b"oops"
    write(path, b"\n".join(rows))
    spans = reading.spans(path, BYTES)
    assert len(spans) > 3
    assert [s.end for s in spans[:-1]] == [s.start for s in spans[1:]]
    made = prepare(path, tmp_path)
    assert [place for _, place, _ in made.refused] == ["line 71"]
    del texts[70]
    assert Counter(documents(made) + held(made)) == Counter(map(str.encode, texts))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path / "x.txt", prose(400))
    (span,) = reading.spans(path, BYTES)
    write(path, prose(500))
    os.utime(path, ns=(1, 1))
    found = reading.records(0, span, BYTES, len)
    record = next(found)
    assert not isinstance(record, Bad)
    assert b"".join(record.pieces) == path.read_bytes()
    with pytest.raises(FileError, match=r"x\.txt changed while it was read"):
        next(found)


# Split


def test_a_lone_file_gives_its_last_tenth_to_validation(tmp_path):
    whole = "".join(f"{n}. {prose(60, n)}\n" for n in range(100)).encode()
    made = prepare(write(tmp_path / "book.txt", whole), tmp_path)
    assert documents(made)[0] + held(made)[0] == whole
    assert 0.05 < len(held(made)[0]) / len(whole) <= 0.1
    assert documents(made)[0].endswith(b"\n")
    assert made.held_out == ("end of book.txt",)


def test_a_lone_file_without_lines_is_cut_between_characters(tmp_path):
    made = prepare(write(tmp_path / "x.txt", "é" * 1001), tmp_path, codec="text")
    parts = [made.codec.decode(ids.tolist()) for ids in made.held]
    assert set(parts[0]) == {"é"}
    assert 90 < len(parts[0]) <= 101


def test_many_files_give_whole_files_by_the_seed(tmp_path):
    for n in range(20):
        write(tmp_path / f"{n:02}.txt", f"file {n} {prose(50, n)}")
    made = [prepare(str(tmp_path / "*.txt"), tmp_path, seed=seed) for seed in (0, 0, 1)]
    assert [m.documents for m in made] == [18] * 3
    assert made[0].held_out == made[1].held_out != made[2].held_out
    assert made[0].digest == made[1].digest != made[2].digest


def test_equal_documents_are_on_one_side(tmp_path):
    texts = [prose(80, n % 7) for n in range(60)]
    path = lines(tmp_path / "x.jsonl", texts)
    for seed in range(6):
        made = prepare(path, tmp_path, seed=seed)
        assert held(made)
        assert not set(documents(made)) & set(held(made))
        assert Counter(documents(made) + held(made)) == Counter(map(str.encode, texts))


def test_a_share_of_the_documents_can_be_asked_for(tmp_path, monkeypatch):
    path = lines(tmp_path / "x.jsonl", [f"{n} {prose(80, n)}" for n in range(200)])
    assert len(prepare(path, tmp_path, validation=0.25).held) == 50
    monkeypatch.setattr(splitting, "MOST", 1)  # which bounds what nobody asked for
    assert len(prepare(path, tmp_path, validation=0.1).held) == 20
    assert len(prepare(path, tmp_path).held) == 1
    made = prepare(path, tmp_path, validation=["0.05"])
    assert made.held_out == ("x.jsonl (10 of 200 documents)",)
    for share in (0.0, 1.0, -0.5, "1.5"):
        with pytest.raises(RequestError, match="a share between 0 and 1"):
            prepare(path, tmp_path, validation=share)


def test_the_default_share_of_large_data_is_smaller():
    digests = [np.random.default_rng(0).integers(2**64, size=10_000, dtype=np.uint64)]
    for size, count in ((1000, 1000), (1 << 26, 625)):
        (mark,) = splitting.hold_out(digests, [False], share=splitting.SHARE, size=size, seed=0)
        assert mark.sum() == count


def test_held_out_files_are_named_or_given(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt", "other/d.txt"):
        write(tmp_path / name, f"{name} {prose(100)}")
    every = str(tmp_path / "*.txt")
    made = prepare(every, tmp_path, validation=["b", tmp_path / "other/d.txt"])
    assert made.trained == ("a.txt", "c.txt")
    assert made.held_out == ("b.txt", "d.txt")
    with pytest.raises(RequestError, match="nothing like it names no file"):
        prepare(every, tmp_path, validation="nothing like it")
    with pytest.raises(RequestError, match="every file is held out"):
        prepare(tmp_path / "a.txt", tmp_path, validation="a.txt")


def test_what_equals_a_held_out_document_is_not_learned_from(tmp_path):
    texts = [f"{n} {prose(80, n)}" for n in range(10)]
    train, away = lines(tmp_path / "x.jsonl", texts), lines(tmp_path / "y.jsonl", texts[3:5])
    said: list = []
    made = prepare(train, tmp_path, validation=away, say=said.append)
    assert documents(made) == [t.encode() for t in texts[:3] + texts[5:]]
    assert any("2 documents equal held-out ones" in event.text for event in said)


def test_no_held_out_names_is_none_asked_for(tmp_path):
    for n in range(4):
        write(tmp_path / f"{n}.txt", f"{n} {prose(100)}")
    every = str(tmp_path / "*.txt")
    given, none = (prepare(every, tmp_path, validation=v) for v in ([], None))
    assert given.digest == none.digest


def test_a_split_that_leaves_a_side_nearly_empty_is_refused(tmp_path):
    one = lines(tmp_path / "one.jsonl", [prose(200)])
    with pytest.raises(RequestError, match=r"every document of a group is held out.*validation"):
        prepare(one, tmp_path)
    tiny = write(tmp_path / "tiny.txt", "a")
    with pytest.raises(RequestError, match=r"held-out documents hold 2 ids.*validation"):
        prepare(write(tmp_path / "x.txt", prose(300)), tmp_path, validation=tiny)


def test_a_vocabulary_is_learned_from_the_training_side_alone(tmp_path):
    texts = [f"{prose(120, n)} {chr(0x4E00 + n) * 9}" for n in range(20)]
    made = prepare(lines(tmp_path / "x.jsonl", texts), tmp_path, codec="text", vocab_size=600)
    for ids in made.held:
        written = made.codec.decode(ids.tolist())
        assert len(made.codec.encode(written[-9:])) >= 18  # no piece is one of its letters
    group = made.groups[0]
    learned = group.corpus.document(int(np.searchsorted(group.corpus.starts, group.starts[0])))
    assert len(made.codec.encode(made.codec.decode(learned.tolist())[-9:])) <= 9


def test_a_vocabulary_is_learned_from_a_sample_of_very_much_text(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LEARNED", 20_000)
    path = lines(tmp_path / "x.jsonl", [prose(400, n) for n in range(500)])
    taken: list[str] = []

    def learn(texts, size):
        taken.extend(texts)
        return ByteCodec()

    monkeypatch.setattr(run, "maker", lambda name: run.Maker(learn))
    said: list = []
    made = prepare(path, tmp_path, say=said.append)
    assert 10_000 < sum(map(len, taken)) < 30_000
    assert set(map(str.encode, taken)) < set(documents(made))
    assert any("learned from 8." in event.text or "9." in event.text for event in said)


def test_the_digest_says_which_data_wherever_it_lies(tmp_path):
    for place in ("a", "b"):
        for n in range(5):
            write(tmp_path / place / f"{n}.txt", f"{n} {prose(100)}")
    a, b = (prepare(tmp_path / place, tmp_path, cache=tmp_path / f"of {place}") for place in "ab")
    assert a.digest == b.digest
    write(tmp_path / "b/3.txt", "another")
    assert prepare(tmp_path / "b", tmp_path).digest != a.digest


# Encoding and the cache


def trained() -> text.TextCodec:
    return text.train([prose(5000)], 400)


@pytest.mark.parametrize("make", [ByteCodec, trained], ids=["byte", "text"])
def test_shards_hold_what_the_codec_says_of_whole_documents(tmp_path, make, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 512)  # many cuts
    monkeypatch.setattr(encoding, "TOGETHER", 3000)
    codec, place = make(), tmp_path / "cache"
    texts = [prose(length, length) for length in (3, 40, 600, 5000, 60_000)]
    paths = [write(tmp_path / f"{n}.txt", text) for n, text in enumerate(texts)]
    paths.append(lines(tmp_path / "all.jsonl", texts))
    how = Reading(text=codec.name == "text")
    encoder = encoding.Encoder(codec, "digest", how, place)
    parts = encoding.parts([span for path in paths for span in reading.spans(path, how)])
    found = encoding.encode(encoder, parts, processes=1)
    corpus = Corpus.of(found, place)
    for index, raw in enumerate(texts + texts):
        ids = corpus.document(index).tolist()
        assert ids == [*codec.prompt(raw), codec.ends[0]]
    assert corpus.digests[:5].tolist() == corpus.digests[5:].tolist()
    first = hashlib.sha256(texts[0].encode()).digest()[:8]
    assert int(corpus.digests[0]) == int.from_bytes(first, "little")


RULES = list({cut.patterns: 0 for cut in CUTS.values()})


@pytest.mark.parametrize("patterns", RULES, ids=map(str, range(len(RULES))))
def test_cuts_change_no_id_under_any_known_rule(patterns):
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    made = Tokenizer.from_str(text.specimens()[0]._tokenizer.to_str())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])
    draw, cuts = Random(0), 0
    parts = [
        "a",
        "b",
        " ",
        "  ",
        "\n",
        "'s",
        "1",
        "23",
        "é",
        "日",
        "\r\n",
        ".",
        "!",
        "A",
        "Re",
        " w",
    ]

    def pieces(raw: bytes) -> list[str]:
        return [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(raw.decode())]

    for _ in range(300):
        raw = "".join(draw.choices([*parts, "word", "\t", "\u0301", "’"], k=14)).encode()
        if at := last_cut(raw):
            cuts += 1
            assert pieces(raw) == pieces(raw[:at]) + pieces(raw[at:])
    assert cuts > 40


def test_only_vocabularies_whose_rules_are_known_are_cut():
    ours, llama = text.specimens()
    assert ours.cut(b"one two 3") == 3
    assert llama.cut(b"one two 3") == 0
    from tokenizers import normalizers

    ours._tokenizer.normalizer = normalizers.Lowercase()
    assert not cuttable(ours._tokenizer)


def test_many_processes_write_the_same_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ALONE", 0)
    monkeypatch.setattr(encoding, "PART", 3000)
    paths = [write(tmp_path / f"{n}.txt", prose(2000, n)) for n in range(6)]
    codec = trained()
    places = [tmp_path / "alone", tmp_path / "beside"]
    for processes, place in zip((1, 2), places, strict=True):
        encoder = encoding.Encoder(codec, run.digest(codec), Reading(), place)
        parts = encoding.parts([s for path in paths for s in reading.spans(path, Reading())])
        assert len(parts) > 2
        encoding.encode(encoder, parts, processes=processes)
    files = [
        {p.relative_to(place): p.read_bytes() for p in place.rglob("*") if p.is_file()}
        for place in places
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 8


def test_an_error_in_a_process_is_the_same_error(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ALONE", 0)
    monkeypatch.setattr(encoding, "PART", 3000)
    paths = [write(tmp_path / f"{n}.txt", prose(2000, n)) for n in range(6)]
    write(paths[3], b"good \xff bad")
    encoder = encoding.Encoder(trained(), "x", Reading(), tmp_path / "cache")
    parts = encoding.parts([s for path in paths for s in reading.spans(path, Reading())])
    with pytest.raises(FileError, match=r"3\.txt is not UTF-8 at byte 5.*; convert the file"):
        encoding.encode(encoder, parts, processes=2)
    assert not list((tmp_path / "cache").glob("*.partial-*"))


def test_a_process_that_is_killed_is_said(tmp_path):
    worker = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(ResourceError, match=r"ended with exit code -9"):
        encoding._check(b"", worker)


def test_a_second_time_comes_from_the_cache_with_identical_shards(tmp_path, monkeypatch):
    path = lines(tmp_path / "x.jsonl", [f"{n} {prose(200, n)}" for n in range(30)])
    first = prepare(path, tmp_path)
    monkeypatch.setattr(encoding.Encoder, "encode", None)  # nothing is encoded
    second = prepare(path, tmp_path)
    assert documents(first) == documents(second)
    assert first.digest == second.digest
    moved = path.rename(tmp_path / "elsewhere.jsonl")
    assert prepare(moved, tmp_path).digest == first.digest


@pytest.mark.parametrize("name", [*shards.FILES, "manifest.json"])
def test_a_damaged_shard_is_made_again(tmp_path, name):
    path = lines(tmp_path / "x.jsonl", [f"{n} {prose(200, n)}" for n in range(30)])
    first = prepare(path, tmp_path)
    before = documents(first)
    (broken,) = (tmp_path / "cache").glob(f"*/{name}")
    kept = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(kept[:-3] + b"xyz")
    assert documents(prepare(path, tmp_path)) == before
    assert broken.read_bytes() == kept


def test_another_codec_or_reading_is_another_shard(tmp_path):
    rows = [json.dumps({"text": f"{n} {prose(90)}", "b": f"{n} b"}) for n in range(10)]
    path = write(tmp_path / "x.jsonl", "\n".join(rows))
    for options in ({}, {"field": "b"}, {"codec": "text"}, {}):
        prepare(path, tmp_path, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = write(tmp_path / "x.txt", prose(3000))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ResourceError, match=r"cache .*: No space left on device; make room"):
        prepare(path, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = write(tmp_path / "x.txt", prose(3000))
    with pytest.raises(ResourceError, match=r"the cache .*x\.txt.* cannot be written"):
        prepare(path, tmp_path, cache=path / "cache")


def test_ids_take_two_bytes_while_the_vocabulary_allows(tmp_path):
    kinds = {}
    for size in (1 << 16, (1 << 16) + 1):
        with shards.Writer(tmp_path / str(size), size=size, spans=1) as out:
            out.add(np.array([0, size - 1], np.uint32))
            out.finish(0, bytes(8))
            out.close({})
        shard = shards.load(tmp_path / str(size))
        assert shard is not None
        kinds[size] = shard.ids.dtype.name
        assert shard.ids.tolist() == [0, size - 1]
    assert list(kinds.values()) == ["uint16", "uint32"]


def test_a_folder_with_a_codec_can_be_named(tmp_path):
    trained().save(write(tmp_path / "codec/x", "").parent)
    made = prepare(write(tmp_path / "x.txt", prose(3000)), tmp_path, codec=str(tmp_path / "codec"))
    assert made.codec.size == trained().size
    with pytest.raises(FileError, match="holds no codec"):
        prepare(tmp_path / "x.txt", tmp_path, codec=str(write(tmp_path / "no/x", "").parent))


class Notes:
    """A codec of several objects a file: the numbers between commas."""

    name, size, unit, ends, start, specials = "notes", 300, "note", (299,), (299,), {}

    def examples(self) -> list[list[int]]:
        return [[1, 2]]

    def encode(self, raw: list[int], /) -> list[int]:
        if max(raw) >= 299:
            raise RequestError(f"note {max(raw)}", expected="below 299")
        return raw

    def decode(self, ids, *, after=()) -> list[int]:
        return [id for id in ids if id != 299]

    def records(self, path: Path, /):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                yield f"line {number}", [int(word) for word in line.split(",")]
            except ValueError:
                yield f"line {number}", RequestError(f"{line!r} is no tune")


def test_a_codec_with_files_of_its_own_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "digest", lambda codec: "notes")
    monkeypatch.setattr(run, "maker", lambda name: run._given(Notes()))
    rows = [f"{n},{n + 1},7" for n in range(20)] + ["x", "5,299"]
    made = prepare(write(tmp_path / "x.tune", "\n".join(rows)), tmp_path)
    tunes = documents(made) + held(made)
    assert sorted(tunes) == [[n, n + 1, 7] for n in range(20)]
    assert [(p, w.split(";")[0]) for _, p, w in made.refused] == [
        ("line 21", "'x' is no tune"),
        ("line 22", "note 299"),
    ]
    with pytest.raises(FileError, match=r"y\.jsonl holds text"):
        prepare(lines(tmp_path / "y.jsonl", ["x"]), tmp_path)


# Packing


def corpus(lengths: list[int], place: Path, begin: int = 0) -> Group:
    """Documents of those lengths whose ids are all different."""
    ends = np.cumsum(lengths)
    ids = np.arange(begin, begin + sum(lengths), dtype=np.uint32)
    made = Corpus((ids,), np.array([0, len(ids)]), ends - lengths, ends, ends.astype(np.uint64))
    return Group("made", 1.0, made, made.starts, made.ends)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=60),
    context=st.integers(1, 40),
    key=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_every_pair_is_in_one_row_of_an_epoch_and_rows_never_overflow(
    tmp_path_factory, lengths, context, key
):
    place = tmp_path_factory.getbasetemp() / "plans"
    group = corpus(lengths, place)
    if not group.pairs:
        return
    plan = packing.plan(group.starts, group.ends, context=context, key=key, folder=place)
    firsts: list[int] = []
    for index in range(len(plan)):
        row = plan.row(index)
        assert 0 < row[:, 1].sum() <= context
        for start, length in row.tolist():
            assert length > 0
            document = np.searchsorted(group.ends, start, "right")
            assert start + length < group.ends[document]  # the target too is of this document
            firsts += range(start, start + length)
    lasts = set((group.ends - 1).tolist())
    assert sorted(firsts) == [p for p in range(sum(lengths)) if p not in lasts]
    assert plan.pairs == len(firsts)
    assert plan.padding == pytest.approx(1 - len(firsts) / (len(plan) * context))


@given(count=st.integers(1, 3000), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_the_shuffle_is_a_permutation(count, seed):
    found = packing.shuffled(np.arange(count), count, packing.keys(seed))
    assert sorted(found.tolist()) == list(range(count))


def test_the_shuffle_moves_things_about():
    found = packing.shuffled(np.arange(10_000), 10_000, packing.keys(1))
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.05
    assert (np.abs(np.diff(found)) == 1).mean() < 0.01


def test_best_fit_fills_rows(tmp_path):
    draw = np.random.default_rng(0)
    lengths = np.minimum(draw.lognormal(4, 1, 20_000).astype(int) + 2, 2000).tolist()
    group = corpus(lengths, tmp_path)
    plan = packing.plan(group.starts, group.ends, context=256, key=(0,), folder=tmp_path)
    assert plan.padding < 0.005


def test_a_piece_goes_where_it_leaves_least_room():
    pieces = np.array([[0, 6], [10, 5], [20, 4], [30, 5], [40, 1]])
    rows = packing._fitted(pieces, 10)
    assert rows.tolist() == [[0, 6, 1], [20, 4, 0], [10, 5, 1], [30, 5, 0], [40, 1, 1]]


def test_long_documents_are_cut_elsewhere_in_each_epoch(tmp_path):
    group = corpus([1000], tmp_path)
    cuts = []
    for epoch in range(4):
        plan = packing.plan(
            group.starts, group.ends, context=64, key=(0, 0, epoch), folder=tmp_path
        )
        cuts.append(frozenset(plan.pieces[:, 0].tolist()))
    assert len(set(cuts)) == 4


# Batches


def batches(groups: list[Group], place: Path, **options) -> Batches:
    return Batches(groups, folder=place, **({"context": 16, "windows": 3, "seed": 0} | options))


def test_a_batch_pairs_each_id_with_the_next_and_says_where_documents_end(tmp_path):
    feed = batches([corpus([5, 9, 30, 2, 17], tmp_path)], tmp_path)
    seen: list[int] = []
    for _ in range(2):
        batch = feed.take()
        there = batch.targets != NOTHING
        assert (batch.targets[there] == batch.inputs[there] + 1).all()
        for row in range(3):
            inside = there[row, :-1] & there[row, 1:]
            follows = np.diff(batch.inputs[row])[inside] == 1
            same = np.diff(batch.segments[row])[inside] == 0
            assert (follows | ~same).all()
            assert (np.diff(batch.segments[row]) >= 0).all()
        seen += batch.targets[there].tolist()
    assert set(seen) <= set(range(63))


@pytest.mark.parametrize("at", [1, 7, 19, 40])
def test_a_position_goes_on_with_the_very_same_batch(tmp_path, at):
    groups = [corpus([5, 9, 30, 40], tmp_path), corpus([60, 7, 7], tmp_path, begin=1000)]
    groups[1] = replace(groups[1], weight=0.3)
    whole, cut = batches(groups, tmp_path), batches(groups, tmp_path)
    for _ in range(at):
        whole.take()
    cut.seek(json.loads(json.dumps(whole.position)))
    for _ in range(5):
        a, b = whole.take(), cut.take()
        assert (a.inputs == b.inputs).all()
        assert (a.targets == b.targets).all()
        assert (a.segments == b.segments).all()
    assert whole.position == cut.position
    assert max(whole.position["epoch"]) > 0 or at < 7


def test_another_seed_is_another_order(tmp_path):
    group = corpus([50] * 20, tmp_path)
    a, b = (batches([group], tmp_path, seed=seed).take() for seed in (0, 1))
    assert (a.inputs != b.inputs).any()


@pytest.mark.parametrize("position", [{}, {"taken": [1], "epoch": [0], "index": [0]}, {"taken": 3}])
def test_a_position_of_other_data_is_refused(tmp_path, position):
    groups = [corpus([50] * 5, tmp_path), corpus([50] * 5, tmp_path)]
    with pytest.raises(FileError, match="data position"):
        batches(groups, tmp_path).seek(position)


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3), (0.01, 5), (2, 3, 5)])
def test_groups_have_their_share_of_the_rows_at_any_time(tmp_path, weights):
    groups = [
        replace(corpus([40] * 10, tmp_path, begin=n * 10_000), weight=weight)
        for n, weight in enumerate(weights)
    ]
    feed, taken = batches(groups, tmp_path, windows=1), np.zeros(len(weights))
    for step in range(1, 200):
        taken[feed.take().inputs[0, 0] // 10_000] += 1
        assert (abs(taken - step * np.array(weights) / sum(weights)) < 1).all()


def test_weights_are_given_beside_paths_or_in_a_mapping(tmp_path):
    for name in ("a", "b"):
        lines(tmp_path / f"{name}.jsonl", [f"{name}{n} {prose(90, n)}" for n in range(20)])
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    made = prepare([f"{a}=3", f"{b}=1"], tmp_path)
    assert [group.weight for group in made.groups] == [3, 1]
    assert made.digest == prepare({a: 3, str(b): 1.0}, tmp_path).digest
    assert made.digest != prepare({a: 3, b: 2}, tmp_path).digest
    odd = lines(tmp_path / "c=2", ["x"])
    assert splitting.weighed(str(odd)) == [(str(odd), 1.0, [str(odd)])]
    with pytest.raises(RequestError, match=r"b\.jsonl has no weight"):
        prepare([f"{a}=3", str(b)], tmp_path)
    for weight in ("0", "-1", "nan", "inf", "much"):
        with pytest.raises(RequestError, match=f"weight of .* is {weight}"):
            prepare([f"{a}={weight}"], tmp_path)
    with pytest.raises(RequestError, match=r"a\.jsonl is in two groups"):
        prepare({a: 1, tmp_path / "?.jsonl": 2}, tmp_path)


def test_data_shorter_than_a_batch_is_refused_with_both_lengths(tmp_path):
    with pytest.raises(RequestError, match=r"holds 49 ids.*3 windows of 17"):
        batches([corpus([50], tmp_path)], tmp_path, context=17)
    assert batches([corpus([50], tmp_path)], tmp_path, context=16).take()
    with pytest.raises(RequestError, match="made holds nothing to train on"):
        batches([corpus([50], tmp_path), corpus([1], tmp_path)], tmp_path)


def test_what_may_be_larger_than_memory_is_mapped(tmp_path, monkeypatch):
    """Ids, tables and plans of data of many buffers are files, and few bytes are held at once."""
    monkeypatch.setattr(packing, "BUFFER", 50)
    monkeypatch.setattr(reading, "PART", 20_000)
    monkeypatch.setattr(encoding, "PART", 20_000)
    monkeypatch.setattr(reading, "BLOCK", 5000)
    held_at_once: list[int] = []
    many = encoding.Encoder._ids

    def counted(self, pieces):
        held_at_once.append(sum(map(len, pieces)))
        return many(self, pieces)

    monkeypatch.setattr(encoding.Encoder, "_ids", counted)
    monkeypatch.setattr(encoding, "TOGETHER", 4096)
    path = lines(tmp_path / "x.jsonl", [f"{n} {prose(300, n)}" for n in range(800)])
    made = prepare(path, tmp_path)
    assert sum(held_at_once) > 200_000
    assert max(held_at_once) < 6000
    (group,) = made.groups
    assert len(group.corpus.shards) > 5
    feed = batches([group], tmp_path / "cache")
    plan = feed.plan_of(0)
    tables = [group.corpus.starts, group.corpus.digests, group.starts, plan.pieces, plan.rows]
    assert all(isinstance(table, np.memmap) for table in [*group.corpus.shards, *tables])
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(
        p.name for p in (tmp_path / "cache").glob("*") if (p / "manifest.json").exists()
    )  # tables and plans have no name: a killed run leaves none


def test_a_spool_of_nothing_is_empty(tmp_path):
    assert len(spooled([], np.int64, tmp_path)) == 0


# In the loop


def test_documents_of_a_row_can_be_kept_apart(tmp_path):
    """With restarted positions and masked attention each document's logits are those alone."""
    spec = dial("0.02M", 257, context=24).spec
    weights = {name: torch.randn_like(t) * 0.3 for name, t in initial(spec, seed=0).items()}
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (2, 24), generator=draw)
    segments = torch.tensor([[0] * 9 + [1] * 10 + [2] * 5, [0] * 20 + [1] * 4])
    with torch.no_grad():
        packed = forward(IsolatedOps(ids, segments), spec, weights).view(2, 24, -1)
        for row, begin, end in ((0, 0, 9), (0, 9, 19), (0, 19, 24), (1, 0, 20), (1, 20, 24)):
            alone = forward(TorchOps(ids[row : row + 1, begin:end]), spec, weights)
            assert torch.allclose(packed[row, begin:end], alone, atol=1e-4)
        mixed = forward(TorchOps(ids), spec, weights).view(2, 24, -1)
    assert not torch.allclose(packed[0, 9:19], mixed[0, 9:19], atol=1e-2)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_resumed_run_on_mixed_lines_ends_with_the_same_bits(tmp_path, isolate):
    for name in ("a", "b"):
        lines(tmp_path / f"{name}.jsonl", [f"{name}{n} {prose(60, n)}" for n in range(20)])
    given = {str(tmp_path / "a.jsonl"): 0.7, str(tmp_path / "b.jsonl"): 0.3}
    options = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 2, "threads": 1}
    options |= {"isolate": isolate, "save_every": 5}

    class Killed(Exception):
        pass

    def kill(event) -> None:
        if getattr(event, "step", 0) == 8:
            raise Killed

    records: list = []
    whole = loop.train(given, out=tmp_path / "a", steps=12, report=records.append, **options)
    with pytest.raises(Killed):
        loop.train(given, out=tmp_path / "b", steps=12, report=kill, **options)
    cut = loop.train(
        given, out=tmp_path / "b", steps=12, resume=True, report=records.append, **options
    )
    weights = [(out / "model.safetensors").read_bytes() for out in (whole, cut)]
    assert weights[0] == weights[1]
    starts = [event for event in records if isinstance(event, Started)]
    assert [event.first for event in starts] == [0, 5]
    assert 0 <= starts[0].padding < 0.5
    assert codecs.load(whole) is not None
    assert "--isolate" in (whole / "README.md").read_text() or not isolate
    with pytest.raises(FileError, match="trained with another data"):
        loop.train({**given, str(tmp_path / "b.jsonl"): 0.4}, out=tmp_path / "b", steps=12,
                   resume=True, report=records.append, **options)  # fmt: skip


def test_the_end_of_a_document_is_learned(tmp_path):
    made = prepare(write(tmp_path / "x.txt", prose(1000)), tmp_path)
    (group,) = made.groups
    assert group.corpus.document(0)[0] == group.corpus.document(0)[-1] == END
    assert made.held[0][0] == END
    assert made.held[0][-1] != END
