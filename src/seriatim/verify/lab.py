"""Where the laws are tried: requests drawn from a seed, and ways to run them on the model's engine.

Every run has a cache of its own over the model's runtime, so that it begins cold, can be as small
as a law needs, and leaves nothing behind. What a request yields alone is kept: it is what all else
is held against.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from seriatim.engine.cache import Block, BlockPool
from seriatim.engine.engine import Engine
from seriatim.engine.request import Guide, Request, Speculator
from seriatim.errors import RequestError
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.verify.report import Broken, LeftOut

WHOLE = 1 << 20  # a budget that no prompt fills

SEED = 0xF00DFACE_00000007  # both halves matter

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0},
    "nucleus": {"temperature": 0.7, "top_p": 0.9},
    "five": {"temperature": 2.0, "top_k": 5},
    "likely": {"min_p": 0.05, "temperature": 1.5},
    "penalties": {
        "temperature": 1.2, "top_k": 12, "repetition_penalty": 1.3, "presence_penalty": 0.7,
        "frequency_penalty": 0.9,
    },
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """One request: what it is called in a report, its ids, its options."""

    name: str
    ids: tuple[int, ...]
    options: Mapping[str, Any]
    sample: int = 0
    scored: bool = False  # the logits of its prompt are kept as well
    rows_from: int = 0
    guides: tuple[Guide, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.ids)} ids, {self.name}"


@dataclass
class Outcome:
    """Everything a request gave."""

    ids: list[int]
    stop: int | str | None
    logprobs: list[float]
    top: list[Any]
    rows: dict[int, np.ndarray]  # logits of prompt positions
    usage: Any


class Kept:
    """Takes the logits of prompt positions, each once."""

    def __init__(self) -> None:
        self.rows: dict[int, np.ndarray] = {}

    def __call__(self, position: int, logits: np.ndarray) -> None:
        for i, row in enumerate(logits):
            if position + i in self.rows:
                raise Broken(f"logits of position {position + i}", expected="once", seen="twice")
            self.rows[position + i] = row.copy()


class Spy:
    """A runtime that counts what it is asked to compute."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.tokens, self.steps = runtime, 0, 0
        self.most = 0  # sequences side by side

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def step(self, batch: Batch) -> np.ndarray:
        self.tokens += len(batch.ids)
        self.steps += 1
        self.most = max(self.most, len(batch.block_table))
        return self._runtime.step(batch)


class Flat:
    """Costs under which guesses pay, whatever the machine does meanwhile."""

    def step(self, tokens: int) -> float:
        return 1 + tokens / 16

    def ran(self, tokens: int, seconds: float) -> None:
        """Nothing is learnt from the clock."""


class Poisoned(BlockPool):
    """Fills blocks with NaN as they are handed out and given back: what is stale shows."""

    poison: Callable[[int], object]

    def take(self) -> Block | None:
        block = super().take()
        if block is not None:
            self.poison(block.index)
        return block

    def release(self, blocks: Any) -> None:
        given = list(blocks)
        super().release(given)
        for block in given:
            if block.users == 0 and block.key is None:
                self.poison(block.index)


@dataclass
class Lab:
    """A model, and what the laws are tried with on it."""

    model: Any
    seed: int = 0
    thorough: bool = False
    original: Any = None
    _cases: dict[str, Case] = field(default_factory=dict, repr=False)
    _alone: dict[Case, Outcome] = field(default_factory=dict, repr=False)
    _latest: Any = None  # the only cache whose blocks are its own

    @property
    def spec(self) -> Any:
        return self.model.checkpoint.spec

    @cached_property
    def exact(self) -> bool:
        """Whether the runtime promises bits (contracts.md; the torch reference does not)."""
        return not self.model.runtime.facts.startswith("torch")

    @cached_property
    def close(self) -> float:
        """How far logits and log-probabilities may be apart where no bits are promised.

        Another order of additions turns some of what is rounded by one unit (see `numbers.LIMITS`).
        """
        kinds = self.model.checkpoint.dtypes.keys() | {self.model.facts.partition(", kv ")[2][:3]}
        return 0.0 if self.exact else 2e-3 if kinds == {"f32"} else 0.3

    @property
    def finest(self) -> str:
        """The smallest difference that is seen, in words."""
        return "any bit" if self.exact else f"a difference above {self.close:g}"

    @cached_property
    def small(self) -> bool:
        """Whether a step is cheap enough to try everything."""
        return self.thorough or (self.exact and self.model.checkpoint.parameters < 30_000_000)

    @property
    def most(self) -> int:
        """Ids of the longest case: three blocks and a bit, or what the context holds."""
        length = 450 if self.thorough else 230 if self.small else 110
        return min(self.model.context, self.model.pool.limit * BLOCK, length)

    def ids(self, length: int, *, stem: int = 0) -> tuple[int, ...]:
        """The first of endless random ids; each stem has its own."""
        rng = np.random.default_rng([self.seed, stem])
        return tuple(rng.integers(0, self.model.vocab_size, 1 << 14)[:length].tolist())

    def case(self, name: str, length: int, *, most: int = 8, stem: int = 0, **how: Any) -> Case:
        """A request of random ids, named after one of `SAMPLINGS`; asked for again, the same."""
        key = repr((name, length, most, stem, how))
        if key not in self._cases:
            given = {"max_tokens": most, "seed": SEED + stem, "ignore_end": True, "logprobs": 2}
            ids = self.ids(max(1, min(length, self.most - most)), stem=stem)
            options = given | SAMPLINGS[name] | how.pop("options", {})
            self._cases[key] = Case(name, ids, options, **how)
        return self._cases[key]

    # ------------------------------------------------------------ runs

    def private(
        self,
        *,
        model: Any = None,
        blocks: int | None = None,
        poison: bool = False,
        runtime: Any = None,
        ends: Sequence[int] | None = None,
        context: int | None = None,
        budget: int = WHOLE,
        **limits: Any,
    ) -> Any:
        """The model with an engine and a cold cache of its own; one at a time."""
        own = copy(model or self.model)
        own.runtime = runtime or own.runtime
        limit = own.pool.limit if blocks is None else min(blocks, own.pool.limit)
        own.pool = (Poisoned if poison else BlockPool)(limit, own.runtime.resize)
        if isinstance(own.pool, Poisoned):
            own.pool.poison = own.runtime.poison
        own.ends = own.ends if ends is None else tuple(ends)
        own.context = own.context if context is None else context
        own.engine = Engine(own, costs=Flat(), budget=budget, **limits)
        self._latest = own.pool
        return own

    def alone(self, case: Case) -> Outcome:
        """What it yields by itself: a cold cache, its prompt read whole."""
        if case not in self._alone:
            [self._alone[case]] = self.run(self.private(), [case])
        return self._alone[case]

    def run(
        self,
        own: Any,
        cases: Sequence[Case],
        *,
        every: int = 0,
        speculator: Callable[[Case], Speculator | None] = lambda case: None,
    ) -> list[Outcome]:
        """Run requests together, the cache's books checked after each step.

        Args:
            own: from `private`.
            cases: in order of arrival.
            every: how many steps lie between two arrivals.
            speculator: of each request.
        """
        assert own.pool is self._latest, "another cache over the same blocks has been used since"
        engine, requests = own.engine, []
        steps, limit = 0, 1000 + 8 * sum(len(c.ids) + 64 for c in cases)
        while len(requests) < len(cases) or any(not r.done for r in requests):
            while len(requests) < len(cases) and len(requests) * every <= steps:
                case = cases[len(requests)]
                requests.append(_add(engine, case, speculator(case)))
            engine.step()
            engine.check()
            steps += 1
            if steps > limit:
                stuck = [str(c) for c, r in zip(cases, requests, strict=False) if not r.done]
                raise Broken("the engine", expected="progress", seen=f"none for {stuck[0]}")
        return [_outcome(case, request) for case, request in zip(cases, requests, strict=True)]

    def company(
        self,
        cases: Sequence[Case],
        how: str,
        *,
        own: Any = None,
        every: int = 0,
        speculator: Callable[[Case], Speculator | None] = lambda case: None,
        **private: Any,
    ) -> int:
        """Run requests together and hold each against itself alone; how many values were equal.

        Where `own`, from `private`, has run before, what they yield alone must be known already:
        the blocks are the runtime's. One that promises no bits is given the ids it chose alone.
        """
        alone = [self.alone(case) for case in cases]
        asked = [self.asked(case) for case in cases]
        own = own or self.private(**private)
        together = self.run(own, asked, every=every, speculator=speculator)
        return sum(
            self.compare(case, expected, seen, how)
            for case, expected, seen in zip(cases, alone, together, strict=True)
        )

    def asked(self, case: Case) -> Case:
        """The case as it is run in company: where no bits are promised, with the ids it chose."""
        if self.exact or "forced_ids" in case.options:
            return case
        return replace(case, options={**case.options, "forced_ids": self.alone(case).ids})

    def compare(self, case: Case, expected: Outcome, seen: Outcome, how: str) -> int:
        """Raises at the first place that differs, the earliest position first."""
        count = 0
        for position in sorted(seen.rows):
            if position in expected.rows:
                one, other = expected.rows[position], seen.rows[position]
                self.same_logits(one, other, case=case, position=position, how=how)
                count += len(one)
        first = len(case.ids)
        for i, (a, b) in enumerate(zip(expected.ids, seen.ids, strict=False)):
            if a != b:
                raise Broken(
                    f"position {first + i}, {how}", request=str(case), expected=f"id {a}",
                    seen=f"id {b}",
                )  # fmt: skip
            self._same(expected.logprobs[i], seen.logprobs[i], case, first + i, how)
            if self.exact and expected.top[i] != seen.top[i]:
                raise Broken(
                    f"likeliest ids at position {first + i}, {how}", request=str(case),
                    expected=expected.top[i], seen=seen.top[i],
                )  # fmt: skip
            count += 2
        if (len(expected.ids), expected.stop) != (len(seen.ids), seen.stop):
            raise Broken(
                f"the end, {how}", request=str(case),
                expected=f"{len(expected.ids)} ids, stop {expected.stop!r}",
                seen=f"{len(seen.ids)} ids, stop {seen.stop!r}",
            )  # fmt: skip
        return count

    def same_logits(
        self, one: np.ndarray, other: np.ndarray, *, case: object, position: int, how: str
    ) -> None:
        """Two rows of logits, bit for bit where bits are promised."""
        if self.exact:
            differ = one.view(np.uint32) != other.view(np.uint32)
        else:
            differ = ~(abs(one - other) <= self.close * max(1.0, float(one.std())))
        if differ.any():
            id = int(differ.argmax())
            raise Broken(
                f"logit of id {id} at position {position}, {how}", request=str(case),
                expected=bits(one[id]), seen=bits(other[id]), differ=int(differ.sum()),
            )  # fmt: skip

    def _same(self, a: float, b: float, case: Case, position: int, how: str) -> None:
        if not abs(a - b) <= self.close * max(1.0, abs(a)):
            raise Broken(
                f"log-probability at position {position}, {how}", request=str(case),
                expected=f"{a!r} ({a.hex()})", seen=f"{b!r} ({b.hex()})",
            )  # fmt: skip

    def logits(self, ids: Sequence[int], *, model: Any = None) -> np.ndarray:
        """After each id, from a cold cache: float32 [len(ids), vocabulary]."""
        return self.private(model=model).logits(list(ids))


@contextmanager
def alone_with(model: Any) -> Iterator[None]:
    """Nobody else steps the model meanwhile, and nothing that was cached is trusted afterwards.

    Raises:
        RequestError: requests are under way.
    """
    pool = model.pool
    with pool.lock:
        if any(blocks for holder in pool.holders for blocks in holder.held()):
            raise RequestError(
                "the model is computing requests", fix="end them, or verify a model of its own"
            )
        pool.forget()
        try:
            yield
        finally:
            pool.forget()


def bits(value: np.float32) -> str:
    """A float32 as a person and as a machine reads it."""
    return f"{float(value):.9g} (0x{int(np.float32(value).view(np.uint32)):08x})"


def need(condition: bool, reason: str) -> None:
    """Raises:
    LeftOut: the law says nothing here.
    """
    if not condition:
        raise LeftOut(reason)


def _add(engine: Engine, case: Case, speculator: Speculator | None) -> Request:
    rows = Kept() if case.scored else None
    return engine.add(
        case.ids, sample=case.sample, rows=rows, rows_from=case.rows_from, guides=case.guides,
        speculator=speculator, **case.options,
    )  # fmt: skip


def _outcome(case: Case, request: Request) -> Outcome:
    if request.error is not None:
        raise Broken("the request", request=str(case), expected="no error", seen=str(request.error))
    draws = [*request.draws, *([request.ending] if request.ending else [])]
    return Outcome(
        request.ids[request.prompt :],
        request.stop,
        [d.logprob for d in draws if d.logprob is not None],
        [d.top for d in draws],
        request.rows.rows if isinstance(request.rows, Kept) else {},
        request.usage,
    )
