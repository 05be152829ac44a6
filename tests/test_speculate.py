"""Speculation changes how fast ids come, and nothing else."""

import json
from collections.abc import Callable, Sequence
from itertools import accumulate, product
from operator import mul
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
import tiny
from hypothesis import given
from hypothesis import strategies as st

import seriatim
from seriatim import cli
from seriatim.engine.cache import BlockPool
from seriatim.engine.controller import Doubt, depth, lengths
from seriatim.engine.costs import Measured
from seriatim.engine.engine import Engine
from seriatim.engine.lookup import MOST_TEXT, Lookup, Text
from seriatim.engine.propose import LONGEST, Ngram, Suffix, expected
from seriatim.engine.request import Request, Speculator
from seriatim.errors import NumericError, RequestError


class Oracle(Speculator):
    """Knows what comes after each prompt, and is wrong wherever `spoil` says so."""

    def __init__(self, truth: Sequence[int], spoil: Callable[[int], bool] = lambda place: False):
        self.truth, self.spoil = truth, spoil
        self.released = 0

    def propose(self, asked: Sequence[tuple[Request, int]], tokens: int) -> list[list[int]]:
        return [self.after(len(request.ids), most) for request, most in asked]

    def after(self, place: int, most: int) -> list[int]:
        real = self.truth[place : place + most]
        return [(id + self.spoil(place + i)) % 101 for i, id in enumerate(real)]

    def release(self, request: Request) -> None:
        self.released += 1


@pytest.fixture
def engine():
    """An engine of a model of its own."""
    return Engine(small.load("llama3"))


def run(engine: Engine, *requests: Request) -> int:
    """Step until all are done; how often."""
    for steps in range(5000):
        if all(r.done for r in requests):
            return steps
        engine.step()
        engine.check()
    raise AssertionError("the engine makes no progress")


PROMPT = [5] * 10
HOW: dict[str, Any] = dict(max_tokens=30, seed=2, logprobs=2, ignore_end=True)


def alone(engine: Engine, prompt: Sequence[int] = PROMPT, **options: Any) -> Request:
    request = engine.add(prompt, **HOW | options)
    run(engine, request)
    return request


def test_right_guesses_are_all_accepted_and_none_beyond_the_end(engine):
    truth = alone(engine)
    oracle = Oracle(truth.ids)
    told = engine.add(PROMPT, speculator=oracle, **HOW)
    assert run(engine, told) == 1
    assert (told.ids, told.draws) == (truth.ids, truth.draws)
    assert (told.usage.drafted, told.usage.accepted) == (29, 29)
    assert oracle.released == 1


@pytest.mark.parametrize("spoil", [lambda i: True, lambda i: i % 2, lambda i: i % 5 == 0])
def test_wrong_guesses_change_nothing(engine, spoil):
    truth = alone(engine)
    told = engine.add(PROMPT, speculator=Oracle(truth.ids, spoil), **HOW)
    run(engine, told)
    assert (told.ids, told.draws) == (truth.ids, truth.draws)
    assert told.usage.accepted < told.usage.drafted


@pytest.mark.parametrize(
    "guessed, words",
    [
        (lambda: [[10**6]], "draft[0] is 1000000"),
        (lambda: [[3, "a"]], "draft[1] is 'a'"),
        (lambda: [[], [], []], "3 drafts were proposed"),
        (lambda: None, "TypeError"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_a_speculator_at_fault_is_switched_off_where_it_failed(engine, guessed, words):
    class Faulty(Oracle):
        def propose(self, asked, tokens):
            at_fault = any(request is bad for request, _ in asked)
            return guessed() if at_fault else super().propose(asked, tokens)

    truth = alone(engine)
    oracle = Faulty(truth.ids)
    good, bad = (engine.add(PROMPT, speculator=oracle, **HOW) for _ in range(2))
    run(engine, good, bad)
    assert words in bad.usage.undrafted
    assert good.usage.undrafted == ""
    assert good.draws == bad.draws == truth.draws
    assert (good.usage.accepted, bad.usage.drafted) == (29, 0)
    assert oracle.released == 2


@pytest.mark.parametrize("at_fault", ["ran", "release"])
def test_no_call_of_a_speculator_can_fail_a_request(engine, at_fault):
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("by design")

    truth = alone(engine)
    oracle = Oracle(truth.ids, lambda place: place % 3 == 0)
    setattr(oracle, at_fault, fails)
    told, other = engine.add(PROMPT, speculator=oracle, **HOW), engine.add(PROMPT, **HOW)
    run(engine, told, other)
    assert told.draws == other.draws == truth.draws
    assert "ZeroDivisionError: by design" in told.usage.undrafted


@pytest.mark.parametrize("backend", [dict(threads=1), dict(backend="torch")])
def test_guesses_whose_logits_are_not_finite_are_left_out(tmp_path, backend):
    """The request might never have met that id, and no other's bits may change."""
    folder = tiny.write(tmp_path / "poisoned")
    tiny.change(folder, lambda tensors: tensors["model.embed_tokens.weight"][7].fill(np.nan))
    model = seriatim.load(folder, **backend)
    engine, how = Engine(model), dict(HOW, banned_ids=[7])
    good = alone(engine, **how)
    model.pool.forget()
    at = Oracle(good.ids)
    at.after = lambda place, most: [*at.truth[place : place + 2], 7, *at.truth[place + 3 :]][:most]
    told, other = engine.add(PROMPT, speculator=at, **how), engine.add(PROMPT, **how)
    run(engine, told, other)
    assert told.ids == other.ids == good.ids
    assert told.usage.accepted == told.usage.drafted < 29
    if "backend" not in backend:  # torch's products depend on the batch, in the last bits
        assert told.draws == other.draws == good.draws
    forced = engine.add(PROMPT, speculator=at, **dict(HOW, forced_ids=[5, 5, 7]))
    run(engine, forced)
    assert isinstance(forced.error, NumericError)


# ---- where guesses come from -------------------------------------------------------------------

texts = st.lists(st.integers(0, 3), max_size=40)


def fed(index: Any, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Its next guess; what it told of those before must be true."""
    for place, id in enumerate(ids):
        guessed, kinds = index.guess(1)
        told = index.add(id)
        assert told == ((kinds[0], guessed[0] == id) if guessed else None), place
    return index.guess(5)


def ends(text: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where a part ends in a text, its own end left out."""
    size = len(part)
    return [at + size for at in range(len(text) - size) if [*text[at : at + size]] == [*part]]


@given(ids=texts)
def test_an_ngram_guess_is_what_followed_the_longest_match_that_held(ids):
    guessed, kinds = fed(Ngram(), ids)
    sizes = range(1, min(4, len(ids)))
    longest = max((n for n in sizes if ends(ids, ids[-n:])), default=0)
    assert bool(guessed) == (longest > 0)
    if guessed:
        assert kinds[0] >= longest
        assert any(ids[at] == guessed[0] for at in ends(ids, ids[-kinds[0] :]))
        assert kinds == [*range(kinds[0], kinds[0] + 5)]


@given(ids=texts.filter(lambda ids: len(ids) < 32))
def test_a_suffix_guess_is_what_followed_the_longest_repeated_end_most_often(ids):
    guessed, kinds = fed(Suffix(), ids)
    longest = max((n for n in range(1, len(ids)) if ends(ids, ids[-n:])), default=0)
    assert bool(guessed) == (longest > 0)
    if guessed:
        followers = [ids[at] for at in ends(ids, ids[-longest:])]
        assert followers.count(guessed[0]) == max(map(followers.count, followers))
        share = max(map(followers.count, followers)) / len(followers)
        clear = 2 if share == 1 else int(share > 0.5)
        assert kinds[0] == clear * (LONGEST + 1) + min(longest, LONGEST)


@given(text=texts.filter(bool), ids=texts)
def test_a_text_is_searched_for_the_last_ids(text, ids):
    guessed, kinds = fed(Lookup(Text(text)), ids)
    if guessed:
        matched = kinds[0] % (LONGEST + 1)
        followers = [text[at] for at in ends(text, ids[len(ids) - matched :])]
        assert guessed[0] in followers
        if 2 * followers.count(max(followers, key=followers.count)) > len(followers):
            assert guessed[0] == max(followers, key=followers.count)
    else:
        assert not ids or ids[-1] not in text or text[-1] == ids[-1]


def test_a_text_to_draft_from_has_a_size():
    for ids in ([], [1] * (MOST_TEXT + 1)):
        with pytest.raises(RequestError, match=f"{len(ids)} ids; expected 1 to {MOST_TEXT}"):
            Text(ids)


def test_rates_follow_what_they_see_and_teach_their_elder():
    elder = expected(LONGEST + 1)
    first, second = elder.younger(), elder.younger()
    for turn in range(200):
        first.learn(3, turn % 4 == 0)
    assert first.shares[3] == pytest.approx(0.25, abs=0.1)
    assert elder.shares[3] == pytest.approx(0.25, abs=0.1)
    assert second.shares[3] == 0.5
    assert elder.younger().shares[3] == elder.shares[3]


# ---- how far -----------------------------------------------------------------------------------


class Line:
    """A step of one token costs 1, and each more of them the same."""

    def __init__(self, more: float) -> None:
        self.more = more

    def step(self, tokens: int) -> float:
        return 1 + self.more * (tokens - 1)

    def ran(self, tokens: int, seconds: float) -> None:
        pass


chances = st.lists(st.lists(st.floats(0, 1), max_size=3), min_size=1, max_size=3)


@given(chances=chances, more=st.floats(0.01, 2))
def test_no_other_numbers_of_guesses_bring_more_ids_a_second(chances, more):
    costs, tokens = Line(more), len(chances)

    def rate(counts: Sequence[int]) -> float:
        right = (accumulate(some[:n], mul) for some, n in zip(chances, counts, strict=True))
        return (tokens + sum(map(sum, right))) / costs.step(tokens + sum(counts))

    best = max(rate(counts) for counts in product(*(range(len(some) + 1) for some in chances)))
    assert rate(lengths(chances, tokens, costs)) == pytest.approx(best)


def test_a_draft_model_is_asked_as_far_as_it_pays():
    assert depth([0.9], 1, Line(0.1), Line(0.1)) == 0  # it costs as much as the model
    cheap = Line(0.0)
    cheap.step = lambda tokens: 0.05
    counts = [depth([share], 1, Line(0.1), cheap) for share in (0.1, 0.5, 0.9, 1.0)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 16)


def test_what_is_done_for_long_is_doubted_ever_more_rarely():
    doubt = Doubt()
    turns = [turn for turn in range(5000) if doubt(True)]
    assert turns[:4] == [63, 63 + 128, 63 + 128 + 256, 63 + 128 + 256 + 512]
    assert len(turns) < 5000 / 500
    assert not any(doubt(False) for _ in range(63))
    assert doubt(False)


def test_costs_follow_what_steps_take_and_keep_their_shape():
    class Full:
        """No block is free: nothing can be measured."""

        pool = BlockPool(0, lambda blocks: None)
        runtime: Any = None

    costs = Measured(Full())
    costs.ran(1, 5.0)  # nobody has asked: nothing is measured now
    before = costs.step(1), costs.step(9)
    assert before[1] > 2 * before[0]
    for _ in range(100):
        costs.ran(1, 3 * before[0])
    assert costs.step(1) == pytest.approx(3 * before[0], rel=0.01)
    assert costs.step(9) / costs.step(1) > 0.8 * before[1] / before[0]
    for _ in range(300):
        costs.ran(1, 1.0)
        costs.ran(9, 2.5)
    assert costs.step(1) == pytest.approx(1.0, rel=0.1)
    assert costs.step(9) == pytest.approx(2.5, rel=0.1)
    assert costs.step(1000) > costs.step(999) > costs.step(9)


@pytest.mark.parametrize("speculate", ["ngram", "suffix"])
@pytest.mark.parametrize("more, least", [(0.1, 4.0), (0.3, 2.2)])
def test_copying_pays_and_random_ids_are_left_alone(engine, speculate, more, least):
    draw = np.random.default_rng(0)
    page = draw.integers(0, 101, 100).tolist()
    copied = Engine(engine.model, costs=Line(more))
    how = dict(HOW, max_tokens=100, speculate=speculate)
    copy = copied.add(page, forced_ids=page, **how)
    run(copied, copy)
    rows = copy.usage.generated + copy.usage.drafted - copy.usage.accepted
    steps = copy.usage.steps
    assert copy.usage.generated / (steps * (1 - more) + more * rows) > least
    assert copy.usage.gain == copy.usage.generated / steps
    other = copied.add(page, forced_ids=draw.integers(0, 101, 100).tolist(), **how)
    run(copied, other)
    assert other.usage.drafted <= 5


def test_a_number_of_guesses_that_was_asked_for_is_taken(engine):
    page = [5, 6, 7, 8] * 8
    for number, drafted in ((0, 0), (1, 1), (7, 7), (32, 32)):
        told = engine.add(
            page, forced_ids=page * 2, max_tokens=64, speculate="ngram", draft_tokens=number
        )
        engine.step()
        assert told.usage.drafted == drafted
        run(engine, told)


# ---- what is refused, and what is said ---------------------------------------------------------


@pytest.mark.parametrize("options, words", [
    (dict(speculate="oracle"), "speculate is 'oracle'; expected 'ngram' or 'suffix'"),
    (dict(speculate=True), "speculate is True"),
    (dict(draft_tokens=3), "draft_tokens is 3 and nothing drafts"),
    (dict(speculate="ngram", draft_tokens=33), "draft_tokens is 33; expected a whole number, 0"),
    (dict(speculate="ngram", draft_tokens=-1), "draft_tokens is -1"),
    (dict(speculate="ngram", draft_tokens=2.0), "draft_tokens is 2.0"),
    (dict(speculate="ngram", draft_text="abc"), "draft_text is given and speculate is 'ngram'"),
    (dict(draft_text="abc"), "draft_text is given and speculate is None"),
    (dict(speculate="suffix", draft_text=""), "has 0 ids"),
    (dict(speculate="suffix", draft_text=[1, 999]), "is 999; expected an id"),
    (dict(speculate="suffix", draft_text=5), "draft_text is 5; expected a text, a Path"),
    (dict(draft=5), "draft is 5; expected a loaded model"),
    (dict(draft="no/such/model here"), "there is no model"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused(options, words):
    with pytest.raises(RequestError) as refused:
        small.shared("bytes").generate("abc", max_tokens=2, **options)
    assert words in str(refused.value)


def test_a_model_drafts_for_none_that_a_step_of_its_own_calls():
    """Its logits wait to be read, and guesses would be computed in the same memory."""
    model, other = small.load("bytes"), small.load("bytes")
    truth = other.generate("abc", max_tokens=4, seed=1)
    told = []

    def asks(ids, logits):
        told.append(other.generate("abc", max_tokens=4, seed=1, draft=model, draft_tokens=2))
        return logits

    model.generate("abc", max_tokens=4, seed=1, draft=other, draft_tokens=2)
    how = dict(max_tokens=4, seed=2, logprobs=3, ignore_end=True)
    engine = model.engine
    requests = [engine.add(PROMPT, **how, processors=some) for some in ([asks], [], [])]
    run(engine, *requests)
    assert [r.draws for r in requests] == [alone(model.engine, **how).draws] * 3
    assert {(*r.ids,) for r in told} == {(*truth.ids,)}
    assert {r.usage.drafted for r in told} == {0}


def test_a_draft_model_of_another_vocabulary_is_refused(tmp_path):
    model = small.shared("bytes")
    with pytest.raises(RequestError, match="the draft model has 101 ids and the model 257"):
        model.generate("abc", draft=small.shared("llama3"))
    other = seriatim.load(tiny.write(tmp_path / "text", codec=False), threads=1)
    model.generate("abc", max_tokens=2, draft=other)  # without a codec nobody knows better
    other.codec = SimpleNamespace(name="text", size=257, decode=lambda ids: "?")
    names = ("codec", "vocab_size", "pool", "runtime", "context")
    third = SimpleNamespace(**{name: getattr(other, name) for name in names})
    with pytest.raises(RequestError, match=r"codec is text of 257 ids and the model's byte of 257"):
        model.generate("abc", draft=third)


def test_draft_models_and_texts_are_named_once_and_kept(tmp_path, monkeypatch):
    model = small.load("bytes")
    loads: list[str] = []
    load = model.drafting._load
    model.drafting._load = lambda name, **how: loads.append(str(name)) or load(name, **how)
    text = tmp_path / "text"
    text.write_bytes(b"abcdefgh" * 5)
    how = dict(max_tokens=12, temperature=0, ignore_end=True)
    plain = model.generate("abc", **how)
    for _ in range(2):
        for name in (small.folder("bytes"), str(small.folder("bytes"))):
            drafted = model.generate("abc", draft=name, draft_tokens=3, **how)
            assert (drafted.ids, drafted.usage.drafted) == (plain.ids, drafted.usage.accepted)
        guessed = model.generate(["abc", "cde"], n=2, speculate="suffix", draft_text=text, **how)
        assert guessed[0].ids == plain.ids
    assert loads == [str(small.folder("bytes"))]
    assert len(model.drafting._texts) == 1
    text.write_bytes(b"other" * 9)
    model.generate("abc", speculate="suffix", draft_text=text, **how)
    assert len(model.drafting._texts) == 2


def test_a_text_that_is_quoted_is_guessed_from(engine):
    page = np.random.default_rng(1).integers(0, 101, 60).tolist()
    told = engine.add(
        PROMPT, forced_ids=page, max_tokens=60, speculate="suffix", draft_text=page, draft_tokens=8,
        ignore_end=True,
    )  # fmt: skip
    run(engine, told)
    assert told.usage.gain > 5


def test_a_request_that_outgrows_its_draft_model_goes_on_and_says_so(tmp_path):
    config: dict[str, Any] = dict(codec=False)
    model = seriatim.load(tiny.write(tmp_path / "long", **config), threads=1)
    short = seriatim.load(tiny.write(tmp_path / "short", **config), threads=1, context=40)
    how = dict(max_tokens=60, temperature=0, ignore_end=True)
    plain = model.generate(PROMPT, **how)
    told = model.generate(PROMPT, draft=short, draft_tokens=3, **how)
    assert told.ids == plain.ids
    assert "the draft model's context is 40" in told.usage.undrafted
    assert told.usage.accepted == told.usage.drafted > 20
    assert short.pool.available == short.pool.limit


def test_a_draft_model_that_is_not_finite_is_switched_off(tmp_path):
    config: dict[str, Any] = dict(codec=False)
    model = seriatim.load(tiny.write(tmp_path / "sound", **config), threads=1)
    bad = tiny.write(tmp_path / "bad", **config)
    tiny.change(bad, lambda tensors: tensors["model.embed_tokens.weight"].fill(np.nan))
    how = dict(max_tokens=10, temperature=0)
    draft = seriatim.load(bad, threads=1)
    told = model.generate([PROMPT, PROMPT], draft=draft, **how)
    for one in told:
        assert one.ids == model.generate(PROMPT, **how).ids
        assert "the draft model's logits are not finite" in one.usage.undrafted
    assert draft.pool.available == draft.pool.limit


def test_the_usage_says_what_guesses_brought(engine):
    page = [5, 6, 7, 8] * 8
    copied = Engine(engine.model, costs=Line(0.05))
    told = copied.add(page, forced_ids=page, max_tokens=32, speculate="ngram")
    run(copied, told)
    usage = told.usage
    assert usage.steps < usage.generated == 32
    assert usage.accepted == usage.generated - usage.steps
    assert usage.saved_ms > 0
    plain = alone(engine)
    assert (plain.usage.steps, plain.usage.gain, plain.usage.saved_ms) == (30, 1.0, 0.0)


def test_the_command_line_speculates_and_says_what_it_brought(capsys, tmp_path):
    folder = small.folder("bytes")
    text = tmp_path / "text"
    text.write_bytes(b"abcdefgh" * 5)
    words = ["generate", "abcabc", "--model", str(folder), "--json", "--temperature", "0"]
    words += ["--max-tokens", "20", "--threads", "1", "--ignore-end"]
    said = []
    for more in (
        [],
        ["--speculate", "ngram", "--draft-tokens", "2"],
        ["--speculate", "suffix", "--draft-text", str(text)],
        ["--draft", str(folder), "--draft-tokens", "4"],
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, *more])
        assert ended.value.code == 0
        said.append(json.loads(capsys.readouterr().out))
    assert len({str(one["ids"]) for one in said}) == 1
    assert said[0]["usage"]["gain"] == 1.0
    assert said[-1]["usage"]["gain"] == 5.0
    assert said[-1]["usage"]["accepted"] == said[-1]["usage"]["drafted"] == 16
