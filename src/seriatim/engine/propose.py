"""Guesses that cost nothing: what followed the last ids when they last came, here or in a text.

Each index follows one sequence id by id, in O(1) amortised. Before it takes an id it has guessed
one, so how often it is right is known for every id, whether or not its guesses were ever computed:
`Rates` are by kind of guess (how many ids matched, how clear the continuation was).

Sources: prompt lookup (Saxena 2023), SuffixDecoding (Oliaro et al. 2024), the suffix automaton
(Blumer et al. 1985).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LONGEST = 24  # matches of more ids than that are all one kind
SUFFIXES = 32  # of the latest id's suffixes, whose places are counted: all but the shortest
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

    @property
    def kinds(self) -> int: ...
    @property
    def reach(self) -> int: ...

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
            return id, kind(matched, 1.0), target
        counts = [self._count[target] for target in following.values()]
        best = max(range(len(counts)), key=counts.__getitem__)
        id, target = [*following.items()][best]
        return id, kind(matched, counts[best] / sum(counts)), target

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
        for _ in range(SUFFIXES):
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


def kind(matched: int, share: float) -> int:
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
        return max(guesses, key=lambda guess: [*guess.chances[:1]])


def _guess(index: Index, rates: Rates, new: Sequence[int], most: int) -> Guess:
    for id in new[-index.reach :]:
        if (told := index.add(id)) is not None:
            rates.learn(*told)
    ids, kinds = index.guess(most)
    return Guess(ids, [rates.shares[kind] for kind in kinds])
