"""Requests that cannot be honoured: one line with what was seen, and nothing half-done.

The table is also a program, so that it runs under `python -O`: `python -O test_bad_input.py`.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tiny
import unasserted

import seriatim
from seriatim.errors import RequestError, SeriatimError, shown

LONG, HUGE, NAN, INF = 10**30, 10**5000, float("nan"), float("inf")
Call = Callable[[seriatim.Model], Any]

# Option, the values that are refused, and words that every message must hold beside the option.
OPTIONS: list[tuple[str, list[Any], list[str]]] = [
    (
        "max_tokens",
        [0, -1, 1.5, True, "10", [3], NAN, np.float32(2), -HUGE],
        ["whole", "1 or more"],
    ),
    ("min_tokens", [-1, 1.5, "1", None, True], ["whole number", "0 or more"]),
    ("temperature", [NAN, -INF, -0.1, "hot", None, True, [1], 1j, b"1"], ["[0, inf)"]),
    ("temperature", [INF, np.float32("inf")], ["finite"]),
    ("temperature", [HUGE, np.array([0.5, 1])], ["number"]),
    ("top_p", [0, 1.0001, -1, NAN, INF, "x", None, True], ["(0, 1]"]),
    ("top_k", [-1, -2, 1.5, "3", None, True], ["whole number", "0 or more"]),
    ("min_p", [2, -0.1, NAN, 1.0001, None], ["[0, 1]"]),
    ("n", [0, -1, 129, 10**6, 2.5, "2", None, True, HUGE], ["whole number", "1 to 128"]),
    ("seed", [-1, 2**64, 1.5, "x", True, NAN], ["0 to 18446744073709551615"]),
    ("stop", ["", [""], [1], ["a", None], [["a"]], None, 5, b"x", {"a": 1}], ["not empty"]),
    ("stop", [["a"] * 17, "x" * 257, ["a", "x" * 10**6]], ["at most 16", "256"]),
    ("logit_bias", [{-1: 1}, {257: 1}, {"a": 1}, {1.0: 1}, {True: 1}], ["from 0 to 256", "257"]),
    ("logit_bias", [{1: NAN}, {1: INF}, {1: "x"}, {1: 1e7}, {1: None}], ["[1]", "number in"]),
    ("logit_bias", [[1], None, 5, "1=1"], ["mapping"]),
    ("allowed_ids", [[257], [-1], ["a"], [1.0], [True], [[1]]], ["[0]", "from 0 to 256"]),
    ("banned_ids", [[257], [-1], ["a"], [1.0], [True], [[1]]], ["[0]", "from 0 to 256"]),
    ("banned_ids", [5, None, "ab", {1: 2}], ["a list of ids"]),
    ("allowed_ids", [5, "ab", {1: 2}, np.array(5)], ["a list of ids"]),
    ("forced_ids", [[257], ["a"], [2**70]], ["[0]", "from 0 to 256"]),
    ("allowed_ids", [[]], ["no id", "allow at least one"]),
    ("repetition_penalty", [0, -1, NAN, INF, "x", None], ["number in"]),
    ("presence_penalty", [NAN, INF, 1e7, "x", None], ["number in"]),
    ("frequency_penalty", [NAN, -INF, 1e7, "x", None], ["number in"]),
    ("ignore_end", [1, 0, "yes", None], ["True or False"]),
    ("prompt_logprobs", [-1, 21, 1.5, "yes", None], ["0 to 20"]),
    ("logprobs", [-1, 21, 1.5, "a", None], ["0 to 20"]),
    ("processors", [5, [5], None, [len, "x"], "ab"], ["list of functions"]),
    ("priority", [1.5, 2**40, "x", None], ["whole number"]),
    ("tenant", [5, None, b"x"], ["a string"]),
    ("speculate", ["oracle", True, 5, ["ngram"], np.array(["ngram", "suffix"])], ["'ngram' or"]),
    ("loop_limit", [-1, 1.5, "2", None, True, np.array([1, 2])], ["whole number", "0 or more"]),
]
SIZES = ["256", "at most 255"]

# Name, call, words of the message.
CALLS: list[tuple[str, Call, list[str]]] = [
    (
        "a misspelt option",
        lambda m: m.generate("ab", max_token=3),
        ["max_token", "mean max_tokens?"],
    ),
    ("another", lambda m: m.generate("ab", temprature=1), ["temprature", "mean temperature?"]),
    (
        "an option of later",
        lambda m: m.generate("ab", mirostat=2),
        ["unknown", "mirostat", "nearest of"],
    ),
    ("no constraint", lambda m: m.generate("ab", regex="a*("), ["regex", "unclosed group"]),
    (
        "more ends than room",
        lambda m: m.generate("ab", min_tokens=4, max_tokens=3),
        ["4", "3", "<="],
    ),
    (
        "an end forced too early",
        lambda m: m.generate("ab", min_tokens=2, forced_ids=[5, m.ends[0]]),
        ["forced_ids[1]", "ends the request", "min_tokens is 2", "ignore_end"],
    ),
    ("an engine of a number", lambda m: seriatim.Engine(5), ["5", "seriatim.load"]),
    (
        "allowed minus banned is empty",
        lambda m: m.generate("ab", allowed_ids=[1, 2], banned_ids=[2, 1, 0]),
        ["allowed_ids", "banned_ids", "no id"],
    ),
    ("all banned", lambda m: m.generate("ab", banned_ids=range(257)), ["no id", "allow at least"]),
    (
        "all forced past the end",
        lambda m: m.generate("ab", forced_ids=[1] * 4, max_tokens=3),
        ["forced_ids", "4", "3"],
    ),
    (
        "one forced that is banned",
        lambda m: m.generate("ab", forced_ids=[1, 2], banned_ids=[2]),
        ["forced_ids[1]", "2", "forbid"],
    ),
    (
        "one forced that is not allowed",
        lambda m: m.generate("ab", forced_ids=[1, 2], allowed_ids=[2]),
        ["forced_ids[0]", "1", "forbid"],
    ),
    (
        "an id past the vocabulary",
        lambda m: m.generate([1, 2, 257]),
        ["prompt[2]", "257", "0 to 256"],
    ),
    ("a negative id", lambda m: m.generate([-1]), ["prompt[0]", "-1", "0 to 256"]),
    ("a float id", lambda m: m.generate([1, 1.0]), ["prompt[1]", "1.0", "0 to 256"]),
    ("a bool id", lambda m: m.generate([True]), ["prompt[0]", "True", "0 to 256"]),
    ("no id", lambda m: m.generate([None]), ["prompt[0]", "None", "0 to 256"]),
    ("an enormous id", lambda m: m.generate([HUGE]), ["prompt[0]", "0 to 256"]),
    ("ids nested in ids", lambda m: m.generate([[1, [2]]]), ["prompt[1]", "[2]", "0 to 256"]),
    ("ids nested three deep", lambda m: m.generate([[[1]]]), ["prompt[0]", "[1]", "0 to 256"]),
    ("ids and texts", lambda m: m.generate([1, "a"]), ["prompt 0 of 2", "int"]),
    ("a text and a number", lambda m: m.generate(["a", 5]), ["prompt 1 of 2", "int"]),
    ("an array of floats", lambda m: m.generate(np.array([1.5])), ["prompt[0]", "0 to 256"]),
    ("an array of rows", lambda m: m.generate(np.ones((2, 2), int)), ["prompt[0]", "0 to 256"]),
    ("an array without an axis", lambda m: m.generate(np.array(5)), ["prompt", "a list of ids"]),
    ("a number", lambda m: m.generate(5), ["int", "bytes or str"]),
    ("a dict", lambda m: m.generate({"prompt": "a"}), ["dict", "bytes or str"]),
    ("half a character", lambda m: m.generate("a\ud800"), ["character 1", "surrogate"]),
    ("a file that is not there", lambda m: m.generate(Path("/no/such")), ["/no/such", "not exist"]),
    ("a folder", lambda m: m.generate(Path("/")), ["/ is not a file"]),
    ("a full context", lambda m: m.generate([1] * 256), ["has 256 ids", *SIZES]),
    ("more than a context", lambda m: m.generate("x" * 5000), ["has 5001 ids", *SIZES]),
    ("a context to score", lambda m: m.logits([1] * 257), ["has 257 ids", "256"]),
    ("logits of nothing", lambda m: m.logits([]), ["empty", "at least one id"]),
    ("logits of no list", lambda m: m.logits(None), ["ids is None", "a list of ids"]),
    ("logits of text", lambda m: m.logits("ab"), ["ids is 'ab'", "a list of ids"]),
    ("a score of nothing", lambda m: m.score(""), ["nothing to score"]),
    ("a score of one id", lambda m: m.score([1]), ["nothing to score"]),
    ("a score of texts", lambda m: m.score(["a", "b"]), ["prompt[0]", "'a'"]),
    ("a score given a number", lambda m: m.score("a", given=5), ["int", "bytes or str"]),
    ("decoding a foreign id", lambda m: m.decode([300]), ["ids[0]", "300", "0 to 256"]),
    ("decoding nothing", lambda m: m.decode(None), ["ids is None", "a list of ids"]),
    ("encoding a number", lambda m: m.encode(5), ["int", "bytes or str"]),
    ("a stream of prompts", lambda m: m.stream(["a", "b"]), ["stream", "one prompt", "generate"]),
    ("a stream of samples", lambda m: m.stream("a", n=2), ["stream", "n", "generate"]),
    ("a stream, at once", lambda m: m.stream("a", top_p=3), ["top_p is 3", "(0, 1]"]),
    ("a bad prompt among good", lambda m: m.generate(["a", "b", 5]), ["prompt 2 of 3", "int"]),
    ("a long prompt among good", lambda m: m.generate(["a", "x" * 300]), ["has 301 ids", *SIZES]),
    ("a bad id among good", lambda m: m.generate([[1], [300]]), ["prompt 1 of 2", "[0] is 300"]),
    ("an option for many", lambda m: m.generate(["a", "b"], n=3, top_k=-1), ["top_k is -1"]),
    (
        "a processor that fails",
        lambda m: m.generate("a", processors=[lambda ids, x: 1 / 0]),
        ["ZeroDivisionError"],
    ),
    (
        "a processor of NaN",
        lambda m: m.generate("a", processors=[lambda ids, x: x * NAN]),
        ["processor", "NaN"],
    ),
    (
        "a processor of another shape",
        lambda m: m.generate("a", processors=[lambda ids, x: x[:5]]),
        ["processor", "shape"],
    ),
    (
        "a processor that leaves nothing",
        lambda m: m.generate("a", processors=[lambda ids, x: x - INF]),
        ["no id"],
    ),
]


def refusals() -> Iterator[tuple[str, Call, list[str]]]:
    """Every call that must be refused, with its name and the words of its message."""
    for option, values, words in OPTIONS:
        for value in values:
            # By default arguments, for the names are those of a loop.
            yield (
                f"{option}={shown(value):.40}",
                lambda m, o=option, v=value: m.generate("ab", **{"max_tokens": 3, o: v}),
                [option, *words],
            )
    yield from CALLS


def fault(model: seriatim.Model, call: Call, words: list[str]) -> str:
    """What is wrong with how a call is refused; "" if nothing is."""
    try:
        return f"gave {call(model)!r:.80}"
    except SeriatimError as error:
        text = str(error)
    except Exception as error:
        return f"raised {error!r:.200}"
    if "\n" in text or len(text) > 500:
        return f"has more than one short line: {text:.600}"
    if missing := [word for word in words if word not in text]:
        return f"does not say {missing}: {text}"
    return disturbed(model)


def disturbed(model: seriatim.Model) -> str:
    """What a refused call left behind; "" if nothing."""
    scheduler = model.engine.scheduler
    model.engine.check()
    if scheduler.waiting or scheduler.running:
        return "left a request in the engine"
    if model.pool.available != model.pool.limit:
        return "left blocks held"
    return "" if sound(model) == fresh(model) else "changed the model"


def sound(model: seriatim.Model) -> list[int]:
    return model.generate("ab", max_tokens=2, seed=1).ids


@cache
def fresh(model: seriatim.Model) -> list[int]:
    """What a sound request gave when the model was new."""
    return sound(model)


def loaded(folder: Path) -> seriatim.Model:
    model = seriatim.load(tiny.write(folder), threads=1)
    fresh(model)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> seriatim.Model:
    return loaded(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name, call, words", [pytest.param(*r, id=r[0]) for r in refusals()])
def test_it_is_refused_in_one_line_that_says_what_and_leaves_nothing(model, name, call, words):
    assert not (found := fault(model, call, words)), f"{name}: {found}"


def test_it_is_refused_as_well_without_assertions():
    """`python -O` removes every assert: none of them may have been a guard."""
    done = unasserted.run(__file__)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_options_are_checked_for_every_prompt_before_any_is_computed(model):
    before = model.pool.total
    steps = []
    with pytest.raises(RequestError, match="has 301 ids"):
        model.generate(["ab", "cd", "x" * 300], processors=[lambda ids, x: steps.append(ids) or x])
    assert not steps
    assert model.pool.total == before


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-9])
@pytest.mark.filterwarnings("error")
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(model, temperature):
    greedy = model.generate("ab", max_tokens=8, temperature=0).ids
    assert model.generate("ab", max_tokens=8, temperature=temperature, seed=3).ids == greedy


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options",
    [
        dict(top_k=10**6),
        dict(top_k=LONG),
        dict(max_tokens=LONG),
        dict(temperature=1e308),
        dict(top_p=5e-324),
        dict(top_k=1, top_p=1e-300, min_p=1.0),
        dict(logit_bias=dict.fromkeys(range(257), -100)),
        dict(logit_bias={7: 1e6, 8: -1e6}),
        dict(repetition_penalty=1e-6, presence_penalty=1e6, frequency_penalty=-1e6),
        dict(seed=2**64 - 1),
        dict(seed=np.uint64(2**64 - 1)),
        dict(max_tokens=np.int64(2), temperature=np.float32(0.5)),
        dict(stop=("zz",)),
        dict(banned_ids=range(256), ignore_end=True),
        dict(banned_ids=[256]),
        dict(n=128, max_tokens=1),
    ],
    ids=lambda options: " ".join(f"{k}={shown(v):.20}" for k, v in options.items()),
)
def test_the_extreme_is_honoured(model, options):
    answer = model.generate("ab", **{"max_tokens": 3, "seed": 1} | options)
    assert 1 <= len(answer.ids) <= tiny.CONTEXT
    assert not disturbed(model)


@pytest.mark.parametrize("prompt", [None, "", b"", [], (), np.array([], int)])
def test_an_empty_prompt_is_the_start_id(model, prompt):
    assert model.generate(prompt, max_tokens=1).prompt_ids == [256]


@pytest.mark.parametrize("prompts", [[""], [[]], ["", None]])
def test_a_list_of_empty_prompts_is_a_list_of_start_ids(model, prompts):
    answers = model.generate(prompts, max_tokens=1)
    assert [answer.prompt_ids for answer in answers] == [[256]] * len(prompts)


def test_an_empty_prompt_without_a_start_id_is_refused(tmp_path):
    none = dict(bos_token_id=None, eos_token_id=None)
    model = seriatim.load(tiny.write(tmp_path, codec=False, ids=none), threads=1)
    assert model.ends == ()
    for prompt in (None, "", []):
        with pytest.raises(RequestError, match=r"empty.*no start id.*at least one id"):
            model.generate(prompt)
    assert len(model.generate([1], max_tokens=3).ids) == 3


@pytest.mark.parametrize(
    "length, max_tokens, generated, stop",
    [
        (255, None, 1, "context"),
        (255, 1, 1, "max_tokens"),
        (254, 5, 2, "context"),
        (1, 255, 255, "max_tokens"),
    ],
)
def test_the_last_places_of_the_context(model, length, max_tokens, generated, stop):
    options = dict(max_tokens=max_tokens, ignore_end=True, seed=1)
    answer = model.generate([1] * length, **options)
    assert (len(answer.ids), answer.stop, answer.finish_reason) == (generated, stop, "length")


if __name__ == "__main__":
    with TemporaryDirectory() as place:
        new = loaded(Path(place) / "tiny")
        for name, call, words in refusals():
            if found := fault(new, call, words):
                sys.exit(f"{name}: {found}")
        if __debug__:
            sys.exit("run it with python -O")
