"""A step's work laid end to end: the arrays that a runtime reads, and whose logits it gives."""

import numpy as np

from seriatim.engine.scheduler import Work
from seriatim.kernels.ops import Batch


def pack(work: list[Work]) -> tuple[Batch, list[int]]:
    """The batch of a step, and how many rows of logits each item has.

    Gathered in lists, and made one array: most steps have a few tokens, for which an array
    operation takes longer.
    """
    ids, position, sequence, table, rows, counts = [], [], [], [], [], []
    longest = max([len(item.request.blocks) for item in work])
    for number, item in enumerate(work):
        request, first, drafts = item.request, item.request.computed, item.drafts
        wanted = _rows(item, len(ids))
        counts.append(len(wanted))
        rows += wanted
        ids += request.ids[first : first + item.count]
        ids += drafts
        end = first + item.count + len(drafts)
        position += range(first, end)
        sequence += [number] * (end - first)
        table += [block.index for block in request.blocks]
        table += [-1] * (longest - len(request.blocks))
    tokens, flat = len(ids), np.array([*ids, *position, *sequence, *table, *rows], np.int32)
    split = 3 * tokens + len(table)
    return Batch(
        ids=flat[:tokens],
        position=flat[tokens : 2 * tokens],
        sequence=flat[2 * tokens : 3 * tokens],
        block_table=flat[3 * tokens : split].reshape(len(work), longest),
        rows=flat[split:],
    ), counts


def _rows(item: Work, start: int) -> range:
    """Those of a prompt that is scored; else the last and the drafts' where the next id is due."""
    request, end = item.request, start + item.count
    if request.reads_prompt:
        return range(min(end, start + request.unread), end)
    due = item.end == len(request.ids)
    return range(end - 1, end + len(item.drafts)) if due else range(0)
