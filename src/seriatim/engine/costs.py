"""What a step of so many tokens takes: measured, and kept up to date by the steps themselves.

Guesses are weighed by it (`controller.py`), and no id depends on it.
"""

from itertools import pairwise
from time import perf_counter
from typing import Protocol

import numpy as np

from seriatim.engine.cache import BlockPool
from seriatim.kernels.ops import Batch, Runtime

ROWS = (1, 2, 3, 4, 6, 8, 12, 16)  # measured at first, ascending: a slow model stops half-way
PATIENCE = 0.15  # seconds for that; the step under way still ends
DRIFT, OWN = 0.2, 0.05  # how far one step moves the whole curve, and its own point on it


class Costs(Protocol):
    """Seconds of a step by its number of tokens, all of them with logits.

    `step` is first asked before a step: it may run the model, whose logits are then gone.
    """

    def step(self, tokens: int, /) -> float:
        """What it would take."""
        ...

    def ran(self, tokens: int, seconds: float, /) -> None:
        """What one took."""
        ...


class Measures(Protocol):
    """What is measured: a model."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def pool(self) -> BlockPool: ...


class Measured:
    """A curve through a few measured steps, which every further step corrects.

    A busy machine slows all steps alike, and only ratios decide: most of a difference therefore
    moves the whole curve, and the rest the one point.
    """

    def __init__(self, model: Measures) -> None:
        self._model = model
        self._shape: list[float] = []  # by tokens, relative
        self._scale = 1.0

    def step(self, tokens: int) -> float:
        if len(self._shape) <= tokens:
            self._reach(tokens)
        return self._scale * self._shape[tokens]

    def ran(self, tokens: int, seconds: float) -> None:
        if not self._shape:  # nobody has asked
            return
        ratio = min(2.0, max(0.5, seconds / self.step(tokens)))  # a hiccup counts as twice
        self._scale *= ratio**DRIFT
        self._shape[tokens] *= ratio**OWN

    def _reach(self, tokens: int) -> None:
        """Go on along the line on which the second half of the curve lies."""
        shape = self._shape = self._shape or curve(self._measure())
        last, middle = len(shape) - 1, len(shape) // 2
        slope = (shape[last] - shape[middle]) / (last - middle)
        shape += [shape[last] + slope * i for i in range(1, 2 * tokens - last + 1)]

    def _measure(self) -> dict[int, float]:
        """The faster of two steps for each number of rows, on a block that is given back."""
        began, found = perf_counter(), {}
        with self._model.pool.lock:
            block = self._model.pool.take()
            if block is None:
                return {1: 1.0, 5: 2.2}  # nothing to measure on: as an ordinary processor behaves
            try:
                self._time(block.index, 1)  # maps the weights
                for rows in ROWS:
                    if perf_counter() - began > PATIENCE and len(found) > 1:
                        break
                    found[rows] = min(self._time(block.index, rows) for _ in range(2))
            finally:
                self._model.pool.release([block])
        return found

    def _time(self, block: int, rows: int) -> float:
        place, nought = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
        batch = Batch(nought, place, nought, np.full((1, 1), block, np.int32), place)
        began = perf_counter()
        self._model.runtime.step(batch)
        return perf_counter() - began


def curve(points: dict[int, float]) -> list[float]:
    """Straight lines through points (tokens, seconds) from 0 tokens on, never falling.

    Example:
        >>> curve({1: 2.0, 2: 1.0, 4: 5.0})
        [2.0, 2.0, 2.0, 3.5, 5.0]
    """
    (first, high), *_ = known = sorted(points.items())
    line = [high] * (first + 1)
    for (a, _), (b, seconds) in pairwise(known):
        low, high = high, max(high, seconds)
        line += [low + (high - low) * i / (b - a) for i in range(1, b - a + 1)]
    return line
