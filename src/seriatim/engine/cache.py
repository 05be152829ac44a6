"""Which cache block holds which positions: counting, sharing, eviction. No tensor in this file.

A block holds 64 positions of one sequence (`kernels.ops.BLOCK`). Full blocks are kept after their
request ends and found again by (parent block, ids), compared exactly; the least recently used are
evicted when blocks run out. The pool starts empty and grows on demand up to `limit`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Protocol
from weakref import WeakSet

from seriatim.errors import ResourceError
from seriatim.kernels.ops import BLOCK

ROOT = 0  # the parent of a sequence's first block


@dataclass
class Block:
    """One block in use or kept: `serial` never repeats, so a recycled block is another parent."""

    index: int
    serial: int
    users: int = 1
    key: tuple[int, str, tuple[int, ...]] | None = None  # (parent serial, tenant, ids) once full


class Holder(Protocol):
    """Who takes blocks of a pool: the scheduler of an engine."""

    def held(self) -> Iterable[Sequence[Block]]:
        """The blocks of each sequence."""
        ...


class BlockPool:
    """Every block is free, held by `users` sequences, or kept (full, unused, reusable).

    A model has one, for all its engines: `lock` is held through each step of one.

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
        self._known: dict[tuple[int, str, tuple[int, ...]], Block] = {}
        self._serial = ROOT
        self.lock = RLock()
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

    def publish(self, block: Block, parent: Block | None, tenant: str, ids: Sequence[int]) -> Block:
        """Make a block whose 64 positions are computed findable.

        Returns:
            the block to hold from here on: the first of equals, which have the same content.
        """
        key = (parent.serial if parent else ROOT, tenant, tuple(ids))
        known = self._known.setdefault(key, block)
        if known is block:
            block.key = key
        else:
            self._hold(known)
            self.release([block])
        return known

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
            raise AssertionError("the blocks that can be found are not those that are full")

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

    def _evict(self) -> int:
        index, block = self._kept.popitem(last=False)
        if block.key is not None:
            del self._known[block.key]
        return index
