"""Law 2 again: guesses change how fast ids come, never which, and never their log-probabilities.

An oracle that knows the answer guesses right or wrong at each place, so that every way in which
a guess can be taken or refused is tried; then the real speculators guess.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from seriatim.engine.options import SPECULATORS
from seriatim.engine.request import Request, Speculator
from seriatim.kernels.ops import BLOCK
from seriatim.verify.lab import SAMPLINGS, Case, Lab
from seriatim.verify.report import Broken, Check, Seen

# How many are guessed, and which of them is wrong, counted from 0; the last: none is.
GUESSES = [
    (1, 1), (1, 0), (2, 2), (2, 1), (2, 0), (4, 4), (4, 1), (4, 3), (4, 0), (4, 2), (7, 7), (7, 5)
]  # fmt: skip


class Oracle(Speculator):
    """Guesses what it was told, wrong at a place that changes with each guess.

    Args:
        case: whose answer it knows.
        answer: the ids that follow its prompt.
        first: which of `GUESSES` comes first.
        vocab_size: ids there are, so that a wrong one is one.
    """

    def __init__(self, case: Case, answer: Sequence[int], first: int, vocab_size: int) -> None:
        self._prompt, self._answer, self._size = len(case.ids), [*answer], vocab_size
        self._next = count(first)
        self.drafted = self.right = 0

    def propose(
        self, asked: Sequence[tuple[Request, int]], tokens: int, /
    ) -> Sequence[Sequence[int]]:
        return [self._guess(request, most) for request, most in asked]

    def _guess(self, request: Request, most: int) -> list[int]:
        done = len(request.ids) - self._prompt
        length, wrong = GUESSES[next(self._next) % len(GUESSES)]
        known = self._answer[done : done + min(length, most)]
        guess = [*known[:wrong], *((id + 1) % self._size for id in known[wrong : wrong + 1])]
        guess += known[wrong + 1 :]
        self.drafted += len(guess)
        self.right += min(wrong, len(guess))
        return guess


class Turn:
    """A guide: which third of the vocabulary may come depends on all ids before."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self._size, self._length = vocab_size, length

    def mask(self, ids: Sequence[int], /) -> np.ndarray:
        allowed = np.zeros(-(-self._size // 32) * 32, np.uint8)
        allowed[: self._size] = np.arange(self._size) % 3 == (sum(ids) + len(ids)) % 3
        return np.packbits(allowed, bitorder="little").view(np.uint32)

    def complete(self, ids: Sequence[int], /) -> bool:
        return len(ids) >= self._length


def push(ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """A processor: what it favours depends on every id before."""
    logits = logits.copy()
    logits[(7 * np.arange(5) + sum(ids) + len(ids)) % len(logits)] += 4
    return logits


def guessing(lab: Lab) -> Seen:
    """Every sampling with guesses right and wrong at each place: alone, together, cut short."""
    cases = chosen(lab)
    equal, drafted, right = 0, 0, 0
    for number, case in enumerate(cases):
        oracles, alone = _Oracles(lab, number), lab.alone(case)
        [seen] = lab.run(lab.private(), [lab.asked(case)], speculator=oracles)
        equal += lab.compare(case, alone, seen, "with guesses")
        _counted(case, seen.usage, oracles)
        drafted, right = drafted + oracles.drafted, right + oracles.right
    few = 9 if lab.small else 16
    tight = 2 * len(cases) + len(cases) // 2
    ways = {
        "together, with guesses": {},
        f"together, with guesses, {few} ids in a step": {"budget": few},
        "with guesses in a small cache": {"blocks": tight, "most": 4},
    }
    for how, limits in list(ways.items())[0 if lab.small else 1 :]:
        if lab.model.pool.limit >= tight:
            oracles = _Oracles(lab, 1)
            equal += lab.company(cases, how, speculator=oracles, **limits)
            right += oracles.right
    if not right:
        raise Broken("the engine", expected="guesses that are taken", seen="none was asked for")
    return Seen(
        equal, f"any id or bit of a log-probability; {drafted} guesses alone, {right} right"
    )


def drafted(lab: Lab) -> Seen:
    """What `speculate` and `draft` name, on prompts that repeat themselves, against none."""
    cases, equal = _repeating(lab), 0
    ways: dict[str, dict[str, Any]] = {
        f"speculate={name!r}{'' if most is None else f', draft_tokens={most}'}": {
            "speculate": name, "draft_tokens": most
        } for name in SPECULATORS for most in (None, 3)
    }  # fmt: skip
    if lab.small:
        ways["the model as its own draft"] = {"draft": lab.model.load(), "draft_tokens": 4}
    guesses: dict[str, tuple[int, int]] = {}
    alone = [lab.alone(case) for case in cases]
    for how, options in ways.items():
        asked = [replace(c, options={**lab.asked(c).options, **options}) for c in cases]
        together = lab.run(lab.private(), asked)
        for case, expected, seen in zip(cases, alone, together, strict=True):
            equal += lab.compare(case, expected, seen, f"with {how}")
        sums = [sum(getattr(o.usage, n) for o in together) for n in ("drafted", "accepted")]
        guesses[how] = (sums[0], sums[1])
    if not any(taken for _, taken in guesses.values()):
        raise Broken("the speculators", expected="guesses that are taken", seen=guesses)
    shown = "; ".join(f"{how}: {taken} of {made}" for how, (made, taken) in guesses.items())
    return Seen(equal, f"any id or log-probability. Guesses taken: {shown}")


def _repeating(lab: Lab) -> list[Case]:
    """Prompts of one phrase again and again; answers that go on with it, or are few ids' choice."""
    most, phrase = 40 if lab.small else 12, lab.ids(9, stem=130)
    cases = []
    for i, (name, how) in enumerate((
        ("greedy", {}),
        ("plain", {"forced_ids": (phrase * 9)[4 : 4 + most - 2]}),
        ("plain", {"allowed_ids": sorted(set(phrase[:3])), "frequency_penalty": 0.3}),
        ("five", {"repetition_penalty": 1.2}),
    )):  # fmt: skip
        case = lab.case(name, 30, most=most, stem=131 + i, options=how)
        cases.append(replace(case, ids=(phrase * 9)[: 40 + i], name=f"{name}, a phrase repeated"))
    return cases


class _Oracles:
    """An oracle for each case, and their sums."""

    def __init__(self, lab: Lab, first: int) -> None:
        self._lab, self._first, self.made = lab, first, list[Oracle]()

    def __call__(self, case: Case) -> Oracle:
        answer, size = self._lab.alone(case).ids, self._lab.model.vocab_size
        self.made.append(Oracle(case, answer, self._first + len(self.made), size))
        return self.made[-1]

    @property
    def drafted(self) -> int:
        return sum(oracle.drafted for oracle in self.made)

    @property
    def right(self) -> int:
        return sum(oracle.right for oracle in self.made)


def chosen(lab: Lab) -> list[Case]:
    """Samplings whose next id depends on all before: penalties, a processor, a guide, an end."""
    most = 30 if lab.small else 9
    few = sorted(set(lab.ids(5, stem=100)))
    tired = {"allowed_ids": few, "frequency_penalty": 1.5, "presence_penalty": 1.0}
    more: list[tuple[str, dict[str, Any]]] = [
        ("plain", {**tired, "temperature": 2.0}),
        ("greedy", tired),
        ("plain", {"allowed_ids": few, "repetition_penalty": 5.0, "temperature": 2.0}),
        ("nucleus", {"processors": [push], "temperature": 2.0}),
        ("plain", {"allowed_ids": few, "dry_multiplier": 3.0, "dry_allowed_length": 1}),
        ("plain", {"typical_p": 0.9, "xtc_probability": 0.5, "dynatemp_range": 0.4}),
        ("greedy", {"processors": [push]}),
        ("nucleus", {"forced_ids": lab.ids(most // 2, stem=101)}),
    ]
    plain = [lab.case(name, 30 + i, most=most, stem=102 + i) for i, name in enumerate(SAMPLINGS)]
    told = [
        lab.case(name, BLOCK - 9 + i, most=most, stem=110 + i, sample=i % 3, options=how)
        for i, (name, how) in enumerate(more)
    ]
    guides = (Turn(lab.model.vocab_size, most - 3),)
    guided = [
        lab.case(name, 20, most=most, stem=120, guides=guides) for name in ("plain", "greedy")
    ]
    return [*plain, *told, *guided] if lab.small else [plain[0], *told[:4], guided[0]]


def _counted(case: Case, usage: Any, oracles: _Oracles) -> None:
    """As many guesses were taken as were right, no more and no fewer."""
    expected, seen = (oracles.drafted, oracles.right), (usage.drafted, usage.accepted)
    if seen != expected:
        raise Broken(
            "usage.drafted and usage.accepted", request=str(case), expected=list(expected),
            seen=list(seen),
        )  # fmt: skip


HELP = "generate without speculate and draft, and report this with the table"
CHECKS = [
    Check("speculation", "ids and log-probabilities with guesses, right and wrong at each place, "
          "and without", HELP, guessing),
    Check("speculators", "ids and log-probabilities with each speculator, and without", HELP,
          drafted),
]  # fmt: skip
