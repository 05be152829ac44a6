"""What a beam search keeps between steps, and how it chooses. No model, codec or text here.

As `transformers` does it (generation/utils.py, `_beam_search`, 5.23): which beams go on, which
count as finished, and when no better one is expected.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

import numpy as np

from seriatim.engine.request import Request
from seriatim.engine.sampler import log_sum
from seriatim.engine.sampler_reference import processed, unpacked


@dataclass(frozen=True)
class How:
    """What a search follows, and when it ends."""

    beams: int
    groups: int
    diversity: float
    length_penalty: float
    early_finish: bool | str

    @property
    def width(self) -> int:
        """Beams of a group."""
        return self.beams // self.groups


class Beam(NamedTuple):
    """A continuation under way: a request that no engine has seen, and the sum of its scores."""

    request: Request
    total: float


class Next:
    """A sink for the logits after a beam: what may follow, and at which total.

    Attributes:
        own: the model's log-probabilities, float64 [id].
        totals: of the beam and each id, -inf for what may not come, float64 [id].
    """

    def __init__(self, beam: Beam, ends: Sequence[int]) -> None:
        self.beam, self.ends = beam, ends
        self.own = self.totals = np.empty(0)

    def __call__(self, position: int, logits: np.ndarray) -> None:
        """Takes logits [1, V]; in the engine's step, which names the fault of a processor."""
        request, total = self.beam
        self.own = logits[0].astype(np.float64) - log_sum(logits)[0]
        scores = processed(self.own, request.options.sampling, request.ids, request.prompt)
        self.totals = np.where(self._allowed(len(scores)), total + scores, -inf)

    def _allowed(self, size: int) -> np.ndarray:
        """bool [id]."""
        request, how = self.beam.request, self.beam.request.options.sampling
        allowed = np.full(size, how.allowed_ids is None)
        allowed[list(how.allowed_ids or ())] = True
        allowed[list(how.banned_ids)] = False
        if request.generated < request.options.min_tokens and not request.options.ignore_end:
            allowed[list(self.ends)] = False
        for guide in request.guides:
            if (mask := guide.mask(request.answer)) is not None:
                allowed &= unpacked(mask)[:size]
        return allowed


@dataclass
class Group:
    """Beams that compete with each other: those that go on and the best that are finished."""

    how: How
    reach: float  # the most ids that a candidate can have
    live: list[Beam]
    finished: list[tuple[float, Beam]] = field(default_factory=list)  # by falling score

    def take(self, children: Iterator[Beam]) -> None:
        """Choose among all that may come next, given by falling total.

        As in `transformers`: what ends counts only among the first `width`, and the first `width`
        that do not end go on.
        """
        width, self.live = self.how.width, []
        for rank, child in enumerate(children):
            if not child.request.done:
                self.live.append(child)
            elif rank < width:
                self.finished.append(
                    (self._score(child.total, child.request.usage.generated), child)
                )
            if len(self.live) == width:
                break
        self.finished = sorted(self.finished, key=lambda f: -f[0])[:width]
        if self._over():
            self.live = []

    def _over(self) -> bool:
        """Whether no live beam is thought to enter the best any more."""
        if not self.live or len(self.finished) < self.how.width:
            return not self.live
        if self.how.early_finish is True:
            return True
        best = self.live[0]
        later = self.how.early_finish == "never" and self.how.length_penalty > 0
        length = self.reach if later else best.request.generated
        return self._score(best.total, length) <= self.finished[-1][0]

    def _score(self, total: float, length: float) -> float:
        return total / length**self.how.length_penalty


def ranked(values: np.ndarray) -> Iterator[int]:
    """Places by falling value, equals by rising place, without those of -inf: as many as are read.

    Example:
        >>> list(ranked(np.array([1.0, 3.0, -np.inf, 3.0, 2.0])))
        [1, 3, 4, 0]
    """
    count = np.count_nonzero(values > -inf)
    done, size = 0, 256
    while done < count:
        least = np.partition(values, -min(size, count))[-min(size, count)]
        places = np.flatnonzero(values >= least)
        places = places[np.argsort(-values[places], kind="stable")]
        yield from places[done:].tolist()
        done, size = len(places), 4 * len(places)
