"""Documents into rows of one length: an epoch's plan, and the order in which its rows come.

A document of n ids is n - 1 pairs (an id, the next). One longer than a row is cut, each epoch
elsewhere; the shorter pieces share rows by best fit in decreasing order (Johnson 1974; for training
Ding et al. 2024, arXiv:2404.10830) over a buffer of bounded size. Each pair is in one row of an
epoch. The plan follows from (seed, epoch) alone, and its n-th row is found without the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seriatim.train.shards import spooled

BUFFER = 8192  # pieces that are fitted together
ROUNDS = 6  # of the Feistel network; 4 make a pseudo-random permutation (Luby & Rackoff 1988)


def shuffled(index: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """Where a permutation of range(count) takes `index`: no table, whatever the count.

    A Feistel network on the least even number of bits that `count` needs, walked until it is back
    below it.

    Args:
        index: integers below `count` [any].
        key: uint64 [ROUNDS].

    Example:
        >>> sorted(shuffled(np.arange(5), 5, np.arange(6, dtype=np.uint64)).tolist())
        [0, 1, 2, 3, 4]
    """
    half = np.uint64((max(count - 1, 1).bit_length() + 1) // 2)
    found = _network(np.asarray(index, np.uint64), half, key)
    while (beyond := found >= count).any():
        found[beyond] = _network(found[beyond], half, key)
    return found.astype(np.int64)


def _network(x: np.ndarray, half: np.uint64, key: np.ndarray) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & low
    for number in key:
        left, right = right, left ^ (mixed(right ^ number) & low)
    return left << half | right


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64's finisher: a bijection of uint64 in which every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(*numbers: int) -> np.ndarray:
    """uint64 [ROUNDS], drawn from integers."""
    return np.random.SeedSequence(numbers).generate_state(ROUNDS, np.uint64)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which pairs are in which row of an epoch.

    Attributes:
        pieces: int64 [piece, 2]: position of its first id, pairs in it; those of a row together.
        rows: int64 [row]: the first piece of each.
        context: pairs that fit into a row.
        pairs: in all of them.
        key: of the order in which the rows come.
    """

    pieces: np.ndarray
    rows: np.ndarray
    context: int
    pairs: int
    key: np.ndarray
    _orders: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padding(self) -> float:
        """Share of the rows that nothing fills."""
        return 1 - self.pairs / max(1, len(self.rows) * self.context)

    def row(self, index: int) -> np.ndarray:
        """The pieces of the row that comes as number `index`: int64 [piece, 2]."""
        at = int(self._order(index // BUFFER)[index % BUFFER])
        end = self.rows[at + 1] if at + 1 < len(self.rows) else len(self.pieces)
        return self.pieces[self.rows[at] : end]

    def _order(self, block: int) -> np.ndarray:
        """Where the rows of a block of numbers are, kept until the next: int64 [number]."""
        if block not in self._orders:
            index = np.arange(block * BUFFER, min((block + 1) * BUFFER, len(self.rows)))
            self._orders.clear()
            self._orders[block] = shuffled(index, len(self.rows), self.key)
        return self._orders[block]


def plan(
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    context: int,
    key: tuple[int, ...],
    folder: Path,
    room: int = 0,
) -> Plan:
    """The rows of an epoch.

    Args:
        starts, ends: positions of each document: int64 [document].
        context: pairs that fit into a row.
        key: what the order and the cuts are drawn from.
        folder: where the plan lies while it is used, in files without a name.
        room: what each piece of a row takes beside its pairs.
    """
    tables = (
        made - (0, room, 0) for made in _tables(starts, ends, context, room=room, key=key)
    )  # room is counted while rows are filled, and no part of a piece
    table = spooled(tables, np.int64, folder).reshape(-1, 3)
    blocks = range(0, len(table), 1 << 20)
    rows = (at + np.flatnonzero(table[at : at + (1 << 20), 2]) for at in blocks)
    pairs = sum(int(table[at : at + (1 << 20), 1].sum()) for at in blocks)
    return Plan(table[:, :2], spooled(rows, np.int64, folder), context, pairs, keys(*key, 1))


def _tables(
    starts: np.ndarray, ends: np.ndarray, context: int, *, room: int, key: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Start, pairs and room, 1 where a row begins: int64 [piece, 3], row by row."""
    order, waiting = keys(*key, 0), np.empty((0, 2), np.int64)
    for at in range(0, len(starts), BUFFER):
        chosen = shuffled(np.arange(at, min(at + BUFFER, len(starts))), len(starts), order)
        cuts = np.random.Generator(np.random.PCG64([*key, 2, at]))
        made = _cut(starts[chosen], ends[chosen] - starts[chosen] - 1, context - room, cuts)
        made[:, 1] += room
        whole = made[:, 1] == context
        yield np.insert(made[whole], 2, 1, axis=1)
        waiting = np.concatenate([waiting, made[~whole]])
        if len(waiting) >= BUFFER:
            yield _fitted(waiting, context)
            waiting = waiting[:0]
    yield _fitted(waiting, context)


def _cut(
    starts: np.ndarray, pairs: np.ndarray, context: int, draw: np.random.Generator
) -> np.ndarray:
    """Pieces of documents, none longer than a row: int64 [piece, 2]."""
    first = np.where(pairs > context, draw.integers(1, context + 1, len(pairs)), pairs)
    counts = np.where(pairs > 0, 1 - (first - pairs) // context, 0)
    document = np.repeat(np.arange(len(pairs)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.where(number > 0, first[document] + (number - 1) * context, 0)
    end = np.minimum(first[document] + number * context, pairs[document])
    return np.stack([starts[document] + begin, end - begin], axis=1)


def _fitted(pieces: np.ndarray, context: int) -> np.ndarray:
    """Pieces by rows: each goes, longest first, where it leaves least room: int64 [piece, 3]."""
    order = np.argsort(-pieces[:, 1], kind="stable")
    rows: list[list[int]] = []
    roomy: list[list[int]] = [[] for _ in range(context + 1)]  # rows by the room they have
    some = 0  # bit r is set where roomy[r] holds a row
    for piece, length in zip(order.tolist(), pieces[order, 1].tolist(), strict=True):
        fitting = some >> length
        room = length + (fitting & -fitting).bit_length() - 1 if fitting else context
        if fitting:
            row = roomy[room].pop()
            some ^= (not roomy[room]) << room
            rows[row].append(piece)
        else:
            row = len(rows)
            rows.append([piece])
        roomy[room - length].append(row)
        some |= 1 << (room - length)
    flat = np.array([piece for row in rows for piece in row], np.int64)
    begins = np.array([n == 0 for row in rows for n in range(len(row))], np.int64)
    return np.concatenate([pieces[flat], begins[:, None]], axis=1)
