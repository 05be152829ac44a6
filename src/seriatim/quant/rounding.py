"""Round to nearest: the fast way from a matrix to blocks, good enough to do at every load.

int8 has the scale max |x| / 127. int4 spends its sixteenth level on the largest of a group, whose
sign the scale takes (as GGUF's Q4_0 does). Integers are chosen for the scale as stored in f16.
"""

from collections.abc import Iterator

import numpy as np

from seriatim.errors import ModelError
from seriatim.kernels.formats import FORMATS, GROUP, PANEL, Blocks, pack

LOW, HIGH = {"int8": -127, "int4": -8}, {"int8": 127, "int4": 7}
SPAN = {"int8": 127, "int4": -8}  # what stands for the largest of a group
CHUNK = 1 << 20  # values worked on together: their intermediates stay in the cache


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
    parts = [
        pack(kind, *_stored(integers(x, scales, kind), scales, kind, array.shape[1]))
        for x in chunks(array)
        for scales in [stored(largest(x) / np.float32(SPAN[kind]))]
    ]
    return joined(kind, parts, array.shape[1])


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """float32 [row, group, 32] of runs of whole panels; columns that are not there are 0."""
    rows, columns = array.shape
    step = max(CHUNK // max(columns, 1) // PANEL, 1) * PANEL
    for first in range(0, rows, step):
        yield grouped(array[first : first + step].astype(np.float32))


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


def joined(kind: str, parts: list[Blocks], columns: int) -> Blocks:
    """Runs of whole panels, one after another, as one matrix."""
    rows = sum(part.shape[0] for part in parts)
    return Blocks(kind, (rows, columns), np.concatenate([part.data for part in parts]))


def packed(kind: str, q: np.ndarray, scales: np.ndarray, columns: int) -> Blocks:
    """Blocks of whole numbers [row, group, 32] around 0 and their scales [row, group]."""
    return pack(kind, *_stored(q, scales, kind, columns))


def _stored(
    q: np.ndarray, scales: np.ndarray, kind: str, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    whole = (q + np.float32(FORMATS[kind].offset)).astype(np.uint8)
    return whole.reshape(len(q), -1)[:, :columns], scales
