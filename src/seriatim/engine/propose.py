"""Guesses that cost nothing: what followed the last ids when they last came, here or in a text.

Each index follows one sequence id by id, in O(1) amortised. Before it takes an id it has guessed
one, so how often it is right is known for every id, whether or not its guesses were ever computed:
`Rates` are by kind of guess (how many ids matched, how clear the continuation was).

Sources: prompt lookup (Saxena 2023), SuffixDecoding (Oliaro et al. 2024), the suffix automaton
(Blumer et al. 1985).
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from seriatim.errors import RequestError

LONGEST = 24  # matches of more ids than that are all one kind
MOST_TEXT = 1 << 20  # ids of a text that guesses are taken from
DEPTH = 32  # ids by which the places in such a text are sorted
BRANCHES = 64  # continuations that are compared; of more, none is likely enough


class Guess(NamedTuple):
    """Ids that may follow, and how likely each is if those before it are right."""

    ids: Sequence[int] = ()
    chances: Sequence[float] = ()


class Index(Protocol):
    """Follows one sequence, and says what comes next.

    Attributes:
        kinds: how many kinds of guesses it makes.
        reach: how many of the last ids its guesses depend on; 0: all.
    """

    kinds: int
    reach: int

    def add(self, id: int, /) -> tuple[int, bool] | None:
        """Take the next id; the kind of guess that was made of it, and whether it was right."""
        ...

    def guess(self, most: int, /) -> tuple[list[int], list[int]]:
        """At most so many ids that may follow, and their kinds."""
        ...


# ---- indices -----------------------------------------------------------------------------------


class Ngram:
    """What followed where the last `size` ids came last; if they never came, one fewer, ...

    A match is followed for as long as it holds, so its length is the real one.

    Example:
        >>> index = Ngram()
        >>> for id in [7, 8, 9, 5, 7, 8]:
        ...     _ = index.add(id)
        >>> index.guess(6)
        ([9, 5, 7, 8, 9, 5], [2, 3, 4, 5, 6, 7])
    """

    kinds, reach = LONGEST + 1, 0

    def __init__(self, size: int = 3) -> None:
        self._ids: list[int] = []
        self._sizes = range(size, 0, -1)
        self._after: dict[tuple[int, ...], int] = {}  # where the latest such ids ended
        self._at = self._length = 0  # the guess is ids[at:]; so many ids before it match

    def add(self, id: int) -> tuple[int, bool] | None:
        ids, length = self._ids, self._length
        right = length > 0 and ids[self._at] == id
        ids.append(id)
        end, found = len(ids), 0
        for size in self._sizes:
            if size <= end:
                key = tuple(ids[-size:])
                if not (right or found) and (at := self._after.get(key)) is not None:
                    self._at, found = at, size
                self._after[key] = end
        if right:
            self._at, found = self._at + 1, length + 1
        self._length = found
        return (min(length, LONGEST), right) if length else None

    def guess(self, most: int) -> tuple[list[int], list[int]]:
        if not self._length:
            return [], []
        at, ids = self._at, self._ids
        period = len(ids) - at  # beyond the end the text goes on as it has begun to repeat itself
        return (
            [ids[at + i % period] for i in range(most)],
            [min(self._length + i, LONGEST) for i in range(most)],
        )


class Suffix:
    """What most often followed the longest run of last ids that came before: a suffix automaton.

    State 0 is the root. A state stands for strings that end at the same places: its longest has
    `length` ids, `link` leads to the longest that ends at more places, `count` says at how many.
    The link of the whole text is thus the longest suffix that occurs elsewhere.

    Example:
        >>> index = Suffix()
        >>> for id in [1, 2, 9, 1, 2, 8, 1, 2, 8, 5, 1, 2]:
        ...     _ = index.add(id)
        >>> index.guess(2)[0]
        [8, 1]
    """

    kinds, reach = 3 * (LONGEST + 1), 0

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._count = [-1], [0], [0]
        self._last = 0

    def add(self, id: int) -> tuple[int, bool] | None:
        state = max(self._link[self._last], 0)
        guessed = self._follow(state, self._length[state])
        self._extend(id)
        return None if guessed is None else (guessed[1], guessed[0] == id)

    def guess(self, most: int) -> tuple[list[int], list[int]]:
        ids, kinds = [], []
        state = max(self._link[self._last], 0)
        matched = self._length[state]
        while len(ids) < most and (step := self._follow(state, matched)) is not None:
            ids.append(step[0])
            kinds.append(step[1])
            state, matched = step[2], matched + 1
        return ids, kinds

    def _follow(self, state: int, matched: int) -> tuple[int, int, int] | None:
        """The likeliest id after a state, the kind of guess that it is, and the state it leads to.

        The end of the text has no continuation: what its longest suffix had is taken.
        """
        while state > 0 and not self._next[state]:
            state = self._link[state]
            matched = min(matched, self._length[state])
        following = self._next[state]
        if state <= 0 or len(following) > BRANCHES:
            return None
        if len(following) == 1:
            ((id, target),) = following.items()
            return id, _kind(matched, 1.0), target
        counts = [self._count[target] for target in following.values()]
        best = max(range(len(counts)), key=counts.__getitem__)
        id, target = [*following.items()][best]
        return id, _kind(matched, counts[best] / sum(counts)), target

    def _extend(self, id: int) -> None:
        """Blumer's construction, with the places counted."""
        length, link, following = self._length, self._link, self._next
        new = self._state({}, length[self._last] + 1, 0, 0)
        at, self._last = self._last, new
        while at >= 0 and id not in following[at]:
            following[at][id] = new
            at = link[at]
        if at >= 0:
            old = following[at][id]
            link[new] = old if length[old] == length[at] + 1 else self._split(at, id, old)
        at = new
        for _ in range(DEPTH):  # the shortest of very many suffixes are counted too low
            if at <= 0:
                return
            self._count[at] += 1
            at = link[at]

    def _split(self, at: int, id: int, old: int) -> int:
        """The state of the shorter of `old`'s strings, which now end at one more place."""
        new = self._state(
            dict(self._next[old]), self._length[at] + 1, self._link[old], self._count[old]
        )
        self._link[old] = new
        while at >= 0 and self._next[at].get(id) == old:
            self._next[at][id] = new
            at = self._link[at]
        return new

    def _state(self, following: dict[int, int], length: int, link: int, count: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._link.append(link)
        self._count.append(count)
        return len(self._link) - 1


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
            kinds.append(_kind(length, (right - left) / (high - low)))
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


def _kind(matched: int, share: float) -> int:
    """How many ids match, and how clear it is what follows."""
    clear = 2 if share == 1 else int(share > 0.5)
    return clear * (LONGEST + 1) + min(matched, LONGEST)


# ---- how often they are right ------------------------------------------------------------------


class Rates:
    """The share of right guesses of each kind, the latest counting most.

    Args:
        shares: of each kind, before any is seen.
        elder: told everything too.
        memory: about how many guesses of a kind are remembered.
    """

    def __init__(
        self, shares: Sequence[float], *, elder: "Rates | None" = None, memory: int = 24
    ) -> None:
        self.shares, self._weight = list(shares), [4] * len(shares)
        self._memory, self._elder = memory, elder

    def younger(self) -> "Rates":
        """Those of one request among many, which begin with what is known of all."""
        return Rates(self.shares, elder=self)

    def learn(self, kind: int, right: bool) -> None:
        weight = self._weight[kind] = min(self._weight[kind] + 1, self._memory)
        self.shares[kind] += (right - self.shares[kind]) / weight
        if self._elder is not None:
            self._elder.learn(kind, right)


def expected(kinds: int) -> Rates:
    """Before any guess of an index is seen: a longer match is a better one."""
    lengths = (kind % (LONGEST + 1) for kind in range(kinds))
    return Rates([length / (length + 3) for length in lengths], memory=256)


class Proposer:
    """Guesses what follows one request, from several indices of its ids.

    Args:
        indices: with what is known of the guesses of each; of two the likelier is taken.
    """

    def __init__(self, *indices: tuple[Index, Rates]) -> None:
        self._seen, self._indices = 0, indices

    def guess(self, ids: Sequence[int], most: int) -> Guess:
        """At most so many ids that may follow `ids`, which begin with what was given before."""
        new = ids[self._seen :]
        self._seen = len(ids)
        guesses = [_guess(index, rates, new, most) for index, rates in self._indices]
        return max(guesses, key=lambda guess: guess.chances[:1])


def _guess(index: Index, rates: Rates, new: Sequence[int], most: int) -> Guess:
    for id in new[-index.reach :]:
        if (told := index.add(id)) is not None:
            rates.learn(*told)
    ids, kinds = index.guess(most)
    return Guess(ids, [rates.shares[kind] for kind in kinds])
