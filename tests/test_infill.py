"""Infilling: the ids are those of the published formats, and no text is ever one of their marks."""

from functools import cache
from pathlib import Path

import chats
import checkpoints
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

import seriatim
from seriatim import cli
from seriatim.codecs import code, text
from seriatim.errors import RequestError

STAR = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]
QWEN = ["<|endoftext|>", "<|im_end|>"]
QWEN_ADDED = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
              "<|repo_name|>", "<|file_sep|>"]  # fmt: skip

# By family: special tokens, tokens that are only added, and the orders as published; {p} and {s}
# stand for the two texts. CodeLlama's are spelt out in a test of their own.
PUBLISHED = {
    "StarCoder2": (
        [*STAR, "<repo_name>", "<file_sep>"], [],
        "<fim_prefix>{p}<fim_suffix>{s}<fim_middle>", "<fim_prefix><fim_suffix>{s}<fim_middle>{p}",
    ),
    "StarCoder": (
        [*STAR, "<filename>", "<reponame>"], [],
        "<fim_prefix>{p}<fim_suffix>{s}<fim_middle>", "<fim_prefix><fim_suffix>{s}<fim_middle>{p}",
    ),
    "others with StarCoder's": (
        STAR, [],
        "<fim_prefix>{p}<fim_suffix>{s}<fim_middle>", "<fim_prefix><fim_suffix>{s}<fim_middle>{p}",
    ),
    "SantaCoder": (
        ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"], [],
        "<fim-prefix>{p}<fim-suffix>{s}<fim-middle>", "<fim-prefix><fim-suffix>{s}<fim-middle>{p}",
    ),
    "Qwen2.5-Coder": (
        QWEN, QWEN_ADDED, "<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>", None,
    ),
    "CodeGemma": (
        ["<bos>", "<eos>"], [*QWEN_ADDED[:3], "<|file_separator|>"],
        "<|fim_prefix|>{p}<|fim_suffix|>{s}<|fim_middle|>", None,
    ),
    "DeepSeek-Coder": (
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>"],
        ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"],
        "<｜fim▁begin｜>{p}<｜fim▁hole｜>{s}<｜fim▁end｜>", None,
    ),
}  # fmt: skip
LLAMA = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"]
ENDS = {
    "StarCoder2": "<file_sep> <fim_pad> <fim_prefix> <|endoftext|> <repo_name>",
    "Qwen2.5-Coder": "<|file_sep|> <|fim_pad|> <|endoftext|> <|im_end|>",
    "CodeGemma": "<|file_separator|>",
    "DeepSeek-Coder": "<|EOT|> <｜end▁of▁sentence｜>",
}

every_family = pytest.mark.parametrize("name", PUBLISHED)
P, S = "def f(x):\n    return ", "\n\nprint(f(2))\n"


@cache
def tokenizer(name: str) -> Tokenizer:
    special, added, *_ = PUBLISHED[name]
    made = Tokenizer.from_str(text.train(text.EXAMPLES, 300)._tokenizer.to_str())
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    made.add_tokens([AddedToken(t, normalized=False) for t in added])
    made.encode_special_tokens = False
    return made


@cache
def codec(name: str) -> text.TextCodec:
    return text.TextCodec(Tokenizer.from_str(tokenizer(name).to_str()))


@cache
def llama() -> text.TextCodec:
    """Prepends a space to every text, as Llama's SentencePiece does, and knows the face."""
    published = chats.Published("", (), spaces=True)
    made = chats.tokenizer(published)
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA])
    start = [("<s>", made.token_to_id("<s>"))]
    made.post_processor = TemplateProcessing(single="<s> $A", pair="$A $B", special_tokens=start)
    return text.TextCodec(made)


def ids(name: str, prefix: str, suffix: str, order: str = "psm") -> list[int]:
    own = codec(name)
    return code.infill(own, code.of(own), prefix, suffix, order)


@every_family
def test_a_family_is_known_by_its_ids(name):
    assert code.of(codec(name)).name == name


@every_family
@pytest.mark.parametrize("order", ["psm", "spm"])
@pytest.mark.parametrize(("prefix", "suffix"), [(P, S), ("", S), (P, ""), ("  a", " b"), ("", "")])
def test_the_ids_are_those_of_the_published_text(name, order, prefix, suffix):
    published = PUBLISHED[name][2 if order == "psm" else 3]
    if published is None:
        with pytest.raises(RequestError, match="fim_order is 'spm'"):
            ids(name, prefix, suffix, order)
        return
    whole = published.format(p=prefix, s=suffix)
    expected = tokenizer(name).encode(whole, add_special_tokens=False).ids
    assert ids(name, prefix, suffix, order) == expected


def test_the_hole_of_deepseek_comes_between_and_its_end_last():
    added = codec("DeepSeek-Coder").added
    begin, hole, end = (added[f"<｜fim▁{part}｜>"] for part in ("begin", "hole", "end"))
    made = ids("DeepSeek-Coder", "a", "b")
    assert (made[0], made[-1], made.index(hole)) == (begin, end, 2)


@pytest.mark.parametrize(("prefix", "suffix"), [(P, S), ("", ""), ("x", " y"), (" x", "y")])
def test_codellama_has_a_space_before_the_prefix_and_none_before_the_suffix(prefix, suffix):
    """`infilling_prompt_tokens` and `encode_infilling` of its own code, id by id."""
    own = llama()
    pre, mid, suf = (own.added[f"▁<{part}>"] for part in ("PRE", "MID", "SUF"))
    face = own.encode("☺")
    tight = own.encode("☺" + suffix)[len(face) :]
    family = code.of(own)
    assert family.name == "CodeLlama"
    assert code.infill(own, family, prefix, suffix) == [
        pre, *own.encode(prefix), suf, *tight, mid,
    ]  # fmt: skip
    assert code.infill(own, family, prefix, suffix, "spm") == [
        pre, suf, *tight, mid, *own.encode(prefix),
    ]  # fmt: skip
    assert own.decode(tight, after=face) == suffix
    assert set(code.ends(own, family)) == {own.added[mark] for mark in LLAMA[3:]}


@every_family
@settings(max_examples=40)
@given(data=st.data())
def test_no_text_is_ever_read_as_a_mark(name, data):
    own = codec(name)
    marks = {*code.of(own).marks, *own.specials}
    odd = [mark[:cut] for mark in marks for cut in (1, 5, len(mark))] + ["a", " ", "\n"]
    side = st.lists(st.sampled_from(odd), max_size=5).map("".join)
    prefix, suffix = data.draw(side), data.draw(side)
    known = {own.added[mark] for mark in marks}
    assert [i for i in ids(name, prefix, suffix) if i in known] == ids(name, "", "")
    assert prefix + suffix == own.decode([i for i in ids(name, prefix, suffix) if i not in known])


@pytest.mark.parametrize("name", ENDS)
def test_what_begins_another_text_ends_the_middle(name):
    own = codec(name)
    expected = {own.added[t] for t in ENDS[name].split()}
    assert expected <= set(code.ends(own, code.of(own)))


def test_plain_text_that_looks_like_a_mark_makes_no_infilling_model():
    """<fim_prefix> among the ordinary tokens of a vocabulary is no mark."""
    with pytest.raises(RequestError, match="no ids that mark one"):
        code.of(text.train(["<fim_prefix> <fim_suffix> <fim_middle>"] * 9, 400))


# ---- of a model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> seriatim.Model:
    folder = tmp_path_factory.mktemp("models") / "code"
    own = codec("StarCoder2")
    checkpoints._llama(
        vocab_size=own.size, num_hidden_layers=1, bos_token_id=None, eos_token_id=0
    )(folder)  # fmt: skip
    own.save(folder)
    return seriatim.load(folder, threads=1)


HOW = dict(max_tokens=12, seed=5)


def test_a_gap_is_filled_after_the_ids_of_its_format(model):
    result = model.generate(prefix=P, suffix=S, **HOW)
    assert result.prompt_ids == [*model.codec.start, *ids("StarCoder2", P, S)]
    other = model.generate(prefix=P, suffix=S, fim_order="spm", **HOW)
    assert other.prompt_ids == [*model.codec.start, *ids("StarCoder2", P, S, "spm")]
    free = HOW | {"ignore_end": True}
    assert (
        model.generate(prefix=P, suffix=S, **free).ids
        == model.generate(result.prompt_ids, **free).ids
    )


def test_a_stream_of_a_gap_folds_into_its_result(model):
    stream = model.stream(prefix=P, suffix=S, **HOW)
    texts = [piece.text for piece in stream]
    whole = model.generate(prefix=P, suffix=S, **HOW)
    assert "".join(texts) == whole.text
    assert stream.result().ids == whole.ids


def test_a_file_separator_ends_the_middle_and_is_no_part_of_it(model):
    separator = model.codec.added["<file_sep>"]
    bias = {"logit_bias": {separator: 1000.0}}
    result = model.generate(prefix=P, suffix=S, **HOW, **bias)
    assert (result.ids, result.stop, result.finish_reason) == ([], separator, "stop")
    assert model.generate(P, **HOW, **bias).ids == [separator] * 12
    late = model.generate(prefix=P, suffix=S, min_tokens=3, **HOW, **bias)
    assert (len(late.ids), late.stop) == (3, separator)
    assert separator not in late.ids


def test_samples_and_one_side_alone(model):
    several = model.generate(prefix=P, n=3, **HOW)
    assert several.prompt_ids == [*model.codec.start, *ids("StarCoder2", P, "")]
    assert several.samples[0].ids == model.generate(prefix=P, **HOW).ids
    after = model.generate(suffix=S, **HOW)
    assert after.prompt_ids == [*model.codec.start, *ids("StarCoder2", "", S)]


def test_sides_may_lie_in_files(model, tmp_path):
    (tmp_path / "p").write_text(P)
    (tmp_path / "s").write_text(S)
    files = model.generate(prefix=tmp_path / "p", suffix=tmp_path / "s", **HOW)
    assert files.ids == model.generate(prefix=P, suffix=S, **HOW).ids


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (dict(prompt="a", prefix="b"), "a prompt is given"),
        (dict(prompt=[1], suffix="b"), "a prompt is given"),
        (dict(prefix=3), "prefix is a int"),
        (dict(prefix="a", suffix=["b"]), "suffix is a list"),
        (dict(prefix="a", fim_order="pms"), "fim_order is 'pms'"),
        (dict(prompt="a", fim_order="psm"), "without prefix and suffix"),
        (dict(prefix=Path("/nowhere")), "nowhere"),
        (dict(prefix="\ud800"), "surrogate"),
    ],
)
def test_what_cannot_be_filled_is_refused(model, asked, names):
    for call in (model.generate, model.stream):
        with pytest.raises(seriatim.SeriatimError, match=names):
            call(**asked)


@pytest.mark.parametrize("kind", ["bytes", "text"])
def test_a_model_without_the_ids_says_which_it_lacks(kind):
    with pytest.raises(RequestError, match="<fim_prefix>, <fim_suffix>, <fim_middle>"):
        small.shared(kind).generate(prefix="a", suffix="b")


def test_the_command_fills_a_gap(model, tmp_path, capsys):
    (tmp_path / "s").write_text(S)
    asked = ["--prefix", P, "--suffix-file", tmp_path / "s", "--fim-order", "spm"]
    options = ["--max-tokens", 12, "--seed", 5, "--threads", 1, "-m", model.checkpoint.path]
    with pytest.raises(SystemExit) as done:
        cli.main(["generate", *map(str, asked), *map(str, options)])
    assert done.value.code == 0
    whole = model.generate(prefix=P, suffix=S, fim_order="spm", **HOW)
    assert capsys.readouterr().out == whole.text + "\n"
    with pytest.raises(SystemExit) as done:
        cli.main(["generate", *map(str, asked), "--suffix", "a", *map(str, options)])
    assert done.value.code == 2
    assert "--suffix-file" in capsys.readouterr().err


def test_the_codec_code_is_one_that_can_infill(tmp_path):
    codec("StarCoder2").save(tmp_path)
    made = code.load(tmp_path, {"ends": [0]})
    assert made.infill(P, S) == ids("StarCoder2", P, S)
    text.specimens()[0].save(tmp_path)
    with pytest.raises(seriatim.FileError, match="no ids that mark one"):
        code.load(tmp_path, {})
