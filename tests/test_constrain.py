"""What is constrained comes out as constrained, whoever else runs; what cannot be is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
import small
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_law_company import Oracle, Served

import seriatim
from seriatim import registry
from seriatim.codecs import _gguf, byte, text
from seriatim.constraints import grammars, schemas
from seriatim.constraints.constraining import Constraints
from seriatim.engine import constrain
from seriatim.engine.constrain import FOOTER, Grammar, GrammarGuide, Vocabulary, allows
from seriatim.engine.engine import Engine
from seriatim.errors import RequestError
from seriatim.files import gguf

MODELS = ["bytes", "text", "tales"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@cache
def model(name: str) -> seriatim.Model:
    return seriatim.load(name, threads=1) if name == "tales" else small.shared(name)


def prompt(name: str) -> Any:
    return "Once upon a time" if name != "text" else model(name).codec.encode("Once")


def texts(name: str, seeds: int = 4, **options: Any) -> list[str]:
    """What finishes; random models may fill what is asked for."""
    options = dict(max_tokens=150) | options
    results = [model(name).generate(prompt(name), seed=s, **options) for s in range(seeds)]
    ends = {*model(name).ends, *model(name).codec.specials.values()}
    assert not any(ends & set(r.ids) for r in results), "a special id is part of a text"
    assert {r.finish_reason for r in results} <= {"stop", "length"}
    return [r.text for r in results if r.finish_reason == "stop"]


# ---- what comes out ----------------------------------------------------------------------------

REGEXES = [
    r"\d{3}-\d{4}",
    r"(cat|dog|bird)s?",
    r"[A-Z][a-z]{2,8}( [a-z]{1,5}){0,3}\.",
    r'a/b"\\c\n',
    r"日本|né{2}|😀\x00",
    r"(x+x+){1,3}y",
    r"(?i)yes|no",
    r"^ab?$",
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("regex", REGEXES)
def test_a_text_matches_its_regex(name, regex):
    found = texts(name, regex=regex)
    assert found
    assert all(re.fullmatch(regex, text) for text in found)


@pytest.mark.parametrize("name", MODELS)
def test_every_choice_is_made_and_no_other(name):
    choices = ["yes", "no", " no", "né", 'a\u2028\x7f\0"\\/b', "<s></s><|end|>", "日本"]
    found = texts(name, seeds=60, choices=choices, temperature=3.0)
    assert len(found) == 60
    assert set(found) <= set(choices)
    assert len(set(found)) >= 4


def test_a_choice_that_begins_another_can_be_made():
    found = set(texts("tales", seeds=80, choices=["cat", "cats", "cattle"], temperature=5.0))
    assert {"cat", "cats"} <= found <= {"cat", "cats", "cattle"}


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_of_its_grammar(name):
    grammar = 'start: item ("," item){0,2}\nitem: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,2}/\n'
    found = texts(name, grammar=grammar, seeds=8)
    assert found
    for said in found:
        inner = said
        while (less := re.sub(r"\(\d\d?(,\d\d?){0,2}\)", "1", inner)) != inner:
            inner = less
        assert re.fullmatch(r"\d\d?(,\d\d?){0,2}", inner), said


CASES: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "number", "minimum": -2, "maximum": 1e3}, "minItems": 2,
     "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "null"}], "items": False},
    {"enum": ["a", 3, None, True, {"b": [1, 2.5]}, "é\n\"\\"]},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "string", "pattern": "^a+b?$", "maxLength": 4},
    {"type": "string", "pattern": "[xy]z", "maxLength": 6},
    {"type": "integer", "minimum": -5, "exclusiveMaximum": 100, "multipleOf": 5},
    {"type": "number", "minimum": 0.25, "maximum": 0.75, "multipleOf": 0.01},
    {"anyOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"const": "x"}]},
    {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12}]},
    {"type": "object", "patternProperties": {"^k": {"type": "null"}},
     "additionalProperties": False, "maxProperties": 2},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "required": ["z"],
     "maxProperties": 2},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
        "left": {"$ref": "#/$defs/tree"}, "v": {"type": "null"}}, "required": ["v"],
        "additionalProperties": False}}},
    {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://a/b", "title": "T",
     "definitions": {"s": {"const": "s"}}, "type": "array", "items": {"$ref": "#/definitions/s"},
     "minItems": 1, "maxItems": 3},
    *({"type": "string", "format": f} for f in ("date", "time", "ipv4", "uuid", "duration")),
]  # fmt: skip


@pytest.mark.parametrize("name", ["bytes", "tales"])
@pytest.mark.parametrize("schema", CASES, ids=lambda schema: json.dumps(schema)[:60])
def test_a_document_fulfils_its_schema(name, schema):
    found = texts(name, json_schema=schema, max_tokens=200)
    assert found, "no document was finished"
    for said in found:
        assert fulfils(json.loads(said), schema, schema), said


def test_a_schema_may_be_text():
    said = texts("tales", seeds=1, json_schema=json.dumps(PERSON), top_k=5)
    assert fulfils(json.loads(said[0]), PERSON, PERSON)


def fulfils(value: Any, schema: Any, root: Any) -> bool:
    """JSON Schema as its specification says it, for the keywords in `CASES`."""
    if isinstance(schema, bool):
        return schema
    return all(_keyword(key, value, schema, root) for key in schema)


def _keyword(key: str, value: Any, schema: dict[str, Any], root: Any) -> bool:
    want, number = schema[key], isinstance(value, int | float) and not isinstance(value, bool)
    exact = Fraction(repr(value)) if number else Fraction(0)
    parts = value if isinstance(value, list) else ()
    fields = value if isinstance(value, dict) else {}
    listed, named = len(schema.get("prefixItems", ())), schema.get("properties", {})
    known = [re.compile(p) for p in schema.get("patternProperties", {})]
    free = [k for k in fields if k not in named and not any(p.search(k) for p in known)]
    match key:
        case "$ref":
            at = root
            for name in want[1:].replace("%25", "%").split("/")[1:]:
                at = at[name.replace("~1", "/").replace("~0", "~")]
            return fulfils(value, at, root)
        case "type":
            return any(_is(value, t) for t in ([want] if isinstance(want, str) else want))
        case "const":
            return json.dumps(value) == json.dumps(want)
        case "enum":
            return any(json.dumps(value) == json.dumps(w) for w in want)
        case "allOf":
            return all(fulfils(value, s, root) for s in want)
        case "anyOf":
            return any(fulfils(value, s, root) for s in want)
        case "oneOf":
            return sum(fulfils(value, s, root) for s in want) == 1
        case "minimum":
            return not number or exact >= Fraction(repr(want))
        case "maximum":
            return not number or exact <= Fraction(repr(want))
        case "exclusiveMaximum":
            return not number or exact < Fraction(repr(want))
        case "multipleOf":
            return not number or (exact / Fraction(repr(want))).denominator == 1
        case "minLength" | "maxLength":
            low = key == "minLength"
            return not isinstance(value, str) or (len(value) >= want if low else len(value) <= want)
        case "pattern":
            return not isinstance(value, str) or re.search(want, value) is not None
        case "minItems":
            return not isinstance(value, list) or len(value) >= want
        case "maxItems":
            return len(parts) <= want
        case "prefixItems":
            return all(fulfils(v, s, root) for v, s in zip(parts, want, strict=False))
        case "items":
            return all(fulfils(v, want, root) for v in parts[listed:])
        case "required":
            return not isinstance(value, dict) or all(name in value for name in want)
        case "properties":
            return all(fulfils(fields[k], s, root) for k, s in want.items() if k in fields)
        case "patternProperties":
            pairs = [(k, s) for p, s in want.items() for k in fields if re.search(p, k)]
            return all(fulfils(fields[k], s, root) for k, s in pairs)
        case "additionalProperties":
            return all(fulfils(fields[k], want, root) for k in free)
        case "maxProperties":
            return len(fields) <= want
        case "format":
            return re.fullmatch(FORMATS[want], value) is not None
    return key in {"$defs", "definitions", "$schema", "$id", "title"}


FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?([zZ]|[+-]\d\d:\d\d)",
    "ipv4": r"\d{1,3}(\.\d{1,3}){3}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "duration": r"P.+",
}


def _is(value: Any, type_: str) -> bool:
    kinds = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
    if type_ in kinds:
        return isinstance(value, kinds[type_])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (type_ == "number" or value == int(value))


# ---- guides ------------------------------------------------------------------------------------

LLAMA = text.specimens()[1]  # a text loses its first space
PIECES = [b"", b"a", b"b", b"ab", b"ba", b" ", b"aab"]


def guide(regex: str, vocabulary: Vocabulary | None = None, **facts: Any) -> GrammarGuide:
    vocabulary = vocabulary or Vocabulary(PIECES, len(PIECES))
    return GrammarGuide(vocabulary, Grammar("regex", f"start: /{regex}/"), **facts)


def ids(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


@given(st.lists(st.lists(st.integers(0, len(PIECES)), max_size=7), min_size=1, max_size=12))
@settings(max_examples=25)
def test_a_guide_is_a_pure_function_of_the_ids(prefixes):
    """Asked in any order, after refusals too, it says what a new one says."""
    same = guide("(ab|ba ?){1,4}", ends=(0,))
    for prefix in prefixes:
        assert told(same, prefix) == told(guide("(ab|ba ?){1,4}", ends=(0,)), prefix)


def told(some: GrammarGuide, prefix: Sequence[int]) -> Any:
    try:
        return sorted(ids(some.mask(prefix))), some.complete(prefix)
    except RequestError as error:
        return str(error)


def test_a_mask_is_what_spelling_every_id_gives():
    """An id may follow where its bytes begin what some whole text goes on with."""
    regex, whole = "(ab|ba ?){1,2}", {"ab", "ba", "ba "}
    whole |= {a + b for a in whole for b in whole}
    assert all(re.fullmatch(regex, text) for text in whole)
    some, reached = guide(regex, ends=(0,)), [()]
    while reached:
        prefix = reached.pop()
        text = b"".join(PIECES[id] for id in prefix).decode()
        follow = {i for i, p in enumerate(PIECES) if p and begins(text + p.decode(), whole)}
        over = text in whole
        assert some.complete(prefix) == (over and not follow)
        assert ids(some.mask(prefix)) == follow | ({0} if over else set())
        reached += [(*prefix, id) for id in follow]


def begins(text: str, whole: set[str]) -> bool:
    return any(w.startswith(text) for w in whole)


def test_end_ids_come_exactly_where_a_text_is_whole_and_padding_never():
    some = guide("ab?", Vocabulary(PIECES, 64), ends=(0, 63))
    assert ids(some.mask([])) == {1, 3}
    assert ids(some.mask([1])) == {0, 2, 63}
    assert ids(guide("ab?", Vocabulary(PIECES, 64)).mask([1])) == {2}
    assert len(some.mask([])) == 2


@given(st.sampled_from(["ab", " ab", " ?a b", "[ab ]{1,3}", "é"]), st.randoms())
@settings(max_examples=20)
def test_the_space_that_a_whole_text_loses_is_no_part_of_it(regex, random):
    vocabulary = Vocabulary(LLAMA.pieces(), LLAMA.size, LLAMA.lead(()))
    some, said = guide(regex, vocabulary, ends=(2,), leading=True), []
    while not some.complete(said):
        id = random.choice(sorted(ids(some.mask(said))))
        if id == 2:
            break
        said.append(id)
    assert re.fullmatch(regex, LLAMA.decode(said))
    after = LLAMA.encode("a")
    assert LLAMA.lead(after) == b""


def test_a_first_id_may_carry_the_space_that_is_lost():
    vocabulary = Vocabulary(LLAMA.pieces(), LLAMA.size, LLAMA.lead(()))
    natural = LLAMA.encode("ab")
    assert LLAMA.pieces()[natural[0]].startswith(b" ")
    some = guide("ab", vocabulary, leading=True)
    for place, id in enumerate(natural):
        assert allows(some.mask(natural[:place]), id)
    assert some.complete(natural)
    assert not allows(guide("ab", vocabulary).mask([]), natural[0])


def test_what_llguidance_would_force_is_left_open():
    """Else masks would depend on how a tokenizer cuts the text, and call it amid a step."""
    assert "no_forcing" in FOOTER
    assert ids(guide("aab").mask([])) == {1, 6}


HARD = "([ab]*a[ab]{12})*"
LONG = Random(1).choices([1, 2], k=3000)


def test_an_automaton_that_grows_too_large_fails_its_request_alone(monkeypatch):
    monkeypatch.setattr(constrain, "MOST_STATES", 400)
    vocabulary = Vocabulary(PIECES, len(PIECES))
    some, lengths = guide(HARD, vocabulary), range(0, 600, 50)
    outcomes = [told(some, LONG[:length]) for length in lengths]
    assert outcomes[0] == ([1, 2, 3, 4, 6], False)
    assert "too many states" in outcomes[-1]
    assert "after 550 ids; make the constraint simpler" in outcomes[-1]
    assert outcomes[::-1] == [told(some, LONG[:length]) for length in reversed(lengths)]
    assert ids(guide(HARD, vocabulary).mask([])) == {1, 2, 3, 4, 6}


def test_what_others_have_asked_never_brings_the_limit_nearer(monkeypatch):
    """Guides of one grammar share an automaton; a full one is left to those that filled it."""
    monkeypatch.setattr(constrain, "MOST_STATES", 400)
    limits, forget = [], Vocabulary.forget
    monkeypatch.setattr(Vocabulary, "forget", lambda *a: limits.append(a) or forget(*a))
    vocabulary = Vocabulary(PIECES, len(PIECES))
    shared = [guide(HARD, vocabulary) for _ in range(20)]
    for place, some in enumerate(shared):
        path = LONG[60 * place :][:60]
        alone = guide(HARD)
        expected = [told(alone, path[:length]) for length in range(60)]
        assert [told(some, path[:length]) for length in range(60)] == expected
    assert limits, "no limit was met, and nothing was tested"


# ---- company -----------------------------------------------------------------------------------

ASKED: list[dict[str, Any]] = [
    dict(regex="[a-c]{1,30}"),
    dict(json_schema=PERSON),
    dict(choices=["yes, of course", "yes, it is", "no, never"]),
    dict(grammar='start: ("ha" | "ho " | "hey")+', repetition_penalty=1.3),
    dict(),
]
KIND = "text"


@cache
def apart() -> seriatim.Model:
    """Its memory is that of the caches it is given here."""
    return small.load(KIND)


@cache
def alone(place: int, sample: int) -> tuple[list[int], Any]:
    engine = Engine(Served(apart()))
    return run(engine, [asked(engine, place, sample)])[0]


def asked(engine: Engine, place: int, sample: int, coming: Sequence[int] = (), how: str = ""):
    options = dict(ASKED[place])
    head = np.random.default_rng(place).integers(3, model(KIND).vocab_size, 60).tolist()
    guides = model(KIND).constraints.guides(head, options)
    own = {k: v for k, v in options.items() if k == "repetition_penalty"}
    speculator = Oracle([*coming], how, model(KIND).vocab_size) if how else None
    return engine.add(
        head, guides=guides, sample=sample, seed=5, max_tokens=30, speculator=speculator, **own
    )


def run(engine: Engine, requests: list[Any]) -> list[tuple[list[int], Any]]:
    while not all(r.done for r in requests):
        engine.step()
        engine.check()
    assert not any(r.error for r in requests)
    return [(r.ids[r.prompt :], r.stop) for r in requests]


@pytest.mark.parametrize("how", ["", "right", "wrong", "mixed"])
@pytest.mark.parametrize("chunk, blocks", [(None, 100), (7, 100), (None, 4), (13, 3)])
def test_constrained_ids_are_the_same_in_any_company(how, chunk, blocks):
    """With drafts, n samples, prompts in chunks, and a cache too small for all."""
    engine = Engine(Served(apart(), blocks), chunk=chunk)
    pairs = [(place, sample) for place in range(len(ASKED)) for sample in (0, 1)]
    requests = [asked(engine, *pair, alone(*pair)[0], how) for pair in pairs]
    assert run(engine, requests) == [alone(*pair) for pair in pairs]
    accepted = sum(r.usage.accepted for r in requests)
    assert (accepted > 0) == (how in ("right", "mixed"))


def test_samples_have_guides_of_their_own():
    options = dict(regex="[a-z]{1,9}", seed=3, max_tokens=12)
    together = model("tales").generate("Once", n=5, **options).samples
    assert together[0].ids == model("tales").generate("Once", **options).ids
    assert len({tuple(s.ids) for s in together}) > 1
    assert all(re.fullmatch("[a-z]{1,9}", s.text) for s in together)
    lists = model("tales").generate(["Once", "The"], **options)
    assert lists[0].ids == together[0].ids


@pytest.mark.parametrize("groups", [dict(), dict(groups=2, diversity=0.5)])
def test_every_beam_keeps_to_the_constraint(groups):
    regex = "[a-z]{2,5}( [a-z]{1,3})?!"
    choice = model("tales").beam("Once", beams=4, regex=regex, max_tokens=12, **groups)
    assert len(choice.candidates) >= 4
    assert all(re.fullmatch(regex, c.text) for c in choice.candidates)


def test_the_likeliest_choice_is_what_a_search_finds():
    choices = [" a time", " upon", " qqq"]
    best = model("tales").beam("Once", beams=8, choices=choices, length_penalty=0).text
    scores = {c: sum(model("tales").score(c, given="Once").logprobs) for c in choices}
    assert best == max(scores, key=scores.__getitem__) == " upon"


@pytest.mark.parametrize("how", ["ngram", "suffix"])
def test_speculation_changes_nothing(how):
    for options in (
        dict(json_schema=PERSON),
        dict(regex="(abc ?){2,12}"),
        dict(choices=["a", "b"]),
    ):
        asked = dict(seed=3, max_tokens=80) | options
        plain = model("tales").generate("abc abc abc abc", **asked)
        guessed = model("tales").generate("abc abc abc abc", speculate=how, **asked)
        assert (guessed.ids, guessed.stop) == (plain.ids, plain.stop)


def test_a_stream_gives_the_same():
    options = dict(json_schema=PERSON, seed=4, max_tokens=120)
    whole = model("tales").generate("x", **options)
    pieces = list(model("tales").stream("x", **options))
    assert [id for p in pieces for id in p.ids] == whole.ids
    assert "".join(p.text for p in pieces) == whole.text


def test_logprobs_are_the_models_own():
    result = model("tales").generate("Once", choices=["qqq"], logprobs=True)
    scored = model("tales").score(result.ids, given="Once")
    assert result.logprobs == scored.logprobs


# ---- with other options ------------------------------------------------------------------------


def test_a_text_cut_by_max_tokens_says_so():
    result = model("bytes").generate("x", regex="[a-z]{30}", max_tokens=5)
    assert (result.finish_reason, result.stop, len(result.text)) == ("length", "max_tokens", 5)


def test_what_is_complete_ends_by_itself():
    result = model("bytes").generate("x", choices=["abc"])
    assert (result.text, result.finish_reason, result.stop) == ("abc", "stop", "complete")


def test_an_end_id_ends_where_the_text_may():
    results = [model("bytes").generate("x", regex="[ab]+", seed=s) for s in range(5)]
    assert {r.stop for r in results} <= {*model("bytes").ends, "context"}
    assert byte.END in {r.stop for r in results}


def test_ignored_ends_let_a_text_go_on_as_long_as_it_can():
    longest = model("bytes").generate("x", regex="[ab]{1,9}", ignore_end=True)
    assert (len(longest.text), longest.stop) == (9, "complete")


def test_min_tokens_hold_off_the_end_and_contradict_a_short_language():
    for seed in range(4):
        result = model("bytes").generate("x", regex="[ab]+", min_tokens=9, max_tokens=20, seed=seed)
        assert len(result.ids) >= 9
    with pytest.raises(RequestError, match="choices is complete after 3 ids and min_tokens is 9"):
        model("bytes").generate("x", choices=["abc"], min_tokens=9)


def test_a_stop_string_ends_a_text_before_it_is_whole():
    result = model("bytes").generate("x", regex="ab{9}c", stop="bbb")
    assert (result.text, result.stop) == ("a", "bbb")


def test_forced_ids_keep_to_the_constraint():
    result = model("bytes").generate("x", regex="[a-z]{4}", forced_ids=[*b"ab"])
    assert result.text[:2] == "ab"
    with pytest.raises(RequestError, match=r"forced_ids\[1\] is 65, which the constraint"):
        model("bytes").generate("x", regex="[a-z]{4}", forced_ids=[*b"aA"])
    with pytest.raises(RequestError, match=r"forced_ids\[2\]"):
        model("bytes").generate("x", choices=["ab"], forced_ids=[*b"abc"])


def test_ids_that_other_options_leave_are_too_few():
    with pytest.raises(RequestError, match="leave no id to choose"):
        model("bytes").generate("x", choices=["ab"], banned_ids=[98])


def test_an_impossible_request_leaves_the_others_as_they_are():
    engine = Engine(Served(apart()))
    bad = engine.add([5, 6], guides=[guide("b", Vocabulary(PIECES[:2], model(KIND).vocab_size))])
    good = asked(engine, 0, 0)
    while not (bad.done and good.done):
        engine.step()
    assert "no id may follow the 0 generated" in str(bad.error)
    assert (good.ids[good.prompt :], good.stop) == alone(0, 0)


# ---- what is refused ---------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(regex="a", choices=["b"]), "regex and choices are both given"),
    (dict(regex=""), "regex is ''"),
    (dict(regex=3), "regex is 3; expected a string"),
    (dict(regex="[.*"), "regex: regex parse error: .* unclosed character class"),
    (dict(regex="(?=a)b"), "look-ahead and look-behind, is not supported"),
    (dict(regex="(a)\\1"), "backreferences are not supported"),
    (dict(regex="a?" * 20_000), "regex has 40000 characters; expected at most 4096"),
    (dict(regex="a\\"), "regex ends within an escape"),
    (dict(regex="(?x) a # b"), "flag x"),
    (dict(regex="[^\\s\\S]"), "regex allows no text"),
    (dict(regex="a[^\\s\\S]"), "regex allows no text"),
    (dict(regex="a{0}"), "regex allows no text but the empty one"),
    (dict(regex="\ud800"), "half a surrogate pair"),
    (dict(choices=[]), "choices is \\[\\]"),
    (dict(choices="yes"), "choices is 'yes'"),
    (dict(choices=["a", ""]), "strings that are not empty"),
    (dict(choices=["a", 3]), "strings that are not empty"),
    (dict(choices=[str(n) for n in range(20_000)]), "choices has 20000 strings"),
    (dict(grammar=""), "grammar is ''"),
    (dict(grammar="start: a"), 'grammar: at 1.8.: unknown name: "a"'),
    (dict(grammar="start: start"), "fulfils the rule 'start'"),
    (dict(grammar="start:"), "grammar allows no text"),
    (dict(grammar='a: "x"'), "no start rule"),
    (dict(grammar=f"start: /{'a?' * 3000}/"), "over 4096 characters of patterns"),
    (dict(grammar="start:" + ' "a"' * 9000), "grammar has 36006 characters"),
    (dict(grammar='start: "x" start'), "no text that ends fulfils the rule 'start'"),
    (dict(grammar='start: a | "y"\na: "x" (b "z")\nb: a+'), "fulfils the rule 'a'"),
    (dict(grammar='start: "a"\nb: <[7]>'), r"grammar, line 2: '<\[7\]>' cannot be honoured"),
    (dict(grammar="start: <|end|>"), "cannot be honoured"),
    (dict(grammar='start: %json {"foo": 1}'), "'%json' cannot be honoured"),
    (dict(grammar='%llguidance {}\nstart: "a"'), "'%llguidance' cannot be honoured"),
    (dict(grammar='start: x\nx[max_tokens=3]: /a+/'), "'max_tokens=' cannot be honoured"),
    (dict(grammar='start: x\nx[stop="b"]: /a+/'), "'stop=' cannot be honoured"),
]  # fmt: skip


@pytest.mark.parametrize("options, said", REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_honoured_is_refused(options, said):
    with pytest.raises(RequestError, match=said) as caught:
        model("bytes").generate("x", **options)
    assert len(str(caught.value)) < 600
    assert not model("bytes").engine.busy


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def circular() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    return schema


SCHEMAS: list[tuple[Any, str]] = [
    (3, "json_schema is 3; expected an object"),
    ("[]", "expected an object"),
    ("true", "expected an object"),
    ("{", "json_schema is no JSON: .*line 1 column 2"),
    ('{"type": "null", "type": "string"}', "the key 'type' twice"),
    ('{"const": NaN}', "holds NaN"),
    ("[" * 100_000, "nested too deeply"),
    (nested(5000), "nested over 48 deep"),
    (circular(), "nested over 48 deep"),
    ({"properties": {"a": {"foo": 1}}}, "at /properties/a: unknown keyword 'foo'"),
    ({"items": {"nullable": True}}, "at /items: unknown keyword 'nullable'"),
    ({"anyOf": [{}, {"tpye": "null"}]}, "at /anyOf/1: unknown keyword 'tpye'; did you mean type"),
    ({"$defs": {"a/b": {"x": 1}}}, "at /\\$defs/a~1b: unknown keyword 'x'"),
    ({"properties": {"a": {"uniqueItems": True}}}, "at /properties/a: keyword 'uniqueItems' can"),
    ({"not": {}}, "keyword 'not' cannot be enforced"),
    ({"items": {"$id": "x"}}, "at /items: keyword '\\$id' cannot be enforced"),
    ({"x-guidance": {"lenient": True}}, "unknown keyword 'x-guidance'"),
    ({"type": "hiccup"}, "type is 'hiccup'; expected one of null"),
    ({"type": 123}, "type is 123"),
    ({"type": []}, "type is \\[\\]"),
    ({"type": "string", "format": "zzz"}, "format is 'zzz'; expected one of date"),
    ({"format": "unknown"}, "format is 'unknown'"),
    ({"pattern": 3}, "pattern is 3"),
    ({"items": {"pattern": "(?=a)"}}, "at /items: regex parse error.* look-ahead"),
    ({"properties": {"a/b": {"pattern": "a^b"}}}, "at /properties/a~1b: lookarounds"),
    ({"$ref": "#"}, "refers to itself for the same value"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [
        {"$ref": "#/$defs/a"}]}}}, "at /\\$defs/a: the schema refers to itself"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
     "the recursion has no end"),
    ({"type": ["array", "object"], "items": {"$ref": "#"}, "minItems": 1, "required": ["q"],
      "additionalProperties": {"$ref": "#"}}, "the recursion has no end"),
    ({"$ref": "#/nowhere"}, "\\$ref '#/nowhere' leads to no schema"),
    ({"$ref": "http://example.com/s"}, "nothing is fetched"),
    ({"$ref": "#anchor"}, "a path within this schema"),
    ({"$schema": "zzz"}, "\\$schema is 'zzz'"),
    ({"properties": {f"p{n}": {"type": "integer"} for n in range(100_000)}},
     "at /properties; expected at most 30000"),
    ({"enum": list(range(1_000_000))}, "at /enum; expected at most 30000"),
    ({"required": [f"k{n}" for n in range(5000)]}, "5000 required names; expected at most 2000"),
    ({"patternProperties": {f"^{n}k": {} for n in range(99)}}, "99 patternProperties; expected"),
    ({"items": {"pattern": "a?" * 9000}}, "18000 characters of patterns; expected at most 4096"),
    ({"prefixItems": [{}] * 5000}, "there are over 2000 schemas"),
    ({"enum": []}, "enum is \\[\\]"),
    ({"anyOf": []}, "anyOf is \\[\\]"),
    ({"minItems": 10**9}, "minItems is 1000000000; expected a whole number, 0 to 65536"),
    ({"minLength": True}, "minLength is True"),
    ({"maxItems": -1}, "maxItems is -1"),
    ({"minimum": "a"}, "minimum is 'a'"),
    ({"const": 2**60}, "const is 1152921504606846976; expected a number, within 2.53"),
    ({"minimum": float("inf")}, "at /minimum: the value is inf"),
    ({"multipleOf": 0}, "multipleOf is 0"),
    ({"items": [{}]}, "items is a list"),
    ({"properties": []}, "properties is \\[\\]"),
    ({"required": ["a", "a"]}, "names something twice"),
    ({"required": "a"}, "required is 'a'"),
    ({3: 4}, "a key is 3"),
    ({"properties": {"\ud800": {}}}, "at /properties: a text has half a surrogate pair"),
    ('{"const": "\\ud800"}', "at /const: a text has half a surrogate pair"),
    ({"default": {1, 2}}, "at /default: the value is {1, 2}"),
    ({"properties": {"a": 3}}, "at /properties/a: a schema is 3"),
    ({"type": "object", "minProperties": 2}, "minProperties is 2; expected at most 1"),
    ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum .5. is greater than maximum"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "Unsatisfiable"),
    ({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "at /items: oneOf, and one"),
    ({"patternProperties": {"a": {}, "b": {}}}, "not disjoint"),
    ({"exclusiveMinimum": True}, "exclusiveMinimum is True"),
]  # fmt: skip


@pytest.mark.parametrize("schema, said", SCHEMAS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_path(schema, said):
    with pytest.raises(RequestError, match=said) as caught:
        model("bytes").generate("x", json_schema=schema)
    assert "json_schema" in str(caught.value)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)


def test_a_recursion_with_a_way_out_is_none_without():
    for schema in (
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "required": ["a"], "properties": {
            "a": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}},
        {"type": ["object", "string"], "required": ["a"], "properties": {"a": {"$ref": "#"}}},
    ):  # fmt: skip
        assert schemas.check(schema).nodes


@pytest.mark.parametrize("grammar", [
    'start: "x" start?', 'start: "x" start*', 'start: "x" [start]', 'start: "x" start{0,3}',
    'start: ("x" | start "y")', 'start: "start: " start | "z" // start',
    'start: e\ne: e "+" t | t\nt: "(" e ")" | /[0-9]/', '?start: x\n!x: "a" -> b\n# q: q\n',
    'start: x-y\nx-y: "a".."f" x-y | "q"', 'start: a\n%ignore / /\n%import common.INT\na: INT',
])  # fmt: skip
def test_a_grammar_with_an_end_is_none_without(grammar):
    assert grammars.endless(grammar) is None
    assert model("bytes").constraints.guides([], dict(grammar=grammar))


def test_a_long_chain_of_references_is_read_in_no_time():
    names = range(1900)
    chain = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in names} | {"d1900": {"type": "null"}}
    assert len(schemas.check({"$ref": "#/$defs/d0", "$defs": chain}).nodes) == 1902


def test_a_catastrophic_pattern_is_matched_like_any_other():
    said = texts("bytes", json_schema={"type": "string", "pattern": "^(a+)+b$", "maxLength": 9})
    assert said
    assert all(re.fullmatch("a+b", json.loads(text)) for text in said)


def test_ids_without_a_codec_cannot_be_constrained(tmp_path):
    plain = seriatim.load(tiny.write(tmp_path / "m", codec=False), threads=1)
    with pytest.raises(RequestError, match="the model has no codec; expected a codec of text"):
        plain.generate([1, 2], regex="a")


def test_few_of_ten_thousand_schemas_are_kept():
    constraints = Constraints(byte.ByteCodec(), 257, (256,))
    for n in range(50):
        (some,) = constraints.guides([], dict(json_schema={"const": n}))
        assert some.complete([*str(n).encode()])
    assert len(constraints._vocabulary._kept) == constrain.KEPT
    with pytest.raises(RequestError):
        constraints.guides([], dict(regex="["))
    assert len(constraints._vocabulary._kept) == constrain.KEPT


def test_llguidance_is_imported_when_a_constraint_is_asked_for():
    program = (
        "import sys, seriatim; m = seriatim.load('tales', threads=1); m.generate('a', max_tokens=2)"
        "; print('llguidance' in sys.modules); m.generate('a', choices=['b'])"
        "; print('llguidance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


# ---- a codec's own rule ------------------------------------------------------------------------


class Scales(byte.ByteCodec):
    """Bytes of which each is at most one from that before: a codec made up for these tests."""

    name = "scales"

    def legal(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> np.ndarray:
        """The neighbours of the last byte; the end after three."""
        past = [id for id in (*after, *ids) if id < byte.END]
        near = range(256) if not past else range(max(0, past[-1] - 1), min(256, past[-1] + 2))
        allowed = np.zeros(288, bool)
        allowed[[*near, *([byte.END] if len(ids) >= 3 else [])]] = True
        return np.packbits(allowed, bitorder="little").view(np.uint32)


class Entry:
    """How an installed package registers it."""

    def load(self):
        return sys.modules[__name__]


def load(folder, options):
    """What a codec's module has."""
    return Scales()


class Points(dict):
    def __iter__(self):
        return iter([type("Point", (), {"name": n}) for n in self.keys()])


@pytest.fixture
def scales(tmp_path, monkeypatch) -> seriatim.Model:
    points = Points(scales=Entry())
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    folder = tiny.write(tmp_path / "scales")
    said = (folder / "codec.json").read_text()
    (folder / "codec.json").write_text(said.replace('"byte"', '"scales"'))
    return seriatim.load(folder, threads=1)


def test_a_codec_rule_holds_in_every_request(scales):
    assert scales.codec.name == "scales"
    for seed in range(4):
        result = scales.generate(b"m", max_tokens=40, seed=seed)
        steps = np.diff([ord("m"), *result.ids])
        assert np.abs(steps).max() <= 1
        assert len(result.ids) >= 3


def test_a_codec_rule_and_a_constraint_hold_together(scales):
    for seed in range(4):
        result = scales.generate(b"m", regex="[k-z]+", max_tokens=40, seed=seed)
        assert re.fullmatch("[k-z]+", result.text)
        assert np.abs(np.diff([ord("m"), *result.ids])).max() <= 1
    with pytest.raises(RequestError, match="leave no id to choose"):
        scales.generate(b"m", choices=["zz"])


def test_a_codec_rule_that_ends_are_to_ignore_never_ends(scales):
    result = scales.generate(b"m", max_tokens=40, ignore_end=True)
    assert result.finish_reason == "length"
    assert byte.END not in result.ids


class Blanks(byte.ByteCodec):
    """Bytes given with `?` where one is open: a codec made up for these tests."""

    name = "blanks"

    def agreeing(self, given: Any, /, *, after: Sequence[int] = ()) -> Callable[..., np.ndarray]:
        """What is given, the end behind it."""
        wanted = [*self.encode(given), byte.END]

        def rule(ids: Sequence[int]) -> np.ndarray:
            allowed = np.zeros(288, bool)
            at = wanted[len(ids)]
            allowed[slice(0, 256) if at == ord("?") else [at]] = True
            return np.packbits(allowed, bitorder="little").view(np.uint32)

        return rule


def test_the_rest_of_what_is_given_in_part_is_generated(tmp_path):
    model = seriatim.load(tiny.write(tmp_path / "model"), threads=1)
    model.codec = Blanks()
    model.constraints = Constraints(model.codec, model.vocab_size, model.ends)
    whole = tmp_path / "given"
    whole.write_bytes(b"a??d??")
    for part in (b"a??d??", whole):
        result = model.generate(given=part, seed=1)
        assert re.fullmatch(b"a..d..", result.output, re.DOTALL)
        assert result.stop == byte.END


def test_nothing_is_given_to_a_codec_that_cannot_be_filled(tmp_path):
    with pytest.raises(RequestError, match="given in part; the model has the codec byte"):
        seriatim.load(tiny.write(tmp_path / "model"), threads=1).generate(given="a?")


def test_a_rule_never_excludes_what_the_codec_encodes():
    codec = Scales()
    said = [*b"abbcbaab"]
    for place, id in enumerate(said):
        assert allows(codec.legal(said[:place]), id)


# ---- every codec of text -----------------------------------------------------------------------

CODECS = [byte.ByteCodec(), *text.specimens()]
FILES = ["gpt2", "mistral/tokenizer.model.v1", "ort/roberta-base"]


def follows_its_own_ids(codec: Any) -> None:
    """What a codec makes of a text is a way to spell it, at the beginning and later."""
    constraints = Constraints(codec, codec.size + 3, codec.ends)
    for raw in filter(None, map(codec.canonical, codec.examples())):
        said = raw if isinstance(raw, str) else raw.decode(errors="replace")
        start, before = list(codec.start), codec.encode("a")
        for prompt, ids in ((start, codec.encode(said)), (before, codec.encode("a" + said))):
            if prompt == before and ids[: len(before)] != before:
                continue  # another cut at the border
            ids = ids[len(before) :] if prompt == before else ids
            (some,) = constraints.guides(prompt, dict(choices=[said], forced_ids=ids))
            assert some.complete(ids), (said, ids)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}{codec.size}")
def test_a_text_may_be_spelt_as_its_codec_spells_it(codec):
    follows_its_own_ids(codec)


@pytest.mark.parametrize("name", FILES)
def test_a_text_may_be_spelt_as_a_published_tokenizer_spells_it(name, data, tmp_path):
    source = data / "tokenizers" / name
    for file in [source] if source.is_file() else source.iterdir():
        target = "tokenizer.model" if file.suffix == ".v1" else file.name
        (tmp_path / target).symlink_to(file)
    codec = text.load(tmp_path, {})
    assert codec is not None
    follows_its_own_ids(codec)


def test_the_gguf_tokenizer_too(data):
    path = data / "tokenizers" / "ggml-vocab" / "ggml-vocab-phi-3.gguf"
    codec = _gguf.from_gguf(gguf.read(path).metadata)
    follows_its_own_ids(codec)
