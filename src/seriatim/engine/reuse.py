"""What a request takes from the cache and leaves there: found, copied, published, accounted for.

A request holds the blocks of its computed positions. The full ones it shares with others; the last
is its own, a copy where another sequence agrees with a part of it. No tensor in this file.
"""

from collections.abc import Callable

from seriatim.engine.cache import Block, BlockPool, common
from seriatim.engine.request import Request
from seriatim.kernels.ops import BLOCK


def reusable(request: Request) -> int:
    """How many ids need not be computed: the logits of the last, or of all that follow, do."""
    return len(request.ids) - 1 if request.rows is None else request.rows_from


def match(pool: BlockPool, request: Request) -> None:
    """Share the full blocks that begin it."""
    most = reusable(request) // BLOCK
    request.blocks = pool.match(request.ids, request.options.tenant, most)
    request.computed = BLOCK * len(request.blocks)


def nearest(pool: BlockPool, request: Request) -> tuple[Block | None, int]:
    """After `match`: the block that agrees best with what follows, and for how many ids."""
    rest = request.ids[request.computed : min(request.computed + BLOCK, reusable(request))]
    parent = request.blocks[-1] if request.blocks else None
    return pool.nearest(parent, request.options.tenant, rest)


def copy(pool: BlockPool, request: Request, onto: Callable[[int, int], None]) -> None:
    """After `match`: take what agrees of one more block; `onto` copies (source, target)."""
    source, shared = nearest(pool, request)
    block = None if source is None else pool.take_beside(source)
    if source is not None and block is not None:  # else the source is the last one left to evict
        onto(source.index, block.index)
        request.blocks.append(block)
        request.computed += shared


def shared(request: Request, other: Request) -> int:
    """After `match`: how many ids both begin with, as far as they are of use; 0 if no more."""
    start, blocks, most = request.computed, len(request.blocks), reusable(request)
    if other.options.tenant != request.options.tenant or len(other.blocks) < blocks:
        return 0
    if blocks and other.blocks[blocks - 1] is not request.blocks[-1]:
        return 0
    if start >= min(most, len(other.ids)) or request.ids[start] != other.ids[start]:
        return 0
    return common(request.ids[:most], other.ids, start)


def publish(pool: BlockPool, request: Request, start: int) -> None:
    """Make what was computed since position `start` findable.

    A block that is not full is published for what it holds of a prompt that is being read.
    """
    for i in range(start // BLOCK, request.computed // BLOCK):
        _publish(pool, request, i, BLOCK)
    if start < request.prompt:
        _publish_tail(pool, request)


def release(pool: BlockPool, request: Request) -> None:
    """Give its blocks back; what is computed stays findable until it is evicted."""
    if request.error is None:
        _publish_tail(pool, request)
    pool.release(request.blocks)
    request.blocks, request.computed = [], 0


def account(pool: BlockPool, request: Request) -> None:
    """Say how much of the prompt was cached, and why not more."""
    usage, most = request.usage, reusable(request)
    usage.cached = request.computed
    if usage.cached == most:
        usage.missed = f"scored from token {most} on" if most < request.prompt - 1 else ""
        return
    full = usage.cached // BLOCK
    parent = request.blocks[full - 1] if full else None
    rest = request.ids[BLOCK * full : most][:BLOCK]
    usage.missed = pool.missed(parent, request.options.tenant, rest, usage.cached)


def _publish(pool: BlockPool, request: Request, i: int, count: int) -> None:
    """Make the first positions of its block `i` findable."""
    parent = request.blocks[i - 1] if i else None
    ids = request.ids[i * BLOCK : i * BLOCK + count]
    request.blocks[i] = pool.publish(request.blocks[i], parent, request.options.tenant, ids)


def _publish_tail(pool: BlockPool, request: Request) -> None:
    last, count = divmod(request.computed, BLOCK)
    if count:
        _publish(pool, request, last, count)
