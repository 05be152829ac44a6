"""Scores added up, and those of two models beside each other."""

from collections.abc import Iterable, Iterator, Sequence
from math import log, sqrt
from pathlib import Path
from typing import Any, Self

import numpy as np

from seriatim.codecs import Codec, Records
from seriatim.codecs._files import named
from seriatim.errors import RequestError, SeriatimError
from seriatim.measure.statistics import Difference, chance, ratios_error
from seriatim.results import Score
from seriatim.scoring import RUN, standard_error


def objects(codec: Codec, path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a file, one at a time: it is one, or holds several, each with its name.

    Raises:
        FileError: the file, or one of its objects, is refused.
    """
    if not isinstance(codec, Records):
        yield "", codec.read(path)
        return
    for place, raw in codec.records(path):
        if isinstance(raw, SeriatimError):
            with named(path):
                raise raw
        yield getattr(raw, "name", "") or place, raw


class Tally:
    """Scores of any number of objects as one, in constant memory.

    Their errors add in quadrature; where one is too short to have its own, objects are taken as
    independent draws of a ratio of sums.
    """

    def __init__(self) -> None:
        self.count = self.ids = self.units = self.unscored = self.windows = 0
        self.nats, self._squares = 0.0, np.zeros(3)
        self._known, self._errors = 0, 0.0
        self.unit: str | None = None

    def add(self, score: Score) -> Self:
        """Takes one more; itself.

        Raises:
            RequestError: it is in another unit.
        """
        if self.count and score.unit != self.unit:
            raise RequestError(f"scores in {self.unit}s and in {score.unit}s", expected="one unit")
        self.unit, units = score.unit, score.units or 0
        self.count, self.ids = self.count + 1, self.ids + len(score.ids)
        self.units, self.nats = self.units + units, self.nats + score.nats
        self.unscored, self.windows = self.unscored + score.unscored, self.windows + score.windows
        if score.error is not None:
            self._known, self._errors = self._known + 1, self._errors + (score.error * units) ** 2
        bits = score.nats / log(2)
        self._squares += bits * bits, bits * units, units * units
        return self

    @classmethod
    def of(cls, scores: Iterable[Score]) -> Self:
        """All of some."""
        tally = cls()
        for score in scores:
            tally.add(score)
        return tally

    @property
    def rate(self) -> float | None:
        """Bits per unit, if there are units."""
        return self.nats / log(2) / self.units if self.units else None

    @property
    def facts(self) -> dict[str, Any]:
        """What a score says, by name."""
        return {
            "nats": self.nats,
            "units": self.units,
            "unit": self.unit,
            "bits_per_unit": self.rate,
            "error": self.error,
            "unscored": self.unscored,
            "windows": self.windows,
            "scored": self.ids,
        }

    @property
    def error(self) -> float | None:
        """One standard error of the rate, if there is enough to tell."""
        if (rate := self.rate) is None:
            return None
        if self._known == self.count:
            return sqrt(self._errors) / self.units
        if self.count < 2:
            return None
        bits, both, units = self._squares.tolist()
        # The sum of (bits - rate * units)^2, as `ratio_error` has it.
        off = max(bits - 2 * rate * both + rate * rate * units, 0.0)
        return sqrt(off * self.count / (self.count - 1)) / self.units


def difference(first: Sequence[Score], second: Sequence[Score], codec: Codec) -> Difference:
    """Bits per unit of one model minus another's, on the same sequences.

    Where both models have the same ids, runs of 128 of them are the pairs; where they have not, or
    a sequence has fewer than two runs, whole sequences are.

    Args:
        first: a score of each sequence.
        second: likewise.
        codec: of the first model.

    Raises:
        RequestError: the units differ, or nothing was scored.
    """
    one, other = Tally.of(first), Tally.of(second)
    if one.unit != other.unit or one.rate is None or other.rate is None:
        raise RequestError(
            f"the models count {one.units} {one.unit}s and {other.units} {other.unit}s",
            expected="both some, of one unit",
        )
    value = one.rate - other.rate
    pairs = [_paired_error(a, b, codec) for a, b in zip(first, second, strict=True)]
    known = [error * (a.units or 0) for error, a in zip(pairs, first, strict=True) if error]
    if None not in pairs:
        items = sum(len(score.ids) // RUN for score in first)
        error = sqrt(sum(part**2 for part in known)) / (one.units or 1)
        return Difference(value, error, chance(value, error, items - len(first)), items)
    error = ratios_error(sums(first), sums(second))
    return Difference(value, error, chance(value, error, len(first) - 1), len(first))


def sums(scores: Sequence[Score]) -> tuple[np.ndarray, np.ndarray]:
    """Bits and units of each sequence."""
    bits = np.array([score.nats / log(2) for score in scores])
    return bits, np.array([score.units or 0 for score in scores], np.float64)


def _paired_error(a: Score, b: Score, codec: Codec) -> float | None:
    """Of the difference in bits per unit, over runs of the ids that both have."""
    if (a.ids, a.units) != (b.ids, b.units):
        return None
    return standard_error(a.ids, np.array(a.logprobs) - np.array(b.logprobs), codec)
