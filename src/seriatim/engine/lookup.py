"""Guesses from a text that requests share: what follows there where it has the last ids.

A suffix array: no copy per request, and no change after it is made.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from seriatim.engine.propose import LONGEST, kind
from seriatim.errors import RequestError

MOST_TEXT = 1 << 20  # ids of a text
DEPTH = 32  # ids by which its places are sorted


class Text:
    """A text to guess from: its places in the order of the `DEPTH` ids that begin there.

    Raises:
        RequestError: it has no id, or more than `MOST_TEXT`.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        if not 0 < len(ids) <= MOST_TEXT:
            raise RequestError(
                f"the text to draft from has {len(ids)} ids", expected=f"1 to {MOST_TEXT}"
            )
        self.ids = array("i", [*ids, *[-1] * DEPTH])  # so that every place has DEPTH ids
        self.order = array("i", _sorted(np.array(ids, np.int64)).astype(np.int32).tobytes())


def _sorted(ids: np.ndarray) -> np.ndarray:
    """By doubling (Manber and Myers 1990): the rank of 2 w ids is that of two neighbours of w."""
    rank, width = np.unique(ids, return_inverse=True)[1], 1
    while width < DEPTH:
        later = np.zeros_like(rank)
        later[: max(0, len(ids) - width)] = 1 + rank[width:]
        rank = np.unique(rank * (len(ids) + 1) + later, return_inverse=True)[1]
        width *= 2
    return np.argsort(rank, kind="stable")


class Lookup:
    """What followed in a `Text` where the last ids occur in it.

    Example:
        >>> index = Lookup(Text([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3, 4]))
        >>> for id in [9, 1, 2]:
        ...     _ = index.add(id)
        >>> index.guess(2)[0]
        [3, 4]
    """

    kinds, reach = 3 * (LONGEST + 1), DEPTH

    def __init__(self, text: Text) -> None:
        self._text = text
        self._ids: list[int] = []
        self._low, self._high, self._length = 0, len(text.order), 0  # places with the last ids

    def add(self, id: int) -> tuple[int, bool] | None:
        ids, kinds = self.guess(1)
        self._ids = [*self._ids[1 - DEPTH :], id]
        self._low, self._high = self._narrow(self._low, self._high, self._length, id)
        self._length += 1
        if self._low == self._high or self._length == DEPTH:
            self._search()
        return (kinds[0], ids[0] == id) if ids else None

    def guess(self, most: int) -> tuple[list[int], list[int]]:
        ids, kinds = [], []
        low, high, length = self._low, self._high, self._length
        while 0 < length < DEPTH and len(ids) < most:
            middle = (low + high) // 2  # if one id comes in most places, it comes in this one
            id = self._text.ids[self._text.order[middle] + length]
            if id < 0:
                break
            left, right = self._narrow(low, high, length, id)
            ids.append(id)
            kinds.append(kind(length, (right - left) / (high - low)))
            low, high, length = left, right, length + 1
        return ids, kinds

    def _narrow(self, low: int, high: int, length: int, id: int) -> tuple[int, int]:
        """Those places at which `id` comes after `length` ids."""
        ids, order = self._text.ids, self._text.order
        if high - low == 1:
            return (low, high) if ids[order[low] + length] == id else (low, low)
        key = lambda place: ids[place + length]  # noqa: E731
        low = bisect_left(order, id, low, high, key=key)
        return low, bisect_right(order, id, low, high, key=key)

    def _search(self) -> None:
        """The places of about as many last ids as occur."""
        self._low, self._high, self._length = 0, len(self._text.order), 0
        for size in (1, 2, 4, 8, 16):
            low, high = 0, len(self._text.order)
            for length, id in enumerate(self._ids[-size:]):
                low, high = self._narrow(low, high, length, id)
            if low == high or size > len(self._ids):
                return
            self._low, self._high, self._length = low, high, size
