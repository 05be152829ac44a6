"""Which cache block holds which positions: counting, sharing, eviction. No tensor in this file.

A block holds 64 positions of one sequence (`kernels.ops.BLOCK`). Full blocks are kept after their
request ends and found again by (parent block, ids), compared exactly; the least recently used are
evicted when blocks run out. The pool starts empty and grows on demand up to `limit`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from seriatim.kernels.ops import BLOCK

ROOT = 0  # the parent of a sequence's first block


@dataclass
class Block:
    """One block in use or kept: `serial` never repeats, so a recycled block is another parent."""

    index: int
    serial: int
    users: int = 1
    key: tuple[int, str, tuple[int, ...]] | None = None  # (parent serial, tenant, ids) once full


class BlockPool:
    """Every block is free, held by `users` sequences, or kept (full, unused, reusable).

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

    @property
    def available(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._free) + len(self._kept) + self.limit - self.total

    def take(self) -> Block | None:
        """A block for new positions: a free, a new, or the least recently used kept one."""
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

    def publish(self, block: Block, parent: Block | None, tenant: str, ids: Sequence[int]) -> None:
        """Make a block whose 64 positions are computed findable; the first of equals stays."""
        key = (parent.serial if parent else ROOT, tenant, tuple(ids))
        if block.key is None and key not in self._known:
            block.key = key
            self._known[key] = block

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

    def check(self, holders: Iterable[Iterable[Block]]) -> None:
        """Verify that every block is in exactly one state and every use is a holder's.

        Raises:
            AssertionError: the pool has lost or doubled a block: a fault in seriatim.
        """
        states = [*self._free, *self._held, *self._kept]
        if sorted(states) != list(range(self.total)):
            raise AssertionError(f"{self.total} blocks, but the states hold {sorted(states)}")
        uses: dict[int, int] = {}
        for block in (block for blocks in holders for block in blocks):
            uses[block.index] = uses.get(block.index, 0) + 1
        if uses != {block.index: block.users for block in self._held.values()}:
            raise AssertionError(f"holders count {uses}, the pool {self._held}")
        if any(self._known.get(b.key) is not b for b in self._kept.values() if b.key):
            raise AssertionError("a kept block cannot be found again")

    def _grow(self) -> None:
        """Half as many again: few calls, and never over half more memory than was needed."""
        total = min(self.limit, max(4, self.total + (self.total + 1) // 2))
        self.grow(total)
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
