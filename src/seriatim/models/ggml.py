"""ggml's block types, as arrays or as our blocks: to the bit where both say the same.

Q4_0 is int4, and Q8_0 and Q5_0 are int8, exactly: a group of 32 has one f16 scale in both. Q6_K is
int6, exactly too. The others have two scales for a group: they are expanded and rounded to int8, a
few rows at a time. Source of the layouts: ggml-quants.c (`dequantize_row_*`).
"""

import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from seriatim.errors import ModelError, ResourceError
from seriatim.files.gguf import KINDS, Tensor
from seriatim.kernels.formats import FORMATS, GROUP, PANEL, TILE, Blocks

FLOATS = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_SIZES = {kind: size for kind, _, size in KINDS.values()}
_CHUNK = 1 << 19  # values converted together: what they pass through stays in the cache

_ZEROS = {"int4": 0x88888888, "int8": 0x80808080}  # q = offset, in every byte
_SIGNS = np.uint32(0x80808080)  # adds 128 to each of four signed bytes


class _Packed(NamedTuple):
    """Rows on their way into panels."""

    lanes: np.ndarray  # uint32 [row, group, vector]
    scales: np.ndarray  # float16 [row, group]
    factors: np.ndarray | None = None  # int8 [row, group, half], of int6


def array(tensor: Tensor) -> np.ndarray:
    """A tensor of one of `FLOATS`: a view of the map, unless the file misaligns it."""
    typed = tensor.data.view(FLOATS[tensor.kind]).reshape(tensor.shape)
    return np.require(typed, requirements=["A"])


def rows(tensor: Tensor, part: slice | None) -> Tensor:
    """Some rows of a tensor, or all."""
    if part is None:
        return tensor
    start, stop, _ = part.indices(tensor.shape[0])
    data = tensor.data.reshape(tensor.shape[0], -1)[start:stop]
    return Tensor(tensor.kind, (stop - start, *tensor.shape[1:]), data.reshape(-1))


def block_bytes(tensor: Tensor) -> int:
    """How much memory `blocks` will take; 0 for what it is not for."""
    if tensor.kind not in BLOCKS:
        return 0
    panels, groups, size = FORMATS[BLOCKS[tensor.kind]].shape(*tensor.shape)
    return panels * groups * size


def blocks(tensor: Tensor, name: str) -> Blocks:
    """A tensor [row, column] of one of `BLOCKS` in our format.

    Args:
        tensor: as stored.
        name: for errors.

    Raises:
        ModelError: a tensor that has to be rounded holds what no f16 scale can hold.
    """
    kind, convert = BLOCKS[tensor.kind], _EXACT.get(tensor.kind) or _rounded(tensor.kind, name)
    data = _memory(FORMATS[kind].shape(*tensor.shape))
    stored = tensor.data.reshape(tensor.shape[0], -1)
    np.empty(32 * _CHUNK, np.uint8)  # glibc keeps what is freed below the largest it saw freed
    for start, stop in _chunks(*tensor.shape):
        _fill(data[start // PANEL : -(-stop // PANEL)], kind, convert(stored[start:stop]))
    return Blocks(kind, (tensor.shape[0], tensor.shape[1]), data)


def expand(kind: str, stored: np.ndarray) -> np.ndarray:
    """The values, float32 [row, column], of rows of blocks, uint8 [row, byte], to be rounded."""
    split = stored.reshape(len(stored), -1, _SIZES[kind])
    return _EXPAND[kind](split).reshape(len(stored), -1)


def _memory(shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 zeros at the start of a page; numpy would ask for huge pages: 3 s a GB, not 0.6."""
    try:
        pages = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ResourceError(f"no memory for {math.prod(shape):,} bytes ({error})") from None
    return np.frombuffer(pages, np.uint8).reshape(shape)


def _chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole panels."""
    step = max(_CHUNK // columns // PANEL, 1) * PANEL
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _fill(data: np.ndarray, kind: str, packed: _Packed) -> None:
    """Put rows into panels; those that the last panel lacks are scale 0 and q = offset."""
    panels, groups, _ = data.shape
    lanes, scales, factors = packed
    if lack := panels * PANEL - len(lanes):
        zero = [_ZEROS[kind]] * lanes.shape[2] if kind != "int6" else [0] * 4 + [0xAAAAAAAA] * 2
        lanes = np.concatenate(
            [lanes, np.broadcast_to(np.array(zero, np.uint32), (lack, *lanes.shape[1:]))]
        )
        scales = np.pad(scales, ((0, lack), (0, 0)))
    vectors, tiles = lanes.shape[2], 2 * FORMATS[kind].tile_bytes
    words = data[..., :tiles].view("<u4").reshape(panels, groups, 2, vectors, TILE)
    words[:] = lanes.reshape(panels, 2, TILE, groups, vectors).transpose(0, 3, 1, 4, 2)
    if factors is not None:
        factors = np.pad(factors, ((0, lack), (0, 0), (0, 0)))
        by_row = data[..., tiles : -2 * PANEL].view(np.int8).reshape(panels, groups, 2, PANEL)
        by_row[:] = factors.reshape(panels, PANEL, groups, 2).transpose(0, 2, 3, 1)
    data[..., -2 * PANEL :].view("<f2")[:] = scales.reshape(panels, PANEL, groups).swapaxes(1, 2)


def _fields(stored: np.ndarray, *fields: tuple[str, str] | tuple[str, str, int]) -> np.ndarray:
    """Rows of bytes as rows of records."""
    return stored.view(np.dtype(list(fields)))


# Exact: rows of bytes to lanes and scales


def _q4_0(stored: np.ndarray) -> _Packed:
    """Its byte j holds k = j, then k = j + 16; ours k, then k + 4 (`kernels/formats.py`)."""
    block = _fields(stored, ("scale", "<f2"), ("q", "<u8", 2))
    q = np.ascontiguousarray(block["q"])  # [row, group, 2]: bytes 0 to 7, and 8 to 15
    low, high = np.uint64(0x0F0F0F0F), np.uint64(0xF0F0F0F0)
    lanes = np.empty((*q.shape[:2], 4), np.uint32)
    lanes[..., :2] = (q & low) | (q >> np.uint64(28) & high)  # k below 16
    lanes[..., 2:] = (q >> np.uint64(4) & low) | (q >> np.uint64(32) & high)
    return _Packed(lanes, block["scale"])


def _q8_0(stored: np.ndarray) -> _Packed:
    block = _fields(stored, ("scale", "<f2"), ("q", "<u4", 8))
    return _Packed(block["q"] ^ _SIGNS, block["scale"])


def _q5_0(stored: np.ndarray) -> _Packed:
    """scale * (q - 16), q below 32: the fifth bits are in one word of 32."""
    block = _fields(stored, ("scale", "<f2"), ("top", "u1", 4), ("q", "u1", 16))
    q = _nibbles(block["q"]) | _bits(block["top"]) << 4
    return _Packed((q + np.uint8(128 - 16)).view("<u4"), block["scale"])


def _q6_k(stored: np.ndarray) -> _Packed:
    """Sixteen groups of 16: an int8 factor each; 4 bits, then 2, for each half of 128 values."""
    block = stored.reshape(len(stored), -1, _SIZES["Q6_K"])
    halves = *block.shape[:2], 2
    low = _nibbles(block[..., :128].reshape(*halves, 64))
    high = _shifts(block[..., 128:192].reshape(*halves, 32), (0, 2, 4, 6), 3)
    q = low.reshape(high.shape) | high << 4
    words = q.reshape(len(stored), -1, GROUP).view("<u4")  # [row, group, 8]
    nibbles, bits = words & np.uint32(0x0F0F0F0F), words >> np.uint32(4) & np.uint32(0x03030303)
    lanes = np.empty((*words.shape[:2], 6), np.uint32)
    lanes[..., :4] = nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint32(4)
    places = np.arange(4, dtype=np.uint32) * np.uint32(2)
    bits = bits.reshape(*bits.shape[:2], 2, 4) << places
    lanes[..., 4:] = np.bitwise_or.reduce(bits, axis=3)
    factors = np.ascontiguousarray(block[..., 192:208]).view(np.int8)
    scales = np.ascontiguousarray(block[..., 208:]).view("<f2")
    return _Packed(
        lanes,
        np.repeat(scales.reshape(len(stored), -1), 8, axis=1),
        factors.reshape(len(stored), -1, 2),
    )


_EXACT: dict[str, Callable[[np.ndarray], _Packed]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q6_K": _q6_k,
}


# Rounded: blocks uint8 [row, block, byte] to values


def _rounded(kind: str, name: str) -> Callable[[np.ndarray], _Packed]:
    def convert(stored: np.ndarray) -> _Packed:
        with np.errstate(over="ignore", invalid="ignore"):  # said below, with the tensor's name
            return _round(expand(kind, stored), name)

    return convert


def _round(values: np.ndarray, name: str) -> _Packed:
    """Nearest int8, the largest of a group being 127 times its scale."""
    groups = values.reshape(len(values), -1, GROUP)
    scales = (np.abs(groups).max(axis=2) / 127).astype(np.float16)
    if not np.isfinite(scales).all():
        raise ModelError(f"the tensor {name} holds weights that are not finite, or too large")
    wide = scales.astype(np.float32)[..., None]
    q = groups / np.where(wide > 0, wide, 1)  # a scale that vanished: all of its group are 0
    q = np.rint(q, out=q).clip(-127, 127, out=q)
    return _Packed(q.astype(np.int8).view("<u4") ^ _SIGNS, scales)


def _q4_1(block: np.ndarray) -> np.ndarray:
    scale, least = _wide(block[..., :2]), _wide(block[..., 2:4])
    return _times(scale, _nibbles(block[..., 4:])) + least


def _q5_1(block: np.ndarray) -> np.ndarray:
    scale, least = _wide(block[..., :2]), _wide(block[..., 2:4])
    return _times(scale, _nibbles(block[..., 8:]) | _bits(block[..., 4:8]) << 4) + least


def _q4_k(block: np.ndarray) -> np.ndarray:
    """Eight groups of 32: f16 scale and minimum of all, 6 bits of each for a group."""
    scale, least = _k_scales(block)
    q = _nibbles(block[..., 16:].reshape(*block.shape[:2], 4, 32))
    return _times(scale, q.reshape(*block.shape[:2], 8, 32)) - least


def _q5_k(block: np.ndarray) -> np.ndarray:
    """As Q4_K; the fifth bit of group i is bit i of 32 bytes."""
    scale, least = _k_scales(block)
    q = _nibbles(block[..., 48:].reshape(*block.shape[:2], 4, 32))
    top = _shifts(block[..., 16:48], range(8), 1)
    return _times(scale, q.reshape(top.shape) | top << 4) - least


_EXPAND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q4_1": _q4_1,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
}
ROUNDED = frozenset(_EXPAND)
BLOCKS = {"Q4_0": "int4", "Q6_K": "int6"}  # kind -> our format
BLOCKS |= dict.fromkeys(["Q8_0", "Q5_0", *_EXPAND], "int8")


def _k_scales(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of each group, float32 [row, block, 8, 1]: 6 bits, packed in 12 bytes."""
    a, b, c = (block[..., i : i + 4] for i in (4, 8, 12))
    scale = np.concatenate([a & 63, c & 15 | a >> 2 & 48], axis=2)
    least = np.concatenate([b & 63, c >> 4 | b >> 2 & 48], axis=2)
    wide = _wide(block[..., :2]) * scale, _wide(block[..., 2:4]) * least
    return wide[0][..., None], wide[1][..., None]


def _wide(scale: np.ndarray) -> np.ndarray:
    """f16 as bytes [..., 2] to float32 [..., 1]."""
    return np.ascontiguousarray(scale).view("<f2").astype(np.float32)


def _times(scale: np.ndarray, q: np.ndarray) -> np.ndarray:
    values = q.astype(np.float32)
    return np.multiply(values, scale, out=values)


def _nibbles(bytes: np.ndarray) -> np.ndarray:
    """[..., byte] to [..., 2 byte]: the low four bits of all, then the high ones."""
    parts = _shifts(bytes, (0, 4), 15)
    return parts.reshape(*bytes.shape[:-1], 2 * bytes.shape[-1])


def _shifts(bytes: np.ndarray, shifts: Sequence[int], mask: int) -> np.ndarray:
    """[..., byte] to [..., shift, byte]: each byte shifted right, and masked; eight at a time."""
    words = np.ascontiguousarray(bytes).view(np.uint64)[..., None, :]
    moved = words >> np.array(shifts, np.uint64)[:, None]
    return np.bitwise_and(moved, np.uint64(mask * 0x0101010101010101), out=moved).view(np.uint8)


def _bits(bytes: np.ndarray) -> np.ndarray:
    """[..., 4] to [..., 32], the lowest bit first."""
    return np.unpackbits(bytes, axis=-1, bitorder="little")
