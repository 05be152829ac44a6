"""A step's work laid end to end: the arrays that a runtime reads, and whose logits it gives."""

import numpy as np

from seriatim.engine.scheduler import Work
from seriatim.kernels.ops import Batch


def pack(work: list[Work]) -> tuple[Batch, list[int]]:
    """The batch of a step, and how many rows of logits each item has.

    Gathered in lists: most steps have a few tokens, for which an array operation takes longer.
    """
    ids, position, sequence, rows, counts = [], [], [], [], []
    for number, item in enumerate(work):
        request, first, last = item.request, item.request.computed, item.end
        wanted = _rows(item, len(ids))
        ids += request.ids[first:last]
        ids += item.drafts
        position += range(first, last + len(item.drafts))
        sequence += [number] * (item.count + len(item.drafts))
        rows += wanted
        counts.append(len(wanted))
    blocks = [[block.index for block in item.request.blocks] for item in work]
    longest = max(map(len, blocks))
    table = [line + [-1] * (longest - len(line)) for line in blocks]
    lists = (ids, position, sequence, table, rows)
    return Batch(*(np.array(values, np.int32) for values in lists)), counts


def _rows(item: Work, start: int) -> range:
    """Those of a prompt that is scored; else the last and the drafts' where the next id is due."""
    end = start + item.count
    if item.request.reads_prompt:
        return range(min(end, start + max(0, item.request.rows_from - item.request.computed)), end)
    due = item.end == len(item.request.ids)
    return range(end - 1, end + len(item.drafts)) if due else range(0)
