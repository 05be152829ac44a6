"""Block formats: a matrix of small integers with one f16 scale for 32 of them along a row.

Data only: how the bytes lie, to the bit, and the slow way in and out of them. Which integers stand
for a weight is `quant/`'s question; `csrc/blocks.h` computes with them.

A value is scale * (q - offset). Rows are kept in panels of 32, and in a panel for each group of 32
k: two tiles of 16 rows, then the 32 scales, so that a product reads memory once, in order, one row
in each 32-bit lane:

    int4  four 64-byte vectors a tile: lane = row, its low nibbles 4 k, its high nibbles the next 4
    int6  as int4, then two vectors: a byte has the two high bits of k, k + 4, k + 8 and k + 12
    int8  eight 64-byte vectors a tile: lane = row, its bytes 4 k

int6 is GGUF's Q6_K: before the scales each half of a group has an int8 factor for each row, and a
value is scale * (factor * (q - offset)).

Rows that are not there have scale 0, columns that are not there q = offset: they add exact zeros.
"""

from dataclasses import dataclass

import numpy as np

MADE = ("int8", "int4")  # what weights can be turned into; the rest is only read
GROUP = 32  # values with one scale, along a row
TILE, PANEL = 16, 32  # rows


@dataclass(frozen=True)
class Format:
    """One block format: integers of `bits`, `offset` standing for zero."""

    name: str
    bits: int
    offset: int

    @property
    def tile_bytes(self) -> int:
        return TILE * GROUP * self.bits // 8

    @property
    def factors(self) -> int:
        """How many of them a row has in each group."""
        return 2 if self.bits == 6 else 0

    @property
    def panel_bytes(self) -> int:
        """Of one group: two tiles, factors and 32 scales, whole cache lines."""
        return 2 * self.tile_bytes + (self.factors + 2) * PANEL

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """[panel, group, byte] of a matrix."""
        return -(-rows // PANEL), -(-columns // GROUP), self.panel_bytes


FORMATS = {f.name: f for f in (Format("int8", 8, 128), Format("int6", 6, 32), Format("int4", 4, 8))}


@dataclass(frozen=True, eq=False)
class Blocks:
    """A matrix in a block format: `data` is uint8 [panel, group, byte]."""

    kind: str
    shape: tuple[int, int]  # rows, columns of the matrix
    data: np.ndarray

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def scales(self) -> np.ndarray:
        """float16 [panel, group, row of the panel]: a copy."""
        return np.ascontiguousarray(self.data[..., -2 * PANEL :]).view(np.float16)

    def rows(self, part: slice) -> "Blocks":
        """Whole panels of the matrix, without a copy; `part` begins and ends at multiples of 32.

        Its end may also be the matrix's own.
        """
        start, stop, _ = part.indices(self.shape[0])
        if start % PANEL or (stop % PANEL and stop != self.shape[0]):
            raise ValueError(f"rows {start} to {stop} are not whole panels of {PANEL}")
        panels = slice(start // PANEL, -(-stop // PANEL))
        return Blocks(self.kind, (stop - start, self.shape[1]), self.data[panels])


Array = np.ndarray | Blocks  # what a weight is: float32, float16, bfloat16 or blocks


def pack(kind: str, q: np.ndarray, scales: np.ndarray, factors: np.ndarray | None = None) -> Blocks:
    """Blocks of given integers.

    Args:
        kind: "int4", "int6" or "int8".
        q: uint8 [row, column], below 2 ** bits.
        scales: float16 [row, group].
        factors: int8 [row, group, 2], of int6 only.
    """
    form, (rows, columns) = FORMATS[kind], q.shape
    panels, groups, _ = form.shape(rows, columns)
    whole = np.full((panels * PANEL, groups * GROUP), form.offset, np.uint8)
    whole[:rows, :columns] = q
    tiles = whole.reshape(panels, 2, TILE, groups, 8, 4)  # k = 4 m + byte, m of 8
    vectors = _vectors(tiles.transpose(0, 3, 1, 4, 2, 5), form)
    data = np.empty(form.shape(rows, columns), np.uint8)
    data[..., : 2 * form.tile_bytes] = vectors.reshape(panels, groups, -1)
    if factors is not None:
        every = _by_panel(factors, panels).transpose(0, 2, 3, 1)  # [panel, group, half, row]
        data[..., 2 * form.tile_bytes : -2 * PANEL] = every.reshape(panels, groups, -1).view("u1")
    every = np.ascontiguousarray(_by_panel(scales, panels).transpose(0, 2, 1))
    data[..., -2 * PANEL :] = every.view(np.uint8)
    return Blocks(kind, (rows, columns), data)


def unpack(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The integers, uint8 [row, column], and scales, float16 [row, group], of blocks."""
    form, (rows, columns) = blocks.format, blocks.shape
    panels, groups, _ = blocks.data.shape
    stored = blocks.data[..., : 2 * form.tile_bytes].reshape(panels, groups, 2, -1, TILE, 4)
    # [panel, group, tile, m, row, byte] -> [panel, tile, row, group, m, byte]
    q = _integers(stored, form).transpose(0, 2, 4, 1, 3, 5)
    scales = blocks.scales.transpose(0, 2, 1).reshape(panels * PANEL, groups)
    return q.reshape(panels * PANEL, groups * GROUP)[:rows, :columns], scales[:rows]


def factors_of(blocks: Blocks) -> np.ndarray:
    """The factors of int6 blocks, int8 [row, group, 2]."""
    panels, groups, _ = blocks.data.shape
    stored = blocks.data[..., 2 * blocks.format.tile_bytes : -2 * PANEL].view(np.int8)
    by_row = stored.reshape(panels, groups, 2, PANEL).transpose(0, 3, 1, 2)
    return by_row.reshape(panels * PANEL, groups, 2)[: blocks.shape[0]]


def expand(blocks: Blocks) -> np.ndarray:
    """The values, float32 [row, column]: scale * (q - offset), rounded once."""
    q, scales = unpack(blocks)
    whole = q.astype(np.int32) - blocks.format.offset
    if blocks.format.factors:
        by = np.repeat(factors_of(blocks).reshape(len(q), -1), GROUP // 2, axis=1)
        whole *= by[:, : q.shape[1]]
    wide = np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, : q.shape[1]]
    return wide * whole.astype(np.float32)


def _by_panel(values: np.ndarray, panels: int) -> np.ndarray:
    """[row, ...] -> [panel, row of it, ...], zeros for rows that are not there."""
    whole = np.zeros((panels * PANEL, *values.shape[1:]), values.dtype)
    whole[: len(values)] = values
    return whole.reshape(panels, PANEL, *values.shape[1:])


def _vectors(tiles: np.ndarray, form: Format) -> np.ndarray:
    """[panel, group, tile, m, row, byte] -> as stored: a vector in the place of m."""
    if form.bits == 8:
        return tiles
    nibbles = (tiles[:, :, :, 0::2] & 15) | tiles[:, :, :, 1::2] << 4
    if form.bits == 4:
        return nibbles
    high = (tiles >> 4).reshape(*tiles.shape[:3], 2, 4, TILE, 4)  # m = 4 half + j
    bits = high[..., 0, :, :] | high[..., 1, :, :] << 2 | high[..., 2, :, :] << 4
    return np.concatenate([nibbles, bits | high[..., 3, :, :] << 6], axis=3)


def _integers(stored: np.ndarray, form: Format) -> np.ndarray:
    """The reverse of `_vectors`."""
    if form.bits == 8:
        return stored
    nibbles = stored[:, :, :, :4]
    q = np.stack([nibbles & 15, nibbles >> 4], axis=4)  # [panel, group, tile, vector, 2, row, byte]
    q = q.reshape(*stored.shape[:3], 8, TILE, 4)
    if form.bits == 6:
        high = np.stack([stored[:, :, :, 4:] >> 2 * j & 3 for j in range(4)], axis=4)
        q |= high.reshape(q.shape) << 4
    return q
