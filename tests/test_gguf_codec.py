"""Tokenizers in GGUF metadata: the ids of their own libraries, there and back, and odd values."""

import itertools
import shutil
from pathlib import Path

import llama_process
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim import codecs
from seriatim.codecs import _templates
from seriatim.codecs._cuts import CUTS
from seriatim.codecs._gguf import KEY, from_gguf
from seriatim.codecs._gguf_out import metadata_of
from seriatim.codecs._pieces import BYTE_TOKENS
from seriatim.codecs._utf8 import BYTE
from seriatim.codecs.byte import ByteCodec
from seriatim.codecs.text import EXAMPLES, TextCodec, from_llama2c, train
from seriatim.errors import FileError, ModelError, SeriatimError
from seriatim.files import gguf

TOKENIZERS = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
STORIES = TOKENIZERS.parent / "weights" / "stories260K" / "tok512.bin"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
MIXED = [
    *EXAMPLES,
    "I'll we'RE 'S \u2019t ÉCOLE école Straße 12345 ½ ² ٣٤ x\u00a0y\u3000z",
    "if (a<=b) {\n\t\treturn a[i]->x; // ok\r\n}\n\n\n        end",
    *(f"x{' ' * n}y" for n in range(2, 40, 3)),
    *("\n" * n for n in range(2, 6)),
]


def shared(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/data")
    return path


def vocabulary(name: str) -> Path:
    return shared(TOKENIZERS / "ggml-vocab" / f"ggml-vocab-{name}.gguf")


def forty_six(name: str) -> list[tuple[str, list[int]]]:
    """Test strings and their ids, made with the Hugging Face tokenizers."""
    path = vocabulary(name)
    raw = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:46]
    lines = Path(f"{path}.out").read_text().splitlines()[:46]
    return [(text, [int(id) for id in line.split()]) for text, line in zip(raw, lines, strict=True)]


@pytest.fixture(scope="module", params=["gpt-2", "phi-3"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def codec(name) -> TextCodec:
    return from_gguf(gguf.read(vocabulary(name)).metadata)


def bytelevel(**changes) -> dict:
    """A small vocabulary of the kind gpt2: 256 bytes, some pairs, and tokens beside them."""
    letters = sorted(BYTE)
    tokens = [*letters, "Ġa", "bc", "Ġabc", "<s>", "</s>", "<tool>", "[PAD262]", ""]
    types = [1] * (len(letters) + 3) + [3, 3, 4, 4, 1]
    values = dict(
        model="gpt2",
        pre="gpt-2",
        tokens=tokens,
        token_type=types,
        merges=["Ġ a", "b c", "Ġa bc"],
        bos_token_id=259,
        eos_token_id=260,
    )
    return spelt(values | changes)


def scored(**changes) -> dict:
    """A small vocabulary of the kind llama: bytes to fall back on, and a few pieces."""
    pieces = ["▁", "a", "b", "▁a", "ab", "▁ab", "<tool>"]
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *pieces]
    values = dict(
        model="llama",
        tokens=tokens,
        token_type=[2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 1, 4],
        scores=[0.0] * 259 + [-float(n) for n in range(len(pieces))],
    )
    return spelt(values | changes)


TIED = dict(tokens=["<unk>", "<s>", "</s>", *BYTE_TOKENS, *"▁ab", "ab", "▁a", "c", "<tool>"])
UNUSED = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 5, 1, 4]  # the piece "ab"


def spelt(values: dict) -> dict:
    return {KEY + name: value for name, value in values.items() if value is not None}


# The ids of others


def test_published_vocabularies_give_the_expected_ids(codec, name):
    for raw, ids in forty_six(name):
        assert codec.encode(raw) == ids
        assert codec.decode(ids) == raw


def test_roles_and_sizes_are_the_files_own(codec, name):
    assert (codec.size, codec.start, codec.ends) == {
        "gpt-2": (50257, (), (50256,)),
        "phi-3": (32064, (1,), (32000, 2, 32007)),
    }[name]


def test_gpt2s_own_files_give_the_same_ids(tmp_path):
    for ours, theirs in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copyfile(shared(TOKENIZERS / "gpt2" / ours), tmp_path / theirs)
    other = codecs.load(tmp_path)
    read = from_gguf(gguf.read(vocabulary("gpt-2")).metadata)
    for text in MIXED:
        assert read.encode(text) == other.encode(text)


def test_other_kinds_are_refused_by_name():
    with pytest.raises(FileError, match=r"tokenizer\.ggml\.model is 'bert'"):
        from_gguf(gguf.read(vocabulary("bert-bge")).metadata)


def test_a_file_that_says_it_has_none_has_none():
    assert from_gguf({}) is from_gguf({KEY + "model": "no_vocab"}) is None


def test_llama_cpp_gives_the_same_ids(codec, name):
    assert llama_process.ask("ids", vocabulary(name), MIXED) == [codec.encode(t) for t in MIXED]
    whole = [text for text in MIXED if text]
    assert llama_process.ask("prompts", vocabulary(name), whole) == [codec.prompt(t) for t in whole]


# Rules for cutting text


@pytest.mark.parametrize(
    "name, text, parts",
    [
        ("gpt-2", "I'll  pay 1234$", ["I", "'ll", " ", " pay", " 1234", "$"]),
        ("smollm", "in 123", ["in", " ", "1", "2", "3"]),
        ("llama-bpe", "I'LL (go) 12345\n\n x", ["I", "'LL", " (", "go", ")", " ", "123", "45",
                                                "\n\n", " x"]),
        ("qwen2", "a 123", ["a", " ", "1", "2", "3"]),
        ("deepseek-coder", "x=1中文", ["x", "=", "1", "中文"]),
        ("deepseek-v3", "ab\u0301c 1234", ["ab\u0301c", " ", "123", "4"]),
        ("tekken", "HTTPServer", ["HTTPServer"]),
        ("gpt-4o", "camelCase's", ["camel", "Case's"]),
        ("falcon", "$$12345", ["$$", "123", "45"]),
    ],
)  # fmt: skip
def test_rules_cut_where_their_models_do(name, text, parts):
    codec = from_gguf(bytelevel(pre=name))
    cuts = codec._tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cuts] == parts


@pytest.mark.parametrize("name", CUTS)
def test_no_rule_loses_text(name):
    codec = from_gguf(bytelevel(pre=name))
    for text in MIXED:
        assert codec.decode(codec.encode(text)) == codec.canonical(text)


def test_a_token_that_is_a_part_is_taken_whole_where_the_rule_says_so():
    assert from_gguf(bytelevel(pre="llama-bpe", merges=["Ġ a", "b c"])).encode(" abc") == [258]
    assert from_gguf(bytelevel(pre="dbrx", merges=["Ġ a", "b c"])).encode(" abc") == [256, 257]


# Special, user-defined and blank ids


@pytest.mark.parametrize("make, first", [(bytelevel, 259), (scored, 1)])
def test_control_ids_never_come_from_text_and_user_tokens_always_do(make, first):
    codec = from_gguf(make())
    assert not {first, first + 1} & set(codec.encode("<s></s> a<s>"))
    assert codec.decode([first, *codec.encode("ab"), first + 1]) == "ab"
    tool = codec._tokenizer.token_to_id("<tool>")
    assert codec.encode("ab<tool>ab").count(tool) == 1
    assert codec.decode([tool]) == "<tool>"


def test_ids_that_only_fill_up_stand_for_nothing():
    codec = from_gguf(bytelevel())
    assert codec.size == 264
    assert codec.decode([262, 263]) == ""
    assert not {262, 263} & set(codec.encode("[PAD262][EMPTY_263]"))


def test_a_text_that_ends_turns_is_special_whatever_its_type(name, codec):
    if name == "phi-3":  # where </s> is of the type user-defined
        assert 2 not in codec.encode("a</s>b")
        assert 2 in codec.ends


def test_an_ordinary_token_may_end_a_text_and_stays_ordinary():
    codec = from_gguf(bytelevel(eos_token_id=2))
    assert codec.ends == (2, 260)
    assert codec.decode(codec.encode("a#b")) == "a#b"


@pytest.mark.parametrize(
    "changes, start, framed",
    [
        (dict(), (), [97]),
        (dict(add_bos_token=True), (259,), [259, 97]),
        (dict(add_eos_token=True), (), [97, 260]),
        (dict(pre="llama-bpe"), (259,), [259, 97]),
        (dict(pre="llama-bpe", add_bos_token=False), (), [97]),
    ],
)
def test_what_goes_around_a_prompt(changes, start, framed):
    codec = from_gguf(bytelevel(**changes))
    assert codec.start == start
    assert codec.encode("a") == codec.encode("a")
    letter = codec.encode("a")
    assert codec._tokenizer.encode("a").ids == [id if id > 255 else letter[0] for id in framed]


def test_a_space_goes_in_front_of_each_part_or_of_none():
    codec = from_gguf(scored())
    assert codec.encode("ab<tool>ab") == [264, 265, 264]
    assert from_gguf(scored(add_space_prefix=False)).encode("ab") == [263]
    assert codec.decode(codec.encode("ab<tool>ab")) == codec.canonical("ab<tool>ab")


def test_arrays_may_be_numpys():
    arrays = {
        key: np.array(value, np.float32 if "scores" in key else np.int32)
        if isinstance(value, list) and not isinstance(value[0], str)
        else value
        for key, value in scored().items()
    }
    assert from_gguf(arrays).encode("ab b") == from_gguf(scored()).encode("ab b")


# What cannot be


@pytest.mark.parametrize(
    "make, changes, said",
    [
        (bytelevel, dict(model="plamo2"), "model is 'plamo2'"),
        (bytelevel, dict(model=3), "model is 3"),
        (bytelevel, dict(pre=None), "pre is missing"),
        (bytelevel, dict(pre="qwen3000"), "did you mean"),
        (bytelevel, dict(pre="kimi-k2"), "pre is 'kimi-k2'"),
        (bytelevel, dict(tokens=None), "tokens is missing"),
        (bytelevel, dict(tokens="abc"), "tokens is 'abc'"),
        (bytelevel, dict(tokens=["a", 7]), "tokens is 7"),
        (bytelevel, dict(tokens=["a", "b", "a"], token_type=None), "tokens 0 and 2 are both 'a'"),
        (bytelevel, dict(token_type=[1, 1]), "has 2 values; expected 264"),
        (bytelevel, dict(token_type=[9] * 264), "token_type is 9"),
        (bytelevel, dict(merges=None), "merges is missing"),
        (bytelevel, dict(merges=["Ġa"]), "merges is 'Ġa'"),
        (bytelevel, dict(merges=["a b c"]), "merges is 'a b c'"),
        (bytelevel, dict(merges=["q q"]), "'qq' is none"),
        (bytelevel, dict(eos_token_id=264), "eos_token_id is 264"),
        (bytelevel, dict(bos_token_id=-1), "bos_token_id is -1"),
        (bytelevel, dict(bos_token_id=None, add_bos_token=True), "bos_token_id is missing"),
        (bytelevel, dict(add_bos_token=1), "add_bos_token is 1"),
        (bytelevel, dict(add_space_prefix=True), "add_space_prefix is True"),
        (bytelevel, dict(token_type=None, eos_token_id=2), "as the special id 2"),
        (bytelevel, dict(token_type=[1] * 256 + [3] + [1] * 7), "text ' a' as the special id 256"),
        (scored, dict(scores=None), "scores is missing"),
        (scored, dict(TIED, scores=[0.0] * 266), "'▁a' and 'ab' have one score"),
        (scored, dict(token_type=UNUSED), "which merging makes"),
        (scored, dict(scores=[float("nan")] * 266), "scores is 'not finite'"),
        (scored, dict(scores=[0.0]), "has 1 values"),
        (scored, dict(remove_extra_whitespaces=True), "remove_extra_whitespaces is True"),
        (scored, dict(precompiled_charsmap=[1]), "precompiled_charsmap is 'given'"),
        (scored, dict(tokens=["a"] * 266), "are both 'a'"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(make, changes, said):
    with pytest.raises((FileError, ModelError), match=said):
        from_gguf(make(**changes))


def test_no_value_ends_the_process():
    """Whatever stands under a key, an error of ours comes, or a codec."""
    odd = [None, -1, 1 << 70, 1.5, "", "x", [], [[]], ["a"], [-1], {}, b"", True, np.zeros(3)]
    for make, value in itertools.product((bytelevel, scored), odd):
        for key in make():
            try:
                from_gguf(make() | {key: value})
            except SeriatimError as error:
                assert "\n" not in str(error)


# There and back


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[TextCodec, TextCodec]]:
    """Codecs, and what is read of what was written of them."""
    made = {"trained": train(EXAMPLES, 300)}
    if STORIES.exists():
        made["stories"] = from_llama2c(STORIES)
    return {name: (codec, from_gguf(metadata_of(codec, size=600))) for name, codec in made.items()}


@settings(max_examples=60)
@given(raw=texts | st.text("Onceupatimsdhl .,'\n", max_size=60))
def test_what_is_written_gives_the_same_ids(written, raw):
    raw = raw.replace("▁", "")  # which llama2.c's vocabulary does not take for a space
    for before, after in written.values():
        assert before.encode(raw) == after.encode(raw)
        assert before.decode(before.encode(raw)) == after.decode(after.encode(raw))


def test_what_is_written_keeps_roles_and_fills_up(written):
    for before, after in written.values():
        assert (after.start, after.ends, after.size) == (before.start, before.ends, 600)
        assert after.decode(range(before.size, 600)) == ""


def test_a_published_vocabulary_comes_back_as_it_was(codec):
    back = from_gguf(metadata_of(codec, size=codec.size))
    assert (back.size, back.start, back.ends) == (codec.size, codec.start, codec.ends)
    for text in MIXED:
        assert back.encode(text) == codec.encode(text)


def test_a_sentencepiece_model_comes_back_as_it_was(tmp_path):
    source = shared(TOKENIZERS / "mistral" / "tokenizer.model.v1")
    shutil.copyfile(source, tmp_path / "tokenizer.model")
    codec = codecs.load(tmp_path)
    back = from_gguf(metadata_of(codec, size=codec.size))
    for text in MIXED:
        assert back.encode(text) == codec.encode(text)


def test_more_ends_are_written_where_there_is_room():
    said = []
    values = metadata_of(train(EXAMPLES, 300), size=300, ends=[7, 8, 9], say=said.append)
    assert [values[f"{KEY}{n}_token_id"] for n in ("bos", "eos", "eot", "eom")] == [0, 0, 7, 8]
    assert "the end id 9 has no place there" in said[0]


def test_what_the_format_cannot_say_is_refused():
    with pytest.raises(ModelError, match="cannot say the codec byte"):
        metadata_of(ByteCodec(), size=257)
    with pytest.raises(ModelError, match="the id 299; expected ids below the model's 200"):
        metadata_of(train(EXAMPLES, 300), size=200)
    assert metadata_of(None, size=3) == {KEY + "model": "no_vocab"}


def test_a_normalizer_is_said_and_others_are_refused():
    from tokenizers import normalizers

    made, said = train(EXAMPLES, 300)._tokenizer, []
    made.normalizer = normalizers.NFC()
    metadata_of(TextCodec(made), size=300, say=said.append)
    assert "NFC" in said[0]
    made.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="the normalizer"):
        metadata_of(TextCodec(made), size=300)


# Chat templates


def test_templates_go_from_a_folder_to_metadata_and_back(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"chat_template": [{"name": "default", "template": "a"},'
                    ' {"name": "rag", "template": "b"}]}')  # fmt: skip
    found = _templates.of_folder(tmp_path)
    assert found == {"default": "a", "rag": "b"}
    assert _templates.of_gguf(_templates.to_gguf(found)) == found
    path.write_text('{"chat_template": "c"}')
    assert _templates.of_folder(tmp_path) == {"default": "c"}
    (tmp_path / "chat_template.jinja").write_text("d")
    assert _templates.of_folder(tmp_path) == {"default": "d"}


def test_the_template_in_a_published_file_is_found():
    found = _templates.of_gguf(gguf.read(vocabulary("phi-3")).metadata)
    assert found["default"].startswith("{{ bos_token }}")


@pytest.mark.parametrize("config", ['{"chat_template": 3}', '{"chat_template": [{"name": "x"}]}'])
def test_a_template_that_is_no_text_is_refused(config, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(FileError, match=r"tokenizer_config\.json"):
        _templates.of_folder(tmp_path)
