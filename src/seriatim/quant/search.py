"""The scale of each group searched for: the least squared error, without any text.

For a candidate scale the best integers are known, and for given integers the best scale is: the
squared error, weighed by column, of x against s q is least at s = <x, q> / <q, q>, where it has
fallen by <x, q>^2 / <q, q>. Candidates of both signs are tried and the best integers kept.
"""

import numpy as np

from seriatim.kernels.formats import Blocks
from seriatim.quant.rounding import SPAN, by_chunks, grouped, integers, largest, stored

# Candidates as multiples of the scale of rounding. int4 gains by cutting off the largest; int8 by
# the luck of where its steps fall.
GRIDS = {
    "int4": np.linspace(0.6, 1.15, 24, dtype=np.float32),
    "int8": np.linspace(0.98, 1.02, 9, dtype=np.float32),
}
FINER = {name: np.linspace(grid[0], grid[-1], 4 * len(grid)) for name, grid in GRIDS.items()}


def search(
    array: np.ndarray, kind: str, *, importance: np.ndarray | None = None, fine: bool = False
) -> Blocks:
    """A matrix in blocks, the scale of each group chosen for the least squared error.

    Args:
        array: [row, column].
        kind: "int8" or "int4".
        importance: [column], not negative: the weight of a column's error; default: all alike.
        fine: try four times as many scales.

    Raises:
        ModelError: a scale would be infinite in f16.
    """
    weight = None if importance is None else grouped(importance.astype(np.float32)[None])
    return by_chunks(array, kind, lambda x: scale(x, kind, weight, fine=fine))


def scale(
    x: np.ndarray, kind: str, weight: np.ndarray | None = None, *, fine: bool = False
) -> np.ndarray:
    """The best scales found for groups: float16 [...] of x [..., 32]; never worse than rounding.

    Args:
        x: float32 groups.
        weight: of each column's error, of a shape that goes with x's.
    """
    start = stored(largest(x) / np.float32(SPAN[kind]))
    best, most = start.astype(np.float32), np.full(start.shape, -1, np.float32)
    for factor in (FINER if fine else GRIDS)[kind].astype(np.float32):
        for sign in (1, -1) if kind == "int4" else (1,):
            fitted, gain = _fit(x, integers(x, start * (sign * factor), kind), weight)
            better = gain > most
            best[better], most[better] = fitted[better], gain[better]
    return _no_worse(x, start, stored(best), kind, weight)


def _fit(x: np.ndarray, q: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The best scale for given integers, and by how much it lessens the error."""
    weighed = q if weight is None else q * weight
    along, size = _dot(weighed, x), _dot(weighed, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = np.where(size > 0, along / size, np.float32(0))
    return fitted, fitted * along


def _no_worse(
    x: np.ndarray, start: np.ndarray, found: np.ndarray, kind: str, weight: np.ndarray | None
) -> np.ndarray:
    """`found`, or `start` where the rounding of the scale to f16 has spoilt the gain."""
    return np.where(_error(x, found, kind, weight) <= _error(x, start, kind, weight), found, start)


def _error(x: np.ndarray, scales: np.ndarray, kind: str, weight: np.ndarray | None) -> np.ndarray:
    off = x - integers(x, scales, kind) * scales.astype(np.float32)[..., None]
    return _dot(off, off if weight is None else off * weight)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", a, b)
