"""The text codec: the ids of other people's tokenizers, and what hostile or odd files meet."""

import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim import codecs
from seriatim.codecs import text as text_codec
from seriatim.codecs._pieces import BYTE_TOKENS
from seriatim.codecs._scored import build
from seriatim.codecs.text import EXAMPLES, TextCodec, from_llama2c, train
from seriatim.errors import FileError, ModelError, RequestError, SeriatimError
from seriatim.files.llama2c_vocab import read_vocab

DATA = Path(__file__).parents[2] / "shared" / "data"
TOKENIZERS = DATA / "tokenizers"
STORIES = DATA / "weights" / "stories260K" / "tok512.bin"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def shared(path):
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/data")
    return path


def folder_of(folder, **files):
    """A folder with copies of shared files, each under another name."""
    for name, source in files.items():
        shutil.copyfile(shared(source), folder / name.replace("__", "."))
    return folder


def forty_six(name):
    """Test strings and their ids (ggml-vocab; made with the Hugging Face tokenizers)."""
    stem = TOKENIZERS / "ggml-vocab" / f"ggml-vocab-{name}.gguf"
    raw = shared(stem.with_suffix(".gguf.inp")).read_bytes().decode()
    ids = stem.with_suffix(".gguf.out").read_text().splitlines()[:46]
    return list(zip(raw.split("\n__ggml_vocab_test__\n")[:46], ids, strict=True))


def ids_of(line):
    return [int(id) for id in line.split()]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    files = TOKENIZERS / "gpt2"
    folder = tmp_path_factory.mktemp("gpt2")
    return codecs.load(
        folder_of(folder, encoder__json=files / "encoder.json", vocab__bpe=files / "vocab.bpe")
    )


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    source = TOKENIZERS / "mistral" / "tokenizer.model.v1"
    return codecs.load(folder_of(tmp_path_factory.mktemp("mistral"), tokenizer__model=source))


@pytest.fixture(scope="module")
def stories():
    return from_llama2c(shared(STORIES))


# The ids of others


def test_gpt2s_own_files_give_the_expected_ids(gpt2):
    for raw, line in forty_six("gpt-2"):
        assert gpt2.encode(raw) == ids_of(line)
        assert gpt2.decode(ids_of(line)) == raw
    assert (gpt2.size, gpt2.start, gpt2.ends) == (50257, (), (50256,))


def test_a_sentencepiece_model_gives_the_librarys_ids(mistral):
    library = pytest.importorskip("sentencepiece")
    source = TOKENIZERS / "mistral" / "tokenizer.model.v1"
    expected = library.SentencePieceProcessor(model_file=str(source))
    for raw in [*EXAMPLES, *(raw for raw, _ in forty_six("gpt-2"))]:
        assert mistral.encode(raw) == expected.encode(raw)
        assert mistral.decode(mistral.encode(raw)) == expected.decode(expected.encode(raw))
    assert (mistral.size, mistral.start, mistral.ends) == (32000, (1,), (2,))


@settings(max_examples=40)
@given(raw=texts | st.text("ab ▁\nthe in", max_size=60))
def test_a_sentencepiece_model_gives_the_librarys_ids_for_any_text(mistral, raw):
    library = pytest.importorskip("sentencepiece")
    source = TOKENIZERS / "mistral" / "tokenizer.model.v1"
    expected = library.SentencePieceProcessor(model_file=str(source))
    if "\0" not in raw:  # where the library's own normaliser stops
        assert mistral.encode(raw) == expected.encode(raw)


def gguf_values(path):
    """The metadata of a GGUF file (version 3), as bytes, numbers and lists."""
    data, at = path.read_bytes(), 8

    def take(form):
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    def value(kind):
        nonlocal at
        if kind == 8:
            (size,) = take("Q")
            at += size
            return data[at - size : at]
        if kind == 9:
            item, count = take("IQ")
            return [value(item) for _ in range(count)]
        return take("BbHhIif?__Qqd"[kind])[0]

    _, count = take("QQ")
    return {value(8).decode(): value(take("I")[0]) for _ in range(count)}


def test_llamas_scores_give_the_expected_ids():
    file = gguf_values(shared(TOKENIZERS / "ggml-vocab" / "ggml-vocab-phi-3.gguf"))
    kinds = file["tokenizer.ggml.token_type"]
    pieces = [piece.decode() for piece in file["tokenizer.ggml.tokens"]]
    scores = dict(zip(pieces, file["tokenizer.ggml.scores"], strict=True))
    normal = {piece: scores[piece] for piece, kind in zip(pieces, kinds, strict=True) if kind == 1}
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind in (2, 3)]
    made = build(pieces, normal, space="▁", prefix=True, specials=special, start="<s>")
    codec = TextCodec(made)
    for raw, line in forty_six("phi-3"):
        assert codec.encode(raw) == ids_of(line)
        assert codec.decode(ids_of(line)) == raw


def run_c(text, pieces, scores):
    """`encode` of llama2.c's run.c, without the start id: best merge first, leftmost of equals."""
    lookup = {piece: id for id, piece in enumerate(pieces)}
    ids = [lookup[" "]] if text else []
    for letter in text:
        known = lookup.get(letter)
        ids += [byte + 3 for byte in letter.encode()] if known is None else [known]
    while True:
        unions = [lookup.get(pieces[a] + pieces[b]) for a, b in pairwise(ids)]
        found = [(-scores[id], at) for at, id in enumerate(unions) if id is not None]
        if not found:
            return ids
        _, at = min(found)
        ids[at : at + 2] = [unions[at]]


@settings(max_examples=150)
@given(raw=texts | st.text("Onceupatimsdhl .,'\n", max_size=60) | st.text("t he", max_size=30))
def test_llama2c_gives_the_ids_of_run_c(stories, raw):
    assert stories.encode(raw) == run_c(raw, *read_vocab(STORIES))
    assert stories.decode(stories.encode(raw)) == stories.canonical(raw) == raw


def test_llama2c_starts_with_1_and_ends_with_1_or_2(stories):
    assert (stories.size, stories.start, stories.ends) == (512, (1,), (1, 2))
    assert stories.prompt("Once upon a time") == [1, 403, 407, 261, 378]


def test_a_published_tokenizer_json_loads_and_reads_special_text_as_text():
    codec = codecs.load(shared(TOKENIZERS / "ort" / "roberta-base" / "tokenizer.json").parent)
    assert (codec.size, codec.start) == (50265, (0,))
    for raw in [*codec.examples(), "<s></s><mask> <unk>"]:
        assert codec.decode(codec.encode(raw)) == raw
        assert not set(codec.encode(raw)) & set(codec.specials.values())


@pytest.mark.parametrize("name", ["llama2", "added-tokens"])
def test_published_files_that_do_not_load_are_refused_in_one_line(name):
    path = shared(TOKENIZERS / "ort" / name / "tokenizer.json")
    with pytest.raises(FileError, match=r"tokenizer\.json") as error:
        codecs.load(path.parent)
    assert "\n" not in str(error.value)


def test_a_vocabulary_in_which_text_gives_special_ids_is_refused():
    with pytest.raises(ModelError, match="plain text '<pad>' as the special id 0"):
        codecs.load(shared(TOKENIZERS / "ort" / "t5-small" / "tokenizer.json").parent)


# Decoding


def test_a_continuation_keeps_its_leading_space_and_a_text_does_not(stories):
    prompt, more = stories.prompt("Once upon"), stories.encode("a time")
    assert stories.decode([*prompt, *more]) == "Once upon a time"
    assert stories.decode(more) == stories.decode(more, after=[1]) == "a time"
    assert stories.decode(more, after=prompt) == " a time"
    stream = stories.stream(after=prompt)
    assert "".join(map(stream.feed, more)) + stream.finish() == " a time"


def test_decoding_is_that_of_tokenizers(gpt2, mistral):
    for codec in (gpt2, mistral, *text_codec.specimens()):
        for raw in codec.examples():
            ids = codec.encode(raw)
            assert codec.decode(ids) == codec._tokenizer.decode(ids)


def test_bytes_of_no_character_cost_only_themselves(mistral):
    ids = [3 + byte for byte in "é".encode() + b"\xff" + "日".encode()[:2]]
    assert mistral.decode(ids) == "é\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_ids_without_a_piece_render_as_nothing(gpt2):
    assert gpt2.decode([-1, 15496, 50257, 1 << 40]) == "Hello"


def test_a_text_that_encodes_otherwise_is_reported(gpt2):
    hello = gpt2.encode("Hello")
    apart = [gpt2.encode(letter)[0] for letter in "Hello"]
    assert gpt2.decode(apart) == "Hello"
    assert gpt2.differs(apart)
    assert not gpt2.differs(hello)


# Training


def test_training_is_deterministic_and_knows_every_byte():
    first, second = (train(iter(EXAMPLES), 320) for _ in range(2))
    assert first._tokenizer.to_str() == second._tokenizer.to_str()
    assert (first.size, first.start, first.ends) == (320, (0,), (0,))
    assert sorted(first._piece(id) for id in range(1, 257)) == [bytes((b,)) for b in range(256)]


def test_training_without_room_for_the_bytes_is_refused():
    with pytest.raises(RequestError, match="vocab_size is 256"):
        train(EXAMPLES, 256)


# Other people's tokenizer.json


def saved(folder, change=lambda content: None):
    """A folder with the trained specimen's tokenizer.json alone, changed."""
    train(EXAMPLES, 300).save(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "codec.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return folder


def test_a_normalizer_is_declared_by_the_canonical_form(tmp_path):
    codec = codecs.load(saved(tmp_path, lambda file: file.update(normalizer={"type": "NFC"})))
    assert codec.canonical("cafe\u0301") == codec.decode(codec.encode("cafe\u0301")) == "caf\u00e9"


def test_truncation_and_padding_are_not_obeyed(tmp_path):
    def cut(content):
        content["truncation"] = {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        }

    codec = codecs.load(saved(tmp_path, cut))
    assert codec.decode(codec.encode("as long as it is")) == "as long as it is"


def test_an_added_token_that_is_not_special_is_text(tmp_path):
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    token = {"id": 300, "content": "<é>", **flags}
    codec = codecs.load(saved(tmp_path, lambda file: file["added_tokens"].append(token)))
    assert codec.encode("<é>") == [300]
    assert codec.decode([300]) == codec.canonical("<é>") == "<é>"
    assert codec.units([300]) == 4


def test_a_letter_that_the_vocabulary_lacks_is_refused_and_others_are_not(tmp_path):
    def without_z(content):
        del content["model"]["vocab"]["z"]

    codec = codecs.load(saved(tmp_path, without_z))
    assert codec.decode(codec.encode("apples")) == "apples"
    with pytest.raises(RequestError, match="'z' at character 2"):
        codec.encode("a z")


def test_the_end_id_is_that_of_tokenizer_config(tmp_path):
    folder = saved(tmp_path)
    assert codecs.load(folder).ends == ()
    for eos in ("<|end|>", {"content": "<|end|>"}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        assert codecs.load(folder).ends == (0,)


def without_template_token(content):
    content["post_processor"]["special_tokens"] = {}


def with_template_without_text(content):
    content["post_processor"]["single"] = []


def with_merge_of_nothing(content):
    content["model"]["merges"].insert(0, ["nothing", "such"])


def with_shared_id(content):
    content["model"]["vocab"]["#"] = 0


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda file: file["model"].update(type="Zork"), "no tokenizer"),
        (lambda file: file["model"].update(dropout=0.5), "dropout"),
        (lambda file: file["model"].update(continuing_subword_prefix="##"), "continuing_subword"),
        (lambda file: file["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda file: file.update(decoder=None), "no decoder"),
        (lambda file: file.update(decoder={"type": "CTC"}), "no tokenizer"),
        (lambda file: file.pop("model"), "no model"),
        (without_template_token, "template"),
        (with_template_without_text, "template"),
        (with_merge_of_nothing, "no tokenizer"),
        (with_shared_id, "same id 0"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_honoured_is_refused_by_name(tmp_path, change, names):
    with pytest.raises(FileError, match=names) as error:
        codecs.load(saved(tmp_path, change))
    assert "tokenizer.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_what_is_no_tokenizer_json_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        codecs.load(tmp_path)


# GPT-2's files and SentencePiece


def test_merges_that_have_no_id_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(FileError, match="'ab' has no id"):
        codecs.load(tmp_path)


@pytest.mark.parametrize(
    "vocabulary", ['{"a": 1}', '{"a": 0, "b": 0}', '{"a": "0"}', '{"a": true}']
)
def test_a_vocabulary_that_does_not_number_its_tokens_is_refused(tmp_path, vocabulary):
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(FileError, match=r"vocab\.json"):
        codecs.load(tmp_path)


def test_gpt2_files_of_another_tokenizer_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(FileError, match="Qwen2Tokenizer"):
        codecs.load(tmp_path)


def message(*fields):
    """A protobuf message of (number, value)."""
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += bytes((number << 3,)) + bytes((value,))
        elif isinstance(value, float):
            made += bytes((number << 3 | 5,)) + struct.pack("<f", value)
        else:
            made += bytes((number << 3 | 2, len(value))) + value
    return made


def small_model(*, model_type=2, squeeze=0, rules=b"", more=()):
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((token, 6) for token in BYTE_TOKENS)]
    pieces = [*special, ("▁", 1), ("a", 1), ("▁a", 1), *more]
    return message(
        *((1, message((1, text.encode()), (2, 0.0), (3, kind))) for text, kind in pieces),
        (2, message((3, model_type))),
        (3, message((2, rules), (3, 1), (4, squeeze))),
    )


def test_a_small_sentencepiece_model_loads(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    codec = codecs.load(tmp_path)
    assert codec.prompt("a é") == [1, 261, 259, 3 + 0xC3, 3 + 0xA9]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert codecs.load(tmp_path).start == ()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (small_model(model_type=1), "model type 1"),
        (small_model(squeeze=1), "spaces are squeezed"),
        (small_model(rules=b"x"), "a character map"),
        (small_model(more=[("[X]", 4)]), r"user-defined piece '\[X\]'"),
        (small_model(more=[("zzz", 5)]), "unused piece 'zzz'"),
        (small_model(more=[("a", 1)]), "both 'a'"),
        (small_model()[:-1], "cut"),
        (b"", "no pieces"),
        (b"\x0b", "wire type 3"),
        (b"\xff" * 20, "more than ten bytes"),
        (b"YQ== 0\nYg== 1\n", "a SentencePiece model"),
    ],
)
def test_a_model_that_cannot_be_reproduced_is_refused_by_name(tmp_path, content, names):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(FileError, match=names) as error:
        codecs.load(tmp_path)
    assert "tokenizer.model" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sentencepiece_model_cut_anywhere_is_refused(tmp_path):
    whole, path = small_model(), tmp_path / "tokenizer.model"
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError):
            codecs.load(tmp_path)


def test_files_that_added_tokens_json_would_change_are_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(small_model())
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(FileError, match=r"added_tokens\.json"):
        codecs.load(tmp_path)


# llama2.c's tok*.bin


def entry(text, score=0.0, size=None):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<fi", score, len(data) if size is None else size) + data


def tok_bin(*more, longest=10):
    first = ["<unk>", "\n<s>\n", "\n</s>\n", *BYTE_TOKENS, " "]
    return struct.pack("<i", longest) + b"".join(map(entry, first)) + b"".join(more)


def test_a_small_tok_bin_loads(tmp_path):
    (tmp_path / "tok.bin").write_bytes(tok_bin(entry("a", -1.0)))
    assert from_llama2c(tmp_path / "tok.bin").prompt("a\n") == [1, 259, 260, 13]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", "does not begin with a length"),
        (struct.pack("<i", -1), "does not begin with a length"),
        (tok_bin()[:-1], "length 1 at byte"),
        (tok_bin(b"\0" * 5), "id 260: the file is cut"),
        (tok_bin(entry("a", size=2**31 - 1)), "length 2147483647"),
        (tok_bin(entry("a", size=-5)), "length -5"),
        (tok_bin(entry("")), "length 0"),
        (tok_bin(entry("a", float("nan"))), "score nan"),
        (tok_bin(entry(b"\xff")), "not UTF-8"),
        (tok_bin(entry("a"), entry("a")), "both 'a'"),
        (tok_bin(entry("a" * 2000), longest=4000), "2000 letters"),
        (tok_bin(longest=5), "length 6 at byte 30; expected 1 to 5"),
        (struct.pack("<i", 3) + entry("a"), "ids 3 to 258"),
    ],
)
def test_a_damaged_tok_bin_is_refused_in_one_line(tmp_path, content, names):
    (tmp_path / "tok.bin").write_bytes(content)
    with pytest.raises(FileError, match=names) as error:
        from_llama2c(tmp_path / "tok.bin")
    assert "tok.bin" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tok_bin_cut_anywhere_gives_a_vocabulary_or_one_line(tmp_path):
    whole, path = tok_bin(entry("a", -1.0)), tmp_path / "tok.bin"
    for size in [*range(0, len(whole), 61), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:size])
        try:
            pieces, _ = read_vocab(path)
            assert sum(map(len, map(entry, pieces))) == size - 4
        except SeriatimError as error:
            assert str(path) in str(error)


# Files of text


def test_a_file_that_is_not_utf8_is_refused_with_the_offset(tmp_path):
    codec = text_codec.specimens()[0]
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(FileError, match="byte 0xe9 at offset 3"):
        codec.read(tmp_path / "latin")


def test_line_ends_and_marks_survive_a_file(tmp_path):
    codec, raw = text_codec.specimens()[0], "\ufeffone\r\ntwo\rthree\n\x1a"
    codec.write(raw, tmp_path / "file")
    assert codec.read(tmp_path / "file") == raw


def test_what_is_no_file_is_refused(tmp_path):
    codec = text_codec.specimens()[0]
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError, match=path.name):
            codec.read(path)
