"""Who computes how many ids in the next step. No tensor in this file, and no phases.

Each request has ids and a count of computed ones; a step lets it catch up by some tokens. Reading
a prompt in chunks, going on from a cached prefix, generating and starting again after preemption
are therefore the same thing here.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from seriatim.engine.cache import Block, BlockPool
from seriatim.engine.request import Request
from seriatim.kernels.ops import BLOCK


@dataclass(frozen=True)
class Work:
    """`count` ids of a request, from `request.computed` on, then what is guessed to follow."""

    request: Request
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The first position that is not computed after it, the drafts left out."""
        return self.request.computed + self.count


@dataclass
class Left:
    """What a step may still compute."""

    tokens: int
    chunk: int  # of one request
    rows: int  # of prompts that are scored

    def for_(self, request: Request) -> int:
        """How many ids of a request fit."""
        count = min(request.pending, self.tokens, self.chunk)
        return min(count, self.rows + request.unread) if request.reads_prompt else count

    def take(self, request: Request, count: int) -> Work:
        self.tokens -= count
        self.rows -= max(0, count - request.unread) if request.reads_prompt else 0
        return Work(request, count)


class Scheduler:
    """Requests in order of urgency (priority, then arrival), within a budget of tokens a step.

    Args:
        pool: the cache's blocks.
        budget: the most tokens in one step.
        chunk: the most tokens of one request in one step.
        most: the most requests that run together.
        rows: the most prompt positions in one step whose logits are wanted; each takes memory.
    """

    def __init__(self, pool: BlockPool, *, budget: int, chunk: int, most: int, rows: int) -> None:
        self.pool, self.budget, self.chunk, self.most = pool, budget, chunk, most
        self.rows = rows
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.left = Left(budget, chunk, rows)  # of the latest step
        self._preempted = False
        pool.holders.add(self)

    def held(self) -> Iterator[list[Block]]:
        """The blocks of each request."""
        return (request.blocks for request in self.running)

    def add(self, request: Request) -> None:
        insort(self.waiting, request, key=lambda r: r.urgency)

    def remove(self, request: Request) -> None:
        """Forget a request and give its blocks back."""
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
        self._release(request)
        request.release()

    def schedule(self) -> list[Work]:
        """The next step's work: those that run, most urgent first, then those that wait."""
        work: list[Work] = []
        self.left = left = Left(self.budget, self.chunk, self.rows)
        self._preempted = False
        for request in list(self.running):
            count = left.for_(request)
            if count and request in self.running and self._reserve(request, count):
                work.append(left.take(request, count))
        if not self._preempted:  # else the victim would come straight back
            work += self._admit(left)
        return work

    def extend(self, item: Work, drafts: Sequence[int]) -> Work:
        """The item and as many of its drafts as the budget and free blocks allow.

        Nobody is preempted for a guess, and no kept block is evicted.
        """
        request = item.request
        held = BLOCK * (len(request.blocks) + self.pool.spare) - item.end
        drafts = tuple(drafts[: max(0, min(self.left.tokens, held))])
        self.left.tokens -= len(drafts)
        return (
            replace(item, drafts=drafts) if self._take(request, item.count + len(drafts)) else item
        )

    def clear(self) -> None:
        """Forget every request: their engine is gone."""
        with self.pool.lock:
            for request in (*self.running, *self.waiting):
                self.remove(request)

    def publish(self, request: Request, start: int) -> None:
        """Make the blocks that became full since position `start` findable for others."""
        blocks = request.blocks
        for i in range(start // BLOCK, request.computed // BLOCK):
            if blocks[i].key is None:
                ids = request.ids[i * BLOCK : (i + 1) * BLOCK]
                parent = blocks[i - 1] if i else None
                blocks[i] = self.pool.publish(blocks[i], parent, request.options.tenant, ids)

    def _reserve(self, request: Request, count: int) -> bool:
        """Blocks for `count` more ids, taken from the least urgent if there are no others."""
        while not self._take(request, count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _take(self, request: Request, count: int) -> bool:
        """Blocks for `count` more ids, as far as the pool has them; whether it had them all."""
        for _ in range(self._blocks(request, count)):
            block = self.pool.take()
            if block is None:
                return False
            request.blocks.append(block)
        return True

    def _admit(self, left: "Left") -> Iterator[Work]:
        while self.waiting and left.tokens > 0 and len(self.running) < self.most:
            request = self.waiting[0]
            self._reuse(request)
            count = left.for_(request)
            fits = count and self._blocks(request, request.pending) <= self.pool.available
            if not fits or not self._take(request, count):
                self._release(request)
                return  # admission takes no one's blocks: preempting is for those that run
            self.waiting.pop(0)
            insort(self.running, request, key=lambda r: r.urgency)
            request.lap("queue")
            yield left.take(request, count)

    def _blocks(self, request: Request, count: int) -> int:
        """How many more blocks `count` more ids need."""
        return -(-(request.computed + count) // BLOCK) - len(request.blocks)

    def _reuse(self, request: Request) -> None:
        """Start from a cached prefix; the last id is always computed, its logits are needed."""
        most = len(request.ids) - 1 if request.rows is None else request.rows_from
        request.blocks = self.pool.match(request.ids, request.options.tenant, most // BLOCK)
        request.computed = BLOCK * len(request.blocks)
        if not request.generated:
            request.usage.cached = request.computed

    def _preempt(self, request: Request) -> None:
        """Back to waiting, to be computed again: the same bits, by the law of company."""
        self._preempted = True
        self.running.remove(request)
        self._release(request)
        self.add(request)

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.computed = [], 0
