"""How far quantised weights lie from those they stand for, tensor by tensor."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from seriatim.kernels.formats import PANEL, Array, Blocks, expand
from seriatim.quant.rounding import CHUNK


class TensorError(NamedTuple):
    """One weight: `error` is the size of the difference over that of the weight."""

    name: str
    kind: str
    shape: tuple[int, int]
    error: float


def errors(exact: Mapping[str, Array], quantised: Mapping[str, Array]) -> list[TensorError]:
    """Of each weight that is in blocks: root of sum (w - q)^2 / sum w^2; 0 for all zeros."""
    return [
        TensorError(name, blocks.kind, blocks.shape, _error(exact[name], blocks))
        for name, blocks in quantised.items()
        if isinstance(blocks, Blocks)
    ]


def size(weights: Mapping[str, Array]) -> int:
    """Bytes of all weights."""
    return sum(weight.nbytes for weight in weights.values())


def _error(exact: Array, blocks: Blocks) -> float:
    off = whole = 0.0
    for rows in _runs(blocks.shape):
        part = expand(exact.rows(rows)) if isinstance(exact, Blocks) else exact[rows]
        values = part.astype(np.float64)
        whole += float(np.square(values).sum())
        off += float(np.square(values - expand(blocks.rows(rows))).sum())
    return (off / whole) ** 0.5 if whole else 0.0


def _runs(shape: tuple[int, int]) -> Iterator[slice]:
    """Rows of whole panels, about a million values at a time."""
    step = max(CHUNK // max(shape[1], 1) // PANEL, 1) * PANEL
    return (slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step))
