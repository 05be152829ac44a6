"""Speculation changes no id, no log-probability and no end: whatever guesses, and however well.

Each request runs without guesses, then with each speculator, in any company. Steps are said to cost
next to nothing more for more rows, so that every guess is tried. What few ids allow is enumerated:
the distribution of all sequences of three.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
import small
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_law_company import ROOMY, Served, Thirds

import seriatim
from seriatim.engine import decoding
from seriatim.engine.engine import Engine
from seriatim.engine.request import Request, Speculator

KINDS = ("llama3", "mistral", "qwen3-bf16")
REPEATS = [5, 9, 5, 7, 6, 5, 9, 8]


class Flat:
    """Costs under which any guess is worth a try."""

    def step(self, tokens: int) -> float:
        return 1 + tokens / 1000

    def ran(self, tokens: int, seconds: float) -> None:
        pass


@dataclass
class Stops:
    """Ends a request where two ids in a row, some time, sum to a multiple of nine."""

    last: int = 0
    seen: int = 0

    def feed(self, id: int) -> tuple[str, str | None]:
        met = self.seen > 4 and (self.last + id) % 9 == 0
        self.last, self.seen = id, self.seen + 1
        return "", "nine" if met else None


def halved(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """A processor that looks at the history."""
    logits = logits.copy()
    logits[list(ids[-3:])] *= 0.5
    return logits


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": dict(temperature=0),
    "plain": dict(),
    "cool": dict(temperature=0.2, top_k=4),
    "nucleus": dict(temperature=0.7, top_p=0.9, min_p=0.01),
    "penalties": dict(repetition_penalty=1.3, presence_penalty=0.3, frequency_penalty=0.5),
    "biased": dict(temperature=0, logit_bias={5: 3.0, 9: 2.0}, banned_ids=[3]),
    "narrow": dict(allowed_ids=[5, 6, 7, 8, 9], min_tokens=4, ignore_end=False),
    "processed": dict(processors=[halved], temperature=0.5),
    "rare": dict(typical_p=0.9, dry_multiplier=0.8, xtc_probability=0.5, dynatemp_range=0.3),
    "forced": dict(forced_ids=REPEATS[2:7] * 3),
}
WAYS = ("ngram", "suffix", "text", "draft", "draft 5", "itself")


@dataclass(frozen=True)
class Ask:
    """A request, how it guesses, and what happens around it."""

    way: str = "ngram"
    sampling: str = "greedy"
    length: int = 40
    most: int = 20
    sample: int = 0
    guided: bool = False
    stops: bool = False
    arrives: int = 0
    aborted: int | None = None
    priority: int = 0

    def options(self, kind: str) -> dict[str, Any]:
        how: dict[str, Any] = dict(max_tokens=self.most, seed=11, logprobs=3, ignore_end=True)
        return how | SAMPLINGS[self.sampling] | dict(priority=self.priority)

    def guessing(self, kind: str) -> dict[str, Any]:
        """The options that speculate."""
        match self.way:
            case "text":
                return dict(speculate="suffix", draft_text=alone(kind, self.plain())[0])
            case "draft" | "draft 5":
                fixed = {} if self.way == "draft" else dict(draft_tokens=5)
                return dict(draft=other(kind)) | fixed
            case "itself":
                return dict(draft=twin(kind), draft_tokens=3)
        return dict(speculate=self.way)

    def plain(self) -> "Ask":
        kept = dict(length=self.length, most=self.most, sample=self.sample, stops=self.stops)
        return Ask(sampling=self.sampling, guided=self.guided, **kept)


@cache
def loaded(kind: str) -> seriatim.Model:
    return small.load(kind)


@cache
def twin(kind: str) -> seriatim.Model:
    """The same model, with a cache of its own."""
    return small.load(kind)


@cache
def other(kind: str) -> seriatim.Model:
    """A model that nearly always agrees."""
    return small.load(kind, precision="int8", kv="bf16")


def add(engine: Engine, ask: Ask, kind: str, **guessing: Any) -> Request:
    prompt = (REPEATS * -(-ask.length // len(REPEATS)))[: ask.length]
    return engine.add(
        prompt, sample=ask.sample, watch=Stops() if ask.stops else None,
        guides=[Thirds(engine.model.vocab_size)] if ask.guided else [],
        **ask.options(kind) | guessing,
    )  # fmt: skip


def outcome(request: Request) -> tuple:
    """Everything a request says, floats by their bits; the ids come first."""
    if request.error is not None:
        raise request.error
    assert request.usage.undrafted == ""
    draws = [*request.draws, *filter(None, [request.ending])]
    return (
        request.ids, request.stop, request.reason, request.generated,
        [(d.id, d.logprob and d.logprob.hex(), [(i, p.hex()) for i, p in d.top]) for d in draws],
    )  # fmt: skip


@cache
def alone(kind: str, ask: Ask) -> tuple:
    engine = Engine(Served(loaded(kind)), budget=ROOMY)
    request = add(engine, ask, kind)
    while not request.done:
        engine.step()
    return outcome(request)


@dataclass
class Run:
    """Requests in one engine, to their end."""

    kind: str
    asks: Sequence[Ask]
    budget: int = ROOMY
    chunk: int | None = None
    limit: int = ROOMY
    requests: list[Request] = field(default_factory=list)
    steps: int = 0
    preempted: int = 0

    def __post_init__(self) -> None:
        guessing = {ask: ask.guessing(self.kind) for ask in self.asks}  # may run the model
        served = Served(loaded(self.kind), self.limit)
        engine = Engine(served, budget=self.budget, chunk=self.chunk, costs=Flat())
        waiting = sorted(self.asks, key=lambda ask: ask.arrives)
        while waiting or not all(r.done for r in self.requests):
            while waiting and waiting[0].arrives <= self.steps:
                ask = waiting.pop(0)
                self.requests.append(add(engine, ask, self.kind, **guessing[ask]))
            for ask, request in self.pairs():
                if ask.aborted == self.steps - ask.arrives:
                    engine.abort(request)
            before = [request.computed for request in self.requests]
            engine.step()
            now = ((r.computed, r.done) for r in self.requests)
            self.preempted += sum(
                a > b and not done for a, (b, done) in zip(before, now, strict=True)
            )
            engine.check()
            other(self.kind).pool.check()
            twin(self.kind).pool.check()
            self.steps += 1
            assert self.steps < 5000, "the engine makes no progress"
        for pool in (engine.pool, other(self.kind).pool, twin(self.kind).pool):
            assert pool.available == pool.limit, "blocks are held by nobody"

    def pairs(self) -> Iterator[tuple[Ask, Request]]:
        asks = sorted(self.asks, key=lambda ask: ask.arrives)
        return zip(asks, self.requests, strict=False)

    def check(self) -> "Run":
        """The law: everyone says what they say alone, without guesses."""
        for ask, request in self.pairs():
            expected, seen = alone(self.kind, ask.plain()), outcome(request)
            if request.stop == "abort":
                assert seen[0] == expected[0][: len(seen[0])]
            else:
                assert seen == expected, f"{ask} is not what it is without guesses"
        return self

    def total(self, name: str) -> int:
        return sum(getattr(r.usage, name) for r in self.requests)


# ---- the law -----------------------------------------------------------------------------------

asks = st.builds(
    Ask,
    way=st.sampled_from(WAYS),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    length=st.sampled_from([3, 20, 61, 64, 70, 130]),
    most=st.sampled_from([15, 20]),
    sample=st.integers(0, 2),
    guided=st.sampled_from([False, False, True]),
    stops=st.sampled_from([False, False, True]),
    arrives=st.integers(0, 6),
    aborted=st.sampled_from([None, None, None, 2, 5]),
    priority=st.integers(0, 1),
).filter(lambda ask: not (ask.guided and ask.sampling in ("narrow", "forced")))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(
    asks=st.lists(asks, min_size=1, max_size=6),
    budget=st.sampled_from([7, 64, ROOMY]),
    chunk=st.sampled_from([None, 1, 5, 64]),
    limit=st.sampled_from([3, 4, 6, ROOMY]),
)
def test_guesses_change_nothing_in_any_company(kind, asks, budget, chunk, limit):
    Run(kind, asks, budget, chunk, limit).check()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_speculator_is_right_sometimes_and_changes_nothing(way, sampling):
    ran = Run("llama3", [Ask(way, sampling, sample=i, most=24) for i in range(3)]).check()
    assert ran.total("drafted") > 0
    if way in ("draft", "draft 5", "itself"):
        assert ran.total("accepted") > 0.4 * ran.total("drafted")
    if way == "itself":
        assert ran.total("accepted") == ran.total("drafted")
        assert {r.usage.steps for r in ran.requests} == {6}  # three guesses and one more id
    if sampling == "forced":
        assert ran.total("accepted") > 0


def test_preempted_requests_keep_their_guesses_straight():
    asks = [Ask(way, "cool", length=60 + i, most=20) for i, way in enumerate(WAYS)]
    ran = Run("llama3", asks, limit=3).check()
    assert ran.preempted > 0, "this workload was to run out of blocks"
    assert ran.total("accepted") > 0


def test_a_draft_model_short_of_blocks_drafts_for_whom_it_can():
    draft = small.load("llama3", precision="int8", kv="bf16")
    draft.pool.limit = 3
    asks = [Ask(length=60 + 9 * i, sample=i) for i in range(5)]
    engine = Engine(Served(loaded("llama3")), costs=Flat())
    requests = [add(engine, ask, "llama3", draft=draft, draft_tokens=4) for ask in asks]
    while not all(r.done for r in requests):
        engine.step()
        draft.pool.check()
    for ask, request in zip(asks, requests, strict=True):
        assert outcome(request) == alone("llama3", ask.plain())
    assert sum(r.usage.accepted for r in requests) > 0
    assert draft.pool.available == 3


@pytest.mark.parametrize("way", ["ngram", "draft"])
def test_what_a_step_costs_is_measured_while_no_logits_wait(way):
    """The first request of a model finds the costs unknown; one that drafts always needs none."""
    model = small.load("llama3")
    guess = dict(speculate="ngram") if way == "ngram" else dict(draft=small.load("llama3"))
    for how in (dict(draft_tokens=3), dict()):
        engine = Engine(model)
        request = add(engine, Ask(), "llama3", **guess, **how)
        while not request.done:
            engine.step()
        assert outcome(request) == alone("llama3", Ask().plain())
        assert way == "ngram" or request.usage.accepted == request.usage.drafted


@pytest.mark.parametrize("way", ["ngram", "suffix", "draft", "itself"])
def test_torch_says_the_same_with_guesses(way):
    """Ids alone: torch's products depend on the batch in their last bits."""
    model = small.load("llama3", backend="torch", threads=None)
    guess = Ask(way).guessing("llama3")
    for how in (dict(temperature=0), dict(temperature=0.3, seed=3)):
        plain = model.generate(REPEATS * 4, max_tokens=16, ignore_end=True, **how)
        guessed = model.generate(REPEATS * 4, max_tokens=16, ignore_end=True, **how, **guess)
        assert guessed.ids == plain.ids


@pytest.mark.parametrize("way", ["ngram", "suffix", "draft"])
@pytest.mark.parametrize("kind", ["bytes", "text"])
def test_stop_strings_samples_and_lists_of_prompts_are_the_same_with_guesses(kind, way):
    model = small.shared(kind)
    guess = dict(draft=small.load(kind), draft_tokens=3) if way == "draft" else dict(speculate=way)
    said = model.generate("abcabcabc", max_tokens=60, seed=4, temperature=0.4).text
    stop = [said[7:9], said[20:21]]
    for how in (dict(stop=stop), dict(n=3, stop=stop[0]), dict(min_tokens=9), dict(logprobs=2)):
        how |= dict(max_tokens=40, seed=4, temperature=0.4, prompt_logprobs=True)
        prompts = ["abcabcabc", "the the the the", "abcabcabc"]
        plain, guessed = (model.generate(prompts, **how, **some) for some in ({}, guess))
        for one, two in zip(plain, guessed, strict=True):
            assert two.usage.drafted > 0 or way != "draft"
            for a, b in zip(one.samples, two.samples, strict=True):
                for name in ("ids", "text", "stop", "logprobs", "top_logprobs", "stop_logprob",
                             "prompt_logprobs", "finish_reason", "output"):  # fmt: skip
                    assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("guess", ["ngram", "suffix", "draft"])
@pytest.mark.parametrize(
    "constraint",
    [
        dict(regex="(ab|cd|[0-9]{2})+x"),
        dict(choices=["abcabc", "abcxyz"]),
        dict(json_schema={"type": "object", "properties": {"a": {"type": "integer"}}}),
    ],
    ids=lambda constraint: next(iter(constraint)),
)
def test_constraints_hold_and_say_the_same_with_guesses(constraint, guess):
    model = small.shared("bytes")
    source = dict(draft=small.load("bytes")) if guess == "draft" else dict(speculate=guess)
    how = dict(max_tokens=30, logprobs=1, n=2, seed=4, **constraint)
    plain = model.generate("abcabc", **how)
    guessed = model.generate("abcabc", draft_tokens=3, **how, **source)
    assert guessed.usage.drafted > 0
    assert guessed.usage.undrafted == ""
    if guess == "draft":
        assert guessed.usage.accepted == guessed.usage.drafted
    for one, two in zip(plain.samples, guessed.samples, strict=True):
        assert (one.ids, one.logprobs, one.stop) == (two.ids, two.logprobs, two.stop)


def test_a_stream_with_guesses_folds_into_the_same_answer():
    model = small.shared("bytes")
    how = dict(max_tokens=50, temperature=0, ignore_end=True)
    plain = model.generate("abcabc", **how)
    stream = model.stream("abcabc", speculate="ngram", **how)
    pieces = list(stream)
    assert [id for piece in pieces for id in piece.ids] == plain.ids == stream.result().ids
    assert stream.result().text == plain.text


# ---- four ids ----------------------------------------------------------------------------------

FOUR, SEEDS = [0, 1, 2, 0, 1, 2, 0], 2000
CRITICAL = 63 * (1 - 2 / (9 * 63) + 3.09 * sqrt(2 / (9 * 63))) ** 3  # 0.999 of chi-square, 63


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> tuple[seriatim.Model, seriatim.Model]:
    """Two models of four ids, which disagree."""
    place = tmp_path_factory.mktemp("four")
    config: dict[str, Any] = dict(codec=False, ids={}, vocab_size=4)
    one = tiny.write(place / "one", **config)
    two = tiny.write(place / "two", **config)
    tiny.change(two, lambda tensors: {n: a * 1.2 for n, a in tensors.items()})
    return tuple(seriatim.load(folder, threads=1) for folder in (one, two))


class Stubborn(Speculator):
    """Always guesses the same."""

    def propose(self, asked: Any, tokens: int) -> list[list[int]]:
        return [[2, 2, 2][:most] for _, most in asked]


def sequences(model: seriatim.Model, **how: Any) -> list[tuple[int, ...]]:
    """What each seed says: three ids."""
    engine = Engine(model, costs=Flat(), budget=ROOMY)
    requests = [engine.add(FOUR, max_tokens=3, seed=seed, **how) for seed in range(SEEDS)]
    while engine.busy:
        engine.step()
    if how:
        assert sum(r.usage.drafted for r in requests) > SEEDS
        assert sum(r.usage.accepted for r in requests) > 0
    return [tuple(r.ids[len(FOUR) :]) for r in requests]


@pytest.fixture(scope="module")
def plain(four) -> list[tuple[int, ...]]:
    return sequences(four[0])


def probabilities(model: seriatim.Model) -> dict[tuple[int, ...], float]:
    """Of every sequence of three ids, as products of the model's own."""

    def after(ids: Sequence[int]) -> np.ndarray:
        logits = model.logits([*FOUR, *ids])[-1].astype(np.float64)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    return {
        (a, b, c): after([])[a] * after([a])[b] * after([a, b])[c]
        for a in range(4)
        for b in range(4)
        for c in range(4)
    }


def chi_square(said: Sequence[tuple[int, ...]], exact: dict[tuple[int, ...], float]) -> float:
    counts = dict.fromkeys(exact, 0)
    for ids in said:
        counts[ids] += 1
    expected = {ids: p * len(said) for ids, p in exact.items()}
    assert min(expected.values()) > 5
    return sum((counts[ids] - e) ** 2 / e for ids, e in expected.items())


@pytest.mark.parametrize("way", ["ngram", "suffix", "draft", "stubborn"])
def test_all_sequences_of_three_of_four_ids_come_as_often_as_the_model_says(four, plain, way):
    model, draft = four
    how: dict[str, Any] = {
        "draft": dict(draft=draft, draft_tokens=2),
        "stubborn": dict(speculator=Stubborn()),
    }.get(way, dict(speculate=way, draft_tokens=2))
    said = sequences(model, **how)
    assert said == plain
    assert chi_square(said, probabilities(model)) < CRITICAL


def test_the_enumeration_sees_a_guess_that_is_accepted_too_easily(four, monkeypatch):
    """One in eight wrong guesses is taken."""
    model, _ = four
    real = decoding.sample

    def easy(request: Request, *rest: Any) -> Any:
        drawn = real(request, *rest)
        return drawn if request.options.seed % 8 else drawn.__class__(2, drawn.logprob, drawn.top)

    monkeypatch.setattr(decoding, "sample", easy)
    said = sequences(model, speculator=Stubborn())
    assert chi_square(said, probabilities(model)) > CRITICAL


def test_a_draft_model_that_another_thread_runs_is_not_waited_for():
    """Two models that draft for each other would wait for ever."""
    target, draft = small.load("llama3"), small.load("llama3")
    how = dict(max_tokens=12, seed=3, ignore_end=True)
    alone = target.generate(REPEATS, **how)
    taken, over = threading.Event(), threading.Event()

    def keeps():
        with draft.pool.lock:
            taken.set()
            over.wait(30)

    thread = threading.Thread(target=keeps)
    thread.start()
    assert taken.wait(30)
    unaided = target.generate(REPEATS, draft=draft, draft_tokens=3, **how)
    over.set()
    thread.join()
    aided = target.generate(REPEATS, draft=draft, draft_tokens=3, **how)
    assert unaided.ids == aided.ids == alone.ids
    assert (unaided.usage.drafted, unaided.usage.undrafted) == (0, "")
    assert aided.usage.accepted > 0
    for model in (target, draft):
        model.engine.check()
        assert model.pool.available == model.pool.limit
