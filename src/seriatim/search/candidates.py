"""What a search or a selection gives back: what was chosen, and everything it was chosen from."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from seriatim.results import Result


@dataclass(frozen=True)
class _OfResult:
    """What stands for a result shows its output, text and ids as its own."""

    result: Result

    @property
    def output(self) -> Any:
        return self.result.output

    @property
    def text(self) -> str:
        return self.result.text

    @property
    def ids(self) -> list[int]:
        return self.result.ids


@dataclass(frozen=True)
class Candidate(_OfResult):
    """One of the answers that were compared.

    Attributes:
        result: as `generate` gives it, with log-probabilities.
        score: what it is judged by; the higher, the better.
        sample: which of the `n` samples it is; of a beam search, its rank.
        answer: what `vote` read in it, None if nothing.
    """

    score: float
    sample: int
    answer: str | None = None


@dataclass(frozen=True)
class Choice(_OfResult):
    """What `beam`, `best_of` or `mbr` chose.

    Attributes:
        result: the best candidate's; its `samples` are the `n` best.
        score: the best candidate's.
        candidates: all of them, by falling score; of equal ones the lowest sample first.
    """

    score: float
    candidates: list[Candidate] = field(repr=False)

    @property
    def samples(self) -> list[Result]:
        return self.result.samples


@dataclass(frozen=True)
class Vote:
    """What `vote` found.

    Attributes:
        answer: the one of most weight, of equal ones the first seen; None if there is none.
        counts: how many candidates gave each answer, in the order in which they were seen.
        weights: what these count together; `counts` itself unless `weights` was given.
        share: the weight of `answer` in that of all candidates, those without an answer included.
        unanswered: how many candidates have no answer.
        candidates: all of them, by sample; the score of one is its weight.
    """

    answer: str | None
    counts: dict[str, int]
    weights: dict[str, float]
    share: float
    unanswered: int
    candidates: list[Candidate] = field(repr=False)


def by_score(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The best first; of equal ones the lowest sample."""
    return sorted(candidates, key=lambda c: (-c.score, c.sample))
