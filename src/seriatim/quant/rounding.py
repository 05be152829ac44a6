"""Round to nearest: the fast way from a matrix to blocks, good enough to do at every load.

int8 has the scale max |x| / 127. int4 spends its sixteenth level on the largest of a group, whose
sign the scale takes (as GGUF's Q4_0 does), and is then fitted to its integers: by least squares.
Integers are chosen for the scale as stored in f16.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from seriatim.errors import ModelError
from seriatim.kernels.formats import FORMATS, GROUP, PANEL, Blocks, pack
from seriatim.kernels.native import available_cpus

LOW, HIGH = {"int8": -127, "int4": -8}, {"int8": 127, "int4": 7}
SPAN = {"int8": 127, "int4": -8}  # what stands for the largest of a group
CHUNK = 1 << 18  # values worked on together: their intermediates stay in the cache


def quantise(array: np.ndarray, kind: str) -> Blocks:
    """A matrix in blocks, each value rounded to the nearest there is.

    Args:
        array: [row, column] of float32, float16 or bfloat16.
        kind: "int8" or "int4".

    Raises:
        ModelError: a scale would be infinite in f16.

    Example:
        >>> from seriatim.kernels.formats import expand
        >>> expand(quantise(np.array([[-8.0, 1.0, 7.0]]), "int4")).tolist()
        [[-8.0, 1.0, 7.0]]
    """
    return by_chunks(array, kind, partial(_scales, kind=kind))


def by_chunks(array: np.ndarray, kind: str, scales: Callable[[np.ndarray], np.ndarray]) -> Blocks:
    """A matrix in blocks: float16 scales [row, group] as `scales` chooses them for groups.

    Runs of whole panels are worked on at once, by as many threads as there are processors.
    """
    rows, columns = array.shape
    step = max(CHUNK // max(columns, 1) // PANEL, 1) * PANEL

    def part(first: int) -> np.ndarray:
        x = grouped(array[first : first + step].astype(np.float32))
        chosen = scales(x)
        return packed(kind, integers(x, chosen, kind), chosen, columns).data

    with ThreadPoolExecutor(available_cpus()) as pool:
        parts = list(pool.map(part, range(0, rows, step)))
    return Blocks(kind, (rows, columns), np.concatenate(parts))


def _scales(x: np.ndarray, *, kind: str) -> np.ndarray:
    scales = stored(largest(x) / np.float32(SPAN[kind]))
    return scales if kind == "int8" else fitted(x, integers(x, scales, kind))


def fitted(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The scales of least squared error for given integers: float16 [...] of x, q [..., 32]."""
    along, size = np.einsum("...i,...i->...", x, q), np.einsum("...i,...i->...", q, q)
    return stored(np.divide(along, size, out=np.zeros_like(along), where=size > 0))


def grouped(x: np.ndarray) -> np.ndarray:
    """[..., column] as [..., group, 32], padded with 0."""
    spare = -x.shape[-1] % GROUP
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)]) if spare else x
    return x.reshape(*x.shape[:-1], -1, GROUP)


def largest(x: np.ndarray) -> np.ndarray:
    """The value of largest size in each group, with its sign: [..., group]."""
    high, low = x.max(-1), x.min(-1)
    return np.where(high > -low, high, low)


def stored(scales: np.ndarray) -> np.ndarray:
    """Scales as float16, nearest.

    Raises:
        ModelError: one of them is not finite there.
    """
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(
            "a weight is not finite, or too large for blocks whose scales are f16",
            expected=f"weights of at most {65504 * 8:,}",
            fix="use bf16 or f32",
        )
    return half


def integers(x: np.ndarray, scales: np.ndarray, kind: str) -> np.ndarray:
    """float32 whole numbers nearest to x / scale, within the range: x [..., 32], scales [...]."""
    wide = scales.astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(wide == 0, np.float32(0), np.float32(1) / wide)[..., None]
        q = x * inverse
    np.rint(q, out=q)
    return np.clip(q, LOW[kind], HIGH[kind], out=q)


def packed(kind: str, q: np.ndarray, scales: np.ndarray, columns: int) -> Blocks:
    """Blocks of whole numbers [row, group, 32] around 0 and their scales [row, group]."""
    whole = (q + np.float32(FORMATS[kind].offset)).astype(np.uint8)
    return pack(kind, whole.reshape(len(q), -1)[:, :columns], scales)
