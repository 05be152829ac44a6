"""Which cache block holds which positions: counting, sharing, eviction. No tensor in this file.

A block holds 64 positions of one sequence (`kernels.ops.BLOCK`). It is found again by what comes
before it and its ids, compared exactly: a full block is shared, of any other the positions that
agree are copied, since keys depend on nothing later. Blocks stay after their request ends; the
least recently used are evicted when blocks run out. The pool starts empty and grows on demand up
to `limit`.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any, Protocol
from weakref import WeakSet

from seriatim.errors import RequestError, ResourceError
from seriatim.kernels.ops import BLOCK

ROOT = 0  # the parent of a sequence's first block
REMEMBERED = 1024  # evicted blocks whose ids are known, to say that they were: at most 2.5 MB

Ids = tuple[int, ...]
Key = tuple[int, str, Ids]  # (parent serial, tenant, ids)


@dataclass(slots=True)
class Block:
    """One block in use or kept: `serial` stands for its content and all before it.

    A recycled block gets another serial, so that it is nobody's parent.
    """

    index: int
    serial: int
    users: int = 1
    key: Key | None = None  # by which it can be found


class Holder(Protocol):
    """Who takes blocks of a pool: the scheduler of an engine."""

    def held(self) -> Iterable[Sequence[Block]]:
        """The blocks of each sequence."""
        ...


class Runs:
    """Keys by (parent, tenant), their ids sorted: the run nearest to any ids is a neighbour."""

    def __init__(self) -> None:
        self._runs: dict[tuple[int, str], list[Ids]] = {}

    def add(self, key: Key) -> None:
        runs = self._runs.setdefault(key[:2], [])
        runs.insert(bisect_left(runs, key[2]), key[2])

    def remove(self, key: Key) -> None:
        runs = self._runs[key[:2]]
        del runs[bisect_left(runs, key[2])]
        if not runs:
            del self._runs[key[:2]]

    def nearest(self, parent: int, tenant: str, ids: Ids) -> tuple[Ids, int]:
        """The run that begins most like `ids`, and how many ids they share; () if there is none."""
        runs = self._runs.get((parent, tenant), [])
        at = bisect_left(runs, ids)
        some = [(run, common(run, ids)) for run in runs[max(0, at - 1) : at + 1]]
        return max(some, key=lambda pair: pair[1], default=((), 0))


class Turn:
    """Holds a lock for a step. What a step calls cannot step: it would compute in the same memory.

    Args:
        lock: one that its thread may take again.

    Attributes:
        read: whether the step has computed, and its logits are read.
    """

    def __init__(self, lock: AbstractContextManager) -> None:
        self._lock, self.read = lock, False
        self._thread: int | None = None

    def __enter__(self) -> None:
        self.refuse_within()
        self._lock.__enter__()
        self._thread = get_ident()

    def __exit__(self, *failure: Any) -> None:
        self._thread, self.read = None, False
        self._lock.__exit__(*failure)

    def refuse_within(self) -> None:
        """Raise a RequestError if this thread is within a step."""
        if self._thread == get_ident():
            raise RequestError(
                "a step was asked for within a step of the same model, by a processor or the like",
                fix="load the model a second time, and ask that",
            )


class BlockPool:
    """Every block is free, held by `users` sequences, or kept (unused, reusable).

    Of the blocks with one parent none that can be found begins another. A model has one pool for
    all its engines: `lock` is held through each step of one, which is a `turn`.

    Args:
        limit: the most blocks there may be.
        grow: called with the new number of blocks before any of them is handed out.
    """

    def __init__(self, limit: int, grow: Callable[[int], None]) -> None:
        self.limit, self.grow = limit, grow
        self.total = 0
        self._free: list[int] = []
        self._held: dict[int, Block] = {}  # by index
        self._kept: OrderedDict[int, Block] = OrderedDict()  # by index, oldest first
        self._known: dict[Key, Block] = {}
        self._runs = Runs()  # of those
        self._gone: OrderedDict[Key, int] = OrderedDict()  # evicted: their serials, oldest first
        self._gone_runs = Runs()
        self._serial = ROOT
        self.lock = RLock()
        self.turn = Turn(self.lock)
        self.holders: WeakSet[Holder] = WeakSet()

    @property
    def available(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._free) + len(self._kept) + self.limit - self.total

    @property
    def spare(self) -> int:
        """Blocks that `take` can give without evicting."""
        return len(self._free) + self.limit - self.total

    def take(self) -> Block | None:
        """A block for new positions: a free, a new, or the least recently used kept one.

        Raises:
            ResourceError: there is no memory for the first block.
        """
        if not self._free and self.total < self.limit:
            self._grow()
        if not self._free and not self._kept:
            return None
        index = self._free.pop() if self._free else self._evict()
        self._serial += 1
        self._held[index] = Block(index, self._serial)
        return self._held[index]

    def take_beside(self, source: Block) -> Block | None:
        """As `take`, but never `source`, which counts as used just now."""
        self._hold(source)
        try:
            return self.take()
        finally:
            self.release([source])

    def match(self, ids: Sequence[int], tenant: str, most: int) -> list[Block]:
        """The longest chain of known full blocks that begins `ids`; each is held."""
        chain: list[Block] = []
        for start in range(0, most * BLOCK, BLOCK):
            parent = chain[-1].serial if chain else ROOT
            block = self._known.get((parent, tenant, tuple(ids[start : start + BLOCK])))
            if block is None:
                break
            chain.append(self._hold(block))
        return chain

    def nearest(
        self, parent: Block | None, tenant: str, ids: Sequence[int]
    ) -> tuple[Block | None, int]:
        """The block after `parent` that begins most like `ids`, and for how many; not held."""
        serial = _serial(parent)
        run, shared = self._runs.nearest(serial, tenant, tuple(ids[:BLOCK]))
        return (self._known[serial, tenant, run], shared) if shared else (None, 0)

    def missed(self, parent: Block | None, tenant: str, ids: Sequence[int], at: int) -> str:
        """Why nothing more was found for `ids`, which begin a block, than the first `at` of all.

        Only what `tenant` itself has computed is compared.
        """
        serial, here, found = _serial(parent), tuple(ids[:BLOCK]), at % BLOCK
        if self._gone_runs.nearest(serial, tenant, here)[1] > found:
            return f"evicted from token {at} on"
        if at == 0:
            return "never seen"
        run, shared = self._runs.nearest(serial, tenant, here)
        return f"different at token {at}" if shared < len(run) else f"never seen from token {at} on"

    def publish(self, block: Block, parent: Block | None, tenant: str, ids: Sequence[int]) -> Block:
        """Make a block findable by the ids of its computed positions, all 64 or the first.

        Returns:
            the block to hold from here on: of equal full ones the first, whose content is the same.
        """
        key: Key = (_serial(parent), tenant, tuple(ids))
        if block.key == key:
            return block
        if block.key is not None:
            self._unname(block)
        run, shared = self._runs.nearest(*key)
        if shared == len(ids):  # this one begins that one
            return block if shared < BLOCK else self._replace(block, self._known[key])
        if 0 < shared == len(run):  # that one begins this one
            self._drop(self._known[(*key[:2], run)])
        block.serial = self._forgive(key) or block.serial
        block.key, self._known[key] = key, block
        self._runs.add(key)
        return block

    def release(self, blocks: Iterable[Block]) -> None:
        """Give up blocks, given in order; the last are evicted first, so chains stay findable."""
        for block in reversed(list(blocks)):
            block.users -= 1
            if block.users == 0:
                del self._held[block.index]
                if block.key is None:
                    self._free.append(block.index)
                else:
                    self._kept[block.index] = block

    def forget(self) -> None:
        """Evict every kept block."""
        while self._kept:
            self._free.append(self._evict())

    def check(self) -> None:
        """Verify that every block is in exactly one state and every use is a holder's.

        Raises:
            AssertionError: the pool has lost or doubled a block: a fault in seriatim.
        """
        states = [*self._free, *self._held, *self._kept]
        if sorted(states) != list(range(self.total)):
            raise AssertionError(f"{self.total} blocks, but the states hold {sorted(states)}")
        uses: dict[int, int] = {}
        for block in (b for holder in self.holders for blocks in holder.held() for b in blocks):
            uses[block.index] = uses.get(block.index, 0) + 1
        if uses != {block.index: block.users for block in self._held.values()}:
            raise AssertionError(f"holders count {uses}, the pool {self._held}")
        keyed = [b for b in (*self._held.values(), *self._kept.values()) if b.key is not None]
        if {b.key: b for b in keyed} != self._known or any(
            b.key is None for b in self._kept.values()
        ):
            raise AssertionError("the blocks that can be found are not those that have a key")
        serials = {ROOT, *(b.serial for b in keyed)}
        if any(key[0] not in serials for key in self._known):
            raise AssertionError("a block was kept longer than the one before it")

    def _grow(self) -> None:
        """Half as many again: few calls, and never over half more memory than was needed."""
        total = min(self.limit, max(4, self.total + (self.total + 1) // 2))
        try:
            self.grow(total)
        except ResourceError:
            if self.total == 0:
                raise
            self.limit = self.total  # what there is must do
            return
        self._free += range(total - 1, self.total - 1, -1)
        self.total = total

    def _hold(self, block: Block) -> Block:
        if block.users == 0:
            del self._kept[block.index]
            self._held[block.index] = block
        block.users += 1
        return block

    def _replace(self, block: Block, known: Block) -> Block:
        self._hold(known)
        self.release([block])
        return known

    def _unname(self, block: Block) -> None:
        """It can be found no more."""
        assert block.key is not None
        self._runs.remove(block.key)
        del self._known[block.key]
        block.key = None

    def _drop(self, block: Block) -> None:
        """What another block holds as well: freed, unless it is in use and still filled."""
        self._unname(block)
        if block.users == 0:
            del self._kept[block.index]
            self._free.append(block.index)

    def _evict(self) -> int:
        index, block = self._kept.popitem(last=False)
        if block.key is not None:
            self._gone[block.key] = block.serial
            self._gone_runs.add(block.key)
            self._unname(block)
        while len(self._gone) > REMEMBERED:
            self._gone_runs.remove(self._gone.popitem(last=False)[0])
        return index

    def _forgive(self, key: Key) -> int | None:
        """The serial that the same content had before it was evicted: its children are known."""
        serial = self._gone.pop(key, None)
        if serial is not None:
            self._gone_runs.remove(key)
        return serial


def common(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """How many leading ids agree, the first `start` granted: by halves, as slices compare fast."""
    low, high = start, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _serial(block: Block | None) -> int:
    return ROOT if block is None else block.serial
