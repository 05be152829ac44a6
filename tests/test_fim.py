"""Fill in the middle: what is learned is what a request shows, and nothing is lost."""

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import seriatim
from seriatim import codecs
from seriatim.codecs import _gguf_out, code, text
from seriatim.codecs.byte import ByteCodec
from seriatim.errors import FileError, RequestError
from seriatim.train import loop, options
from seriatim.train.batches import NOTHING, Batch, Batches
from seriatim.train.data import prepare
from seriatim.train.objectives import fim
from seriatim.train.report import Progress, Started

SOURCE = "".join(
    f"def area_{n}(width, height={n}):\n    if width <= {n * 37}:\n        return 'Größe ☃'\n"
    f"    return width * height + {n % 7}  # {n} of them\n\n\n"
    for n in range(60)
)
TINY = {"size": "0.02M", "codec": "code", "vocab_size": 320, "context": 64, "batch": 3}
both_orders = pytest.mark.parametrize("order", code.ORDERS)


@cache
def codec() -> code.CodeCodec:
    return code.train([SOURCE], 400)


def objective(made=None, **chosen) -> fim.Fim:
    given = {"steps": 1, "out": "x", "size": "1M", "objective": "fim", "fim_rate": 1.0} | chosen
    return fim.objective(options.asked(given), made or codec())


def draw(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def spelt(ids: list[int]) -> bytes:
    table = codec().pieces()
    return b"".join(table[id] for id in ids)


def parts(ids: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """Order, prefix, middle and suffix of a piece with a gap; of "spm", prefix and middle as one.

    Without a prefix the two orders are one, which is called "spm" here.
    """
    begin, suffix, middle = (codec().added[f"<fim_{n}>"] for n in ("prefix", "suffix", "middle"))
    assert [ids.count(mark) for mark in (begin, suffix, middle)] == [1, 1, 1]
    assert ids[:2] == [*codec().start, begin]
    assert ids[-1] == codec().ends[0]
    s, m = ids.index(suffix), ids.index(middle)
    if s == 2:
        return "spm", [], ids[m + 1 : -1], ids[3:m]
    return "psm", ids[2:s], ids[m + 1 : -1], ids[s + 1 : m]


def undone(ids: list[int]) -> bytes:
    """The text of a piece in its own order."""
    if codec().added["<fim_prefix>"] not in ids:
        return spelt(ids)
    _, prefix, middle, suffix = parts(ids)
    return spelt(prefix + middle + suffix)


def rows(batch: Batch) -> list[list[list[int]]]:
    """The pieces of each row, as ids."""
    return [[*fim._pieces(batch, row)] for row in range(len(batch.inputs))]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Documents of many lengths, so that some are cut and some share a row."""
    folder, chosen = tmp_path / "files", Random(0)
    folder.mkdir()
    lines = SOURCE.splitlines(keepends=True)
    for n in range(60):
        at = chosen.randrange(len(lines) - 40)
        text = "".join(lines[at : at + chosen.choice([1, 2, 4, 9, 40])])
        (folder / f"{n}.py").write_text(f"# {n}\n{text}", encoding="utf-8")
    return folder


def batches(files: Path, task: fim.Fim, *, rows: int, context: int = 96) -> Batches:
    codec().save(saved := files.parent)
    made = prepare(files, codec=str(saved), vocab_size=0, cache=files.parent / "cache")
    room = {"context": context, "windows": rows, "seed": 0, "room": task.room}
    return Batches(made.groups, folder=made.cache, **room)


# The rewriting


@both_orders
@given(
    raw=st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.just(SOURCE[:600]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_undoing_the_permutation_gives_the_document(order, raw, seed, data):
    task, whole = objective(fim_order=order), [*codec().prompt(raw), *codec().ends]
    first = data.draw(st.integers(0, len(whole) - 1))
    for ids in (whole, whole[first:], whole[: first + 1]):  # pieces of a document that was cut too
        made = task.rewritten(ids, draw(seed))
        assert parts(made)[0] in (order, "spm")
        assert undone(made) == spelt(ids)
        assert len(made) <= len(ids) + task.room


@both_orders
def test_what_is_shown_is_what_a_request_shows(order):
    task, same = objective(fim_order=order), 0
    for n in range(100):
        raw = SOURCE[37 * n : 37 * n + 80]
        made = task.rewritten(codec().prompt(raw), draw(n))
        _, prefix, middle, suffix = parts(made)
        if order == "spm":  # its prefix and middle stand together: all splits of them are tried
            joined = spelt(middle).decode()
            splits = ((joined[:k], joined[k:]) for k in range(len(joined) + 1))
        else:
            splits = [(spelt(prefix).decode(), spelt(middle).decode())]
        asked = (
            [
                *codec().start,
                *code.infill(codec(), codec().family, before, spelt(suffix).decode(), order),
                *codec().encode(missing),
                *codec().ends,
            ]
            for before, missing in splits
        )
        same += made in asked
    assert same > 85  # the others are longer by more than `SLACK`


def test_where_there_is_no_room_ids_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(fim, "SLACK", -(10**6))
    ids = [*codec().prompt(SOURCE[:500]), *codec().ends]
    made = objective().rewritten(ids, draw(1))
    marks = [codec().added[mark] for mark in codec().family.marks]
    assert Counter(made) == Counter(ids + marks)
    assert undone(made) == SOURCE[:500].encode()


def test_half_a_character_is_split_between_ids():
    ids = codec().encode("☃" * 20)
    assert len(codec().encode("☃")) > 1
    made = objective().rewritten(ids[1:], draw(0))
    assert undone(made) == spelt(ids[1:])
    assert Counter(made) >= Counter(ids[1:])


def test_rate_orders_and_places_are_as_drawn():
    ids, count = codec().prompt("x" * 100), 4000
    task = objective(fim_rate=0.3, fim_lines=0.0, fim_order="both")
    made = [task.rewritten(ids, draw(0, n)) for n in range(count)]
    gaps = [parts(one) for one in made if one != ids]
    assert abs(len(gaps) - 0.3 * count) < 4 * math.sqrt(count * 0.3 * 0.7)
    psm = [gap for gap in gaps if gap[0] == "psm"]
    assert abs(len(psm) - len(gaps) / 2) < 4 * math.sqrt(len(gaps) / 4)
    sizes = np.array([[len(spelt(part)) for part in gap[1:]] for gap in psm])
    assert (sizes.sum(1) == 100).all()
    # Two uniform places leave three parts of a third each, with variance 1/18 of the whole.
    assert np.abs(sizes.mean(0) - 100 / 3).max() < 4 * 100 * math.sqrt(1 / 18 / len(psm))


def test_gaps_of_whole_lines_are_lines_and_their_share_is_as_drawn():
    """Each line but the last may be the first; half of the gaps have one line, a quarter two."""
    text, count = "".join(f"{n}\n" for n in range(20)), 2000
    ids = codec().prompt(text)
    aim = objective(fim_lines=1.0, fim_order="psm")
    made = [aim.rewritten(ids, draw(0, n)) for n in range(count)]
    sizes, firsts = Counter(), Counter()
    for one in made:
        before, middle, after = (spelt(part).decode() for part in parts(one)[1:])
        assert before + middle + after == text
        assert before[-1:] in ("", "\n") and after[:1] in ("", "\n")
        sizes[len(middle.split("\n"))] += before.count("\n") < 10
        firsts[before.count("\n")] += 1
    early = sum(sizes.values())
    for lines in (1, 2, 3):
        share = 0.5**lines
        assert abs(sizes[lines] - early * share) < 4 * math.sqrt(early * share)
    assert len(firsts) == 21
    assert max(firsts.values()) < 2 * count / 21


@pytest.mark.parametrize(("rate", "gaps"), [(0.0, 0), (1.0, 1)])
def test_a_rate_of_nothing_and_of_all(rate, gaps):
    ids = codec().prompt("x = 1\n")
    made = [objective(fim_rate=rate).rewritten(ids, draw(n)) for n in range(50)]
    assert {one != ids for one in made} == {bool(gaps)}


# Rows


def test_a_row_keeps_its_pieces_and_nothing_is_learned_across_them(files):
    task = objective(fim_rate=0.5)
    feed = batches(files, task, rows=40)
    several = gaps = 0
    for _ in range(3):
        given = feed.take()
        made = task.prepare(given)
        for before, after in zip(rows(given), rows(made), strict=True):
            assert [undone(ids) for ids in after] == [spelt(ids) for ids in before]
            several += len(before) > 1
            gaps += sum(a != b for a, b in zip(after, before, strict=True))
        there = made.targets != NOTHING
        assert made.learned == sum(len(ids) - 1 for row in rows(made) for ids in row)
        same = made.segments[:, 1:] == made.segments[:, :-1]
        follows = there[:, :-1] & same & there[:, 1:]
        assert (made.inputs[:, 1:][follows] == made.targets[:, :-1][follows]).all()
        assert (np.diff(made.segments) >= 0).all()
        assert (made.inputs[~there] == 0).all()
    assert several > 10
    assert gaps > 10


def test_what_is_drawn_does_not_depend_on_how_a_batch_is_divided(files):
    task = objective(fim_rate=0.5)
    given = batches(files, task, rows=7).take()
    whole = task.prepare(given)
    for count in (2, 3, 7):
        divided = [task.prepare(part) for part in given.parts(count)]
        for name, array in vars(whole).items():
            assert np.array_equal(array, np.concatenate([getattr(d, name) for d in divided])), name
    other = objective(fim_rate=0.5, seed=1).prepare(given)
    later = task.prepare(Batch(given.inputs, given.targets, given.segments, given.numbers + 7))
    assert not np.array_equal(whole.inputs, other.inputs)
    assert not np.array_equal(whole.inputs, later.inputs)


# Refusals


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (ByteCodec(), "codec byte has no ids that mark a gap"),
        (text.specimens()[0], "codec text has no ids that mark a gap"),
    ],
    ids=["byte", "text"],
)
def test_a_codec_without_marks_is_refused_with_what_to_do(made, named):
    with pytest.raises(RequestError, match=rf"{named}.*codec='code'"):
        objective(made)


def test_an_order_that_a_family_does_not_have_is_refused():
    marks = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>", "<|repo_name|>"]
    qwen = text.train([SOURCE], 300, marks=marks)
    assert objective(qwen, fim_order="psm").room == 3 + 1 + 1 + fim.SLACK
    for order in ("spm", "both"):
        with pytest.raises(RequestError, match="Coder has no such order"):
            objective(qwen, fim_order=order)


@pytest.mark.parametrize(
    "chosen", [{"fim_rate": 1.5}, {"fim_rate": -0.1}, {"fim_order": "mps"}, {"fim_rate": "half"}]
)
def test_options_that_mean_nothing_are_refused(chosen):
    with pytest.raises(RequestError, match=f"{next(iter(chosen))} is"):
        objective(**chosen)


@pytest.mark.parametrize("chosen", [{"fim_rate": 0.3}, {"fim_order": "psm"}])
def test_options_of_another_objective_are_refused(chosen):
    with pytest.raises(RequestError, match=f"{next(iter(chosen))} is .*the objective 'fim'"):
        options.asked({"steps": 1, "out": "x", "size": "1M", **chosen})


def test_a_context_without_room_for_text_is_refused(files):
    task = objective()
    with pytest.raises(RequestError, match=f"context is {task.room}.*more than the {task.room}"):
        batches(files, task, rows=1, context=task.room)
    assert batches(files, task, rows=1, context=task.room + 1).take().learned == 1


# The codec


def test_a_learned_codec_is_known_by_its_tokenizer_alone(tmp_path):
    codec().save(tmp_path)
    loaded = codecs.load(tmp_path)
    assert isinstance(loaded, code.CodeCodec)
    (tmp_path / "codec.json").unlink()
    plain = codecs.load(tmp_path)
    assert plain is not None
    assert plain.name == "text"
    for made in (loaded, plain):
        assert code.of(made).spm
        assert made.encode(SOURCE) == codec().encode(SOURCE)
        assert (made.size, made.ends, made.start) == (codec().size, (0,), (0,))


def test_a_learned_codec_takes_digits_one_by_one_and_spaces_together():
    assert [spelt([id]) for id in codec().encode("2026")] == [b"2", b"0", b"2", b"6"]
    assert b"        return" not in codec().pieces()
    assert max(len(p) for p in codec().pieces() if not p.strip(b" ")) >= 7
    assert codec().cut(b"one two 3") == 3
    assert _gguf_out.metadata_of(codec(), size=codec().size)["tokenizer.ggml.pre"] == "qwen2"


def test_transformers_gives_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    codec().save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(SOURCE, add_special_tokens=False).input_ids == codec().encode(SOURCE)
    asked = theirs("<fim_prefix>a<fim_suffix>b<fim_middle>").input_ids
    assert asked == [0, *code.infill(codec(), codec().family, "a", "b")]


def test_a_vocabulary_without_room_for_the_marks_is_refused():
    with pytest.raises(RequestError, match=r"vocab_size is 259.*at least 260"):
        code.train([SOURCE], 259)


# Whole runs


def run(files: Path, out: Path, steps: int, **chosen) -> list:
    records: list = []
    asked = {"objective": "fim", "threads": 1, "report": records.append} | TINY | chosen
    loop.train(files, out=out, steps=steps, **asked)
    return records


@pytest.mark.parametrize("chosen", [{}, {"isolate": True, "accumulate": 2}], ids=str)
def test_a_resumed_run_ends_with_the_same_bits(files, tmp_path, chosen):
    class Killed(Exception):
        pass

    def kill(record) -> None:
        if isinstance(record, Progress) and record.step == 5:
            raise Killed

    chosen = {"save_every": 3} | chosen
    run(files, tmp_path / "whole", 7, **chosen)
    with pytest.raises(Killed):
        run(files, tmp_path / "cut", 7, report=kill, **chosen)
    records = run(files, tmp_path / "cut", 7, resume=True, **chosen)
    assert next(r.first for r in records if isinstance(r, Started)) == 3
    bits = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert bits[0] == bits[1]


def test_a_batch_in_parts_learns_what_it_learns_whole(files, tmp_path):
    losses = [
        [r.loss for r in run(files, tmp_path / str(n), 5, accumulate=n) if isinstance(r, Progress)]
        for n in (1, 3)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_trained_folder_fills_gaps_within_constraints(files, tmp_path):
    run(files, tmp_path / "out", 3)
    model = seriatim.load(tmp_path / "out", threads=1)
    for order in code.ORDERS:
        made = model.generate(prefix="def f", suffix="\n", fim_order=order, max_tokens=8, seed=0)
        shown = code.infill(model.codec, code.of(model.codec), "def f", "\n", order)
        assert made.prompt_ids == [0, *shown]
    assert model.generate(prefix="a", suffix="b", regex="[0-9]{3}", seed=1).output.isdigit()


def test_a_middle_that_follows_from_what_comes_after_is_learned(tmp_path):
    letters, chosen = "abcdefghijklmnop", Random(0)
    path = tmp_path / "same.jsonl"
    lines = (json.dumps({"text": f"{c}={c}"}) for c in chosen.choices(letters, k=2000))
    path.write_text("\n".join(lines))
    chosen = {"vocab_size": 260, "batch": 8, "fim_rate": 0.9, "validation": 0.01}
    run(path, tmp_path / "out", 260, **chosen)
    model = seriatim.load(tmp_path / "out", threads=1)
    greedy = {"temperature": 0, "max_tokens": 4}
    marks = [model.codec.added[mark] for mark in code.of(model.codec).marks]
    forward = model.generate(**greedy, banned_ids=marks).output
    assert sum(forward.startswith(c) for c in letters) <= 1
    for order in code.ORDERS:
        shown = [{"prefix": "", "suffix": f"={c}", "fim_order": order} for c in letters]
        right = [model.generate(**s, **greedy).output == s["suffix"][1] for s in shown]
        assert sum(right) >= 8


def test_a_codec_names_the_order_of_requests_that_name_none(tmp_path):
    made = code.train(text.EXAMPLES, 300, {"order": "spm"})
    made.save(tmp_path)
    loaded = codecs.load(tmp_path)
    assert code.order_of(loaded) == "spm"
    assert (
        loaded.infill("a", "b") == loaded.infill("a", "b", "spm") != loaded.infill("a", "b", "psm")
    )
    with pytest.raises(RequestError, match=r"order is 'sp'.*psm or spm"):
        code.train(text.EXAMPLES, 300, {"order": "sp"})
    said = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(said | {"options": {"order": 1}}))
    with pytest.raises(FileError, match="code:order is 1"):
        codecs.load(tmp_path)


def test_a_codec_is_learned_with_its_options(tmp_path):
    learned = codecs.learner("code:order=spm")(text.EXAMPLES, 300)
    assert code.order_of(learned) == "spm"
    assert code.order_of(codecs.learner("code")(text.EXAMPLES, 300)) == "psm"
    with pytest.raises(RequestError, match="codec text has no options"):
        codecs.learner("text:order=spm")
    with pytest.raises(RequestError, match=r"no option 'ordre'.*did you mean order"):
        codecs.learner("code:ordre=spm")(text.EXAMPLES, 300)
