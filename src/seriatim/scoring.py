"""How a sequence longer than the context is scored, and what the scores say. No model here."""

from collections.abc import Iterator, Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np

from seriatim.codecs import Codec
from seriatim.engine.sampler import likeliest, log_sum
from seriatim.errors import RequestError

RUN = 128  # consecutive ids are one draw for the standard error: neighbours resemble each other


class Window(NamedTuple):
    """ids[:lead] then ids[start:end], scored from its own position `first` on."""

    lead: int
    start: int
    end: int
    first: int


def windows(count: int, *, context: int, lead: int, first: int) -> Iterator[Window]:
    """Windows of `context` ids with stride half, so that each id is scored once.

    Args:
        count: ids in all.
        context: ids in a window.
        lead: start ids in front, repeated in each window.
        first: the first id to score, at least 1.

    Source: contracts.md, 26: the first window scores all its ids, later ones their second half.

    Raises:
        RequestError: a window has no room for an id to predict.
    """
    if context < max(lead, 1) + 1:
        raise RequestError(
            f"the context is {context}", expected=f"at least {max(lead, 1) + 1} ids to score in"
        )
    if first < context:
        yield Window(lead, lead, min(context, count), first)
    stride = max(context // 2, 1)
    for begin in range(context, count, stride):
        end = min(begin + stride, count)
        if end > first:
            start = max(lead, end - (context - lead))
            yield Window(lead, start, end, max(begin, first) - start + lead)


def cut(ids: list[int], length: int, start: tuple[int, ...] = ()) -> list[list[int]]:
    """Windows of at most `length` ids, each beginning with `start`; a lone last id is left out."""
    step = length - len(start)
    pieces = [ids[i : i + step] for i in range(0, len(ids), step)]
    return [[*start, *piece] for piece in pieces if len(piece) + len(start) > 1]


class Logprobs:
    """A sink for logits: keeps log p of each id of a sequence given those before it.

    Args:
        ids: the sequence.
        first: the first one whose log-probability is wanted, at least 1.
        top: how many of the likeliest ids to keep at each place.
    """

    def __init__(self, ids: Sequence[int], first: int = 1, top: int = 0) -> None:
        self.ids, self.first, self.top = list(ids), first, top
        self.values = np.zeros(len(ids))
        self._likeliest: list[tuple[tuple[int, float], ...]] = [()] * len(ids)

    def __call__(self, position: int, logits: np.ndarray) -> None:
        """Takes logits [R, V]; row i predicts the id at position + 1 + i."""
        skip = max(0, self.first - position - 1)
        start = position + 1 + skip
        following = self.ids[start : position + 1 + len(logits)]
        rows = logits[skip : skip + len(following)]
        if not len(rows):
            return
        chosen, sums = rows[np.arange(len(rows)), following].astype(np.float64), log_sum(rows)
        self.values[start : start + len(rows)] = chosen - sums
        for place, (row, total) in enumerate(zip(rows, sums.tolist(), strict=True), start):
            self._likeliest[place] = likeliest(row, self.top, total)

    def listed(self) -> list[float | None]:
        """One for each id; None where nothing stands before it."""
        return [None, *self.values[1:].tolist()]

    def likeliest(self) -> list[list[tuple[int, float]] | None]:
        """The likeliest (id, log-probability) at the place of each id, in the same manner."""
        return [None, *map(list, self._likeliest[1:])]


def standard_error(ids: Sequence[int], logprobs: np.ndarray, codec: Codec) -> float | None:
    """One standard error of bits per unit: a ratio of sums over runs of 128 ids."""
    scored = ids[len(ids) - len(logprobs) :]
    runs = range(0, len(scored) // RUN * RUN, RUN)
    if len(runs) < 2:
        return None
    bits = np.array([-logprobs[i : i + RUN].sum() / log(2) for i in runs])
    units = np.array([codec.units(scored[i : i + RUN]) for i in runs], np.float64)
    return ratio_error(bits, units)


def ratio_error(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """One standard error of sum(sums) / sum(counts), the pairs taken as independent draws."""
    if counts.sum() == 0:
        return None
    off = sums - sums.sum() / counts.sum() * counts
    draws = len(sums)
    return sqrt(float((off**2).sum()) * draws / (draws - 1)) / float(counts.sum())
