"""The codec law, over every codec there is: a new one is tested because it exists."""

import json
import re
import sys
import tomllib
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import seriatim
from seriatim import codecs, registry
from seriatim.cli import main
from seriatim.engine.constrain import allows
from seriatim.errors import FileError, RequestError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def specimens():
    for name in registry.names("seriatim.codecs"):
        for n, codec in enumerate(registry.get("seriatim.codecs", name).specimens()):
            yield pytest.param(codec, id=f"{name}-{n}")


def examples():
    for specimen in specimens():
        for n, raw in enumerate(specimen.values[0].examples()):
            yield pytest.param(specimen.values[0], raw, id=f"{specimen.id}-{n}")


every_codec = pytest.mark.parametrize("codec", list(specimens()))
every_example = pytest.mark.parametrize(("codec", "raw"), list(examples()))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
grapheme_rich = st.text("ae\u0301\u0327\u200d\ufe0f👩🚀🇩🇪日本 \n\0\u017f\u212a", max_size=30)


def streamed(codec, ids, **after):
    stream = codec.stream(**after)
    return [stream.feed(id) for id in ids] + [stream.finish()]


def shown(codec, raw):
    return codec.render(raw)["text/plain"]


def keeps_the_law(codec, raw):
    ids = codec.encode(raw)
    assert codec.decode(ids) == codec.canonical(raw)
    assert codec.canonical(codec.canonical(raw)) == codec.canonical(raw)
    assert all(type(id) is int and 0 <= id < codec.size for id in ids)
    assert not set(ids) & set(codec.specials.values()), "special-looking text is plain text"
    assert "".join(streamed(codec, ids)) == shown(codec, codec.decode(ids))
    assert codec.prompt(raw) == [*codec.start, *ids]
    assert codec.decode(codec.prompt(raw)) == codec.decode(ids), "special ids render as nothing"


@every_example
def test_decoding_gives_the_canonical_form_at_once_and_streamed(codec, raw):
    keeps_the_law(codec, raw)


@every_codec
@settings(max_examples=60)
@given(text=texts | grapheme_rich)
def test_any_text_keeps_the_law_where_text_is_accepted(codec, text):
    if not isinstance(codec.examples()[0], str | bytes):
        pytest.skip("its raw object is no text")
    keeps_the_law(codec, text)
    pieces = streamed(codec, codec.encode(text))
    assert (UNKNOWN in "".join(pieces)) == (UNKNOWN in text), "no half character is shown"
    assert pieces[-1] == "", "valid text leaves nothing over"


@every_codec
@settings(max_examples=60)
@given(data=st.data())
def test_any_ids_decode_the_same_streamed_cut_and_at_once(codec, data):
    ids = data.draw(st.lists(st.integers(0, codec.size - 1), max_size=30))
    cut = data.draw(st.integers(0, len(ids)))
    whole = shown(codec, codec.decode(ids))
    assert "".join(streamed(codec, ids)) == whole
    tail = codec.decode(ids[cut:], after=ids[:cut])
    assert "".join(streamed(codec, ids[cut:], after=ids[:cut])) == shown(codec, tail)
    assert codec.units(ids) == codec.units(ids[:cut]) + codec.units(ids[cut:], after=ids[:cut])


@every_codec
def test_special_ids_are_no_units_and_render_as_nothing(codec):
    special = [*codec.start, *codec.ends, *codec.specials.values()]
    assert codec.units(special) == 0
    assert streamed(codec, special) == [""] * (len(special) + 1)


@every_codec
def test_units_of_text_and_bytes_are_bytes(codec):
    if codec.unit != "byte":
        pytest.skip(f"its unit is the {codec.unit}")
    for raw in codec.examples():
        canonical = codec.canonical(raw)
        size = len(canonical.encode() if isinstance(canonical, str) else canonical)
        assert codec.units(codec.prompt(raw)) == size


@every_codec
def test_saved_and_loaded_it_is_the_same_codec(codec, tmp_path):
    codec.save(tmp_path)
    loaded = codecs.load(tmp_path)
    facts = ("name", "size", "unit", "start", "ends", "specials")
    assert [getattr(loaded, fact) for fact in facts] == [getattr(codec, fact) for fact in facts]
    assert [loaded.encode(raw) for raw in codec.examples()] == [
        codec.encode(raw) for raw in codec.examples()
    ]
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    for file in tmp_path.glob("*.json"):
        assert (again / file.name).read_bytes() == file.read_bytes()


@every_codec
def test_what_is_written_is_read_back(codec, tmp_path):
    suffix = getattr(codec, "suffixes", ("",))[0]
    for raw in codec.examples():
        codec.write(raw, tmp_path / f"file{suffix}")
        assert codec.read(tmp_path / f"file{suffix}") in (raw, codec.canonical(raw))


@every_codec
def test_encoding_the_same_text_again_differs_from_nothing(codec):
    for raw in codec.examples():
        assert not codec.differs(codec.encode(raw))
    assert codec.differs([*codec.ends, *codec.encode(codec.examples()[-1])])


@every_codec
def test_tokenizers_and_transformers_give_the_same_ids(codec, tmp_path):
    transformers = pytest.importorskip("transformers")
    codec.save(tmp_path)
    if not (tmp_path / "tokenizer.json").exists():
        pytest.skip("it has no tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ["Once upon a time", "  a\n\nb 日本 👩‍🚀", unicodedata.normalize("NFD", "é")]:
        assert other.encode(text) == codec.prompt(text)


@every_codec
def test_half_a_surrogate_pair_and_foreign_objects_are_refused(codec):
    if codec.unit != "byte":
        pytest.skip(f"its unit is the {codec.unit}")
    with pytest.raises(RequestError, match="character 2"):
        codec.encode("ab\ud83d")
    with pytest.raises(RequestError, match="int"):
        codec.encode(7)


@every_codec
def test_a_mask_never_excludes_what_the_codec_encodes(codec):
    if not isinstance(codec, codecs.Lawful):
        pytest.skip("it has no masks")
    for raw in codec.examples():
        ids = codec.encode(raw)
        for place, id in enumerate(ids):
            assert allows(codec.legal(ids[:place], after=codec.start), id)
            assert allows(codec.legal(ids[place // 2 : place], after=ids[: place // 2]), id)
        assert any(allows(codec.legal(ids, after=codec.start), end) for end in codec.ends)


@every_codec
def test_what_is_given_whole_is_what_agrees_with_it(codec):
    if not isinstance(codec, codecs.Fillable):
        pytest.skip("its objects are not given in part")
    for raw in codec.examples():
        ids, agrees = codec.encode(raw), codec.agreeing(raw, after=codec.start)
        for place, id in enumerate(ids):
            assert allows(agrees(ids[:place]), id)
        assert any(allows(agrees(ids), end) for end in codec.ends)


def test_a_folder_without_any_tokenizer_has_no_codec(tmp_path):
    assert codecs.load(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("", "is not valid JSON"),
        ("[]", "JSON list"),
        ("[" * 100_000, "is nested too deeply"),
        ("{}", "incomplete"),
        ('{"codec": "byte", "version": 2, "options": {}}', "version 2"),
        ('{"codec": "byte", "version": 1, "options": {"a": 1}}', "option 'a'"),
        ('{"codec": "byte", "version": 1, "options": {}, "more": 1}', "'more'"),
        (
            '{"codec": "byte", "codec": "text", "version": 1, "options": {}}',
            "'codec' is given twice",
        ),
        ('{"codec": "text", "version": 1, "options": {}}', "no files"),
        ('{"codec": "text", "version": 1, "options": {"start": 1}}', "'start'"),
    ],
)
def test_a_codec_json_that_cannot_be_honoured_is_refused_in_one_line(tmp_path, content, names):
    (tmp_path / "codec.json").write_text(content)
    with pytest.raises(FileError, match=names) as error:
        codecs.load(tmp_path)
    assert str(tmp_path) in str(error.value) or "option" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_codec_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "codec.json").write_text('{"codec": "texts", "version": 1, "options": {}}')
    with pytest.raises(RequestError, match="did you mean text"):
        codecs.load(tmp_path)


# ---- a codec of somebody else's ----------------------------------------------------------------


@pytest.fixture
def weather(tmp_path, monkeypatch):
    """The codecs of the documents, installed as a package registers them."""
    page = (Path(__file__).parents[1] / "docs" / "codecs.md").read_text(encoding="utf-8")
    sources = re.findall(r"```python file=(\w+.py)\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    for name, source in sources:
        (tmp_path / name).write_text(source)
    points = tmp_path / "weather-1.0.dist-info"
    points.mkdir()
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: weather\nVersion: 1.0\n")
    ((group, names),) = tomllib.loads(entry)["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in names.items())]
    (points / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield registry.get("seriatim.codecs", "weather")
    for name, _ in sources:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("name", ["weather", "season", "season:jump=30"])
def test_the_codecs_of_the_documents_keep_the_laws(weather, capsys, name):
    with pytest.raises(SystemExit) as ended:
        main(["codecs", name])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 8
    assert all(line.endswith("\tholds") for line in lines)


def test_masks_records_and_options_of_the_documents_work(weather, tmp_path):
    good = [" ".join(str(10 + (n + day) % 5) for day in range(30)) for n in range(20)]
    (tmp_path / "years.txt").write_text("\n".join([*good[:10], "0 9", "x", *good[10:]]) + "\n")
    out = seriatim.train(
        tmp_path / "years.txt", codec="season:jump=4", size="0.01M", steps=2, context=32, batch=2,
        out=tmp_path / "run", cache=tmp_path / "cache", report=lambda event: None,
    )  # fmt: skip
    refused = (out / "checkpoints" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in refused] == ["line 11", "line 12"]
    model = seriatim.load(out, threads=1)
    assert model.codec.jump == 4
    days = model.generate("12", temperature=9.0, seed=1, ignore_end=True).output
    assert len(days) == 30
    assert all(abs(a - b) <= 4 for a, b in pairwise([12, *days]))


def test_a_model_is_trained_with_it_and_loaded(weather, tmp_path):
    for n in range(30):
        days = " ".join(str(10 + (n + day) % 7) for day in range(40))
        (tmp_path / f"{n}.txt").write_text(days)
    out = seriatim.train(
        str(tmp_path / "*.txt"), codec="weather", size="0.01M", steps=3, context=32, batch=2,
        out=tmp_path / "run", cache=tmp_path / "cache", report=lambda event: None,
    )  # fmt: skip
    model = seriatim.load(out, threads=1)
    answer = model.generate("12 13 14", max_tokens=5, seed=1, ignore_end=True)
    assert len(answer.output) == 5
    assert answer.text == "".join(f"{day} " for day in answer.output)
    assert model.score(tmp_path / "3.txt").unit == "day"


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        ({"decode": lambda self, ids, after=(): [0]}, "encode(decode(ids)) is ids"),
        ({"canonical": lambda self, raw: list(raw)[:1]}, "decode(encode(x))"),
        ({"differs": lambda self, ids: True}, "encode(decode(ids)) is ids"),
        ({"encode": lambda self, raw: [120]}, "none is special"),
        ({"start": (119,)}, "none is special"),
        ({"prompt": lambda self, raw: self.encode(raw)}, "a prompt"),
        ({"shown": lambda self, id: f"{id} "}, "written"),
        ({"name": "weather"}, None),
        ({"render": lambda self, raw: {"text/plain": "x"}}, "streamed"),
        ({"units": lambda self, ids, after=(): len(ids)}, "units add up"),
        ({"options": {"much": 1}}, "saved and loaded"),
        ({"write": lambda self, raw, path: path.write_text("0")}, "written"),
        ({"legal": lambda self, ids, after=(): codecs.words(np.arange(121) == 1)}, "the mask"),
        ({"agreeing": lambda self, raw, after=(): lambda ids: np.zeros(4, np.uint32)}, "given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_law_that_is_broken_is_named(weather, broken, law):
    marred = type("Marred", (weather.Weather,), broken)()
    found = [name for name, example in codecs.laws(marred) if example]
    assert any(law in name for name in found) if law else not found


@every_codec
def test_the_check_finds_nothing_in_a_codec_that_ships(codec):
    assert {law: example for law, example in codecs.laws(codec) if example} == {}
