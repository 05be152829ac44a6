"""Block formats: a matrix of small integers with one f16 scale for 32 of them along a row.

Data only: how the bytes lie, to the bit, and the slow way in and out of them. Which integers stand
for a weight is `quant/`'s question; `csrc/blocks.h` computes with them.

A value is scale * (q - offset). Rows are kept in panels of 32, and in a panel for each group of 32
k: two tiles of 16 rows, then the 32 scales, so that a product reads memory once, in order, one row
in each 32-bit lane:

    int4  four 64-byte vectors a tile: lane = row, its low nibbles 4 k, its high nibbles the next 4
    int8  eight 64-byte vectors a tile: lane = row, its bytes 4 k

Rows that are not there have scale 0, columns that are not there q = offset: they add exact zeros.
"""

from dataclasses import dataclass

import numpy as np

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
    def panel_bytes(self) -> int:
        """Of one group: two tiles and 32 scales, whole cache lines."""
        return 2 * self.tile_bytes + 2 * PANEL

    def shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        """[panel, group, byte] of a matrix."""
        return -(-rows // PANEL), -(-columns // GROUP), self.panel_bytes


FORMATS = {f.name: f for f in (Format("int8", 8, 128), Format("int4", 4, 8))}


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


def pack(kind: str, q: np.ndarray, scales: np.ndarray) -> Blocks:
    """Blocks of given integers.

    Args:
        kind: "int4" or "int8".
        q: uint8 [row, column], below 2 ** bits.
        scales: float16 [row, group].
    """
    form, (rows, columns) = FORMATS[kind], q.shape
    panels, groups, _ = form.shape(rows, columns)
    whole = np.full((panels * PANEL, groups * GROUP), form.offset, np.uint8)
    whole[:rows, :columns] = q
    data = np.empty(form.shape(rows, columns), np.uint8)
    tiles = whole.reshape(panels, 2, TILE, groups, GROUP).transpose(0, 3, 1, 2, 4)
    data[..., : 2 * form.tile_bytes].reshape(
        panels, groups, 2, form.tile_bytes // 64, TILE, 4, copy=False
    )[:] = _lanes(tiles, form)
    every = np.zeros((panels * PANEL, groups), np.float16)
    every[:rows] = scales
    data[..., 2 * form.tile_bytes :].view(np.float16)[:] = every.reshape(
        panels, PANEL, groups
    ).transpose(0, 2, 1)
    return Blocks(kind, (rows, columns), data)


def unpack(blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The integers, uint8 [row, column], and scales, float16 [row, group], of blocks."""
    form, (rows, columns) = blocks.format, blocks.shape
    panels, groups, _ = blocks.data.shape
    stored = blocks.data[..., : 2 * form.tile_bytes].reshape(panels, groups, 2, -1, TILE, 4)
    parts = [stored & 15, stored >> 4] if form.bits == 4 else [stored]
    stored = np.stack(parts, axis=5)  # [panel, group, tile, vector, row, half, 4]
    q = stored.transpose(0, 2, 4, 1, 3, 5, 6).reshape(panels * PANEL, groups * GROUP)
    scales = blocks.scales.transpose(0, 2, 1).reshape(panels * PANEL, groups)
    return q[:rows, :columns], scales[:rows]


def expand(blocks: Blocks) -> np.ndarray:
    """The values, float32 [row, column]: scale * (q - offset), rounded once."""
    q, scales = unpack(blocks)
    wide = np.repeat(scales.astype(np.float32), GROUP, axis=1)[:, : q.shape[1]]
    return wide * (q.astype(np.int16) - blocks.format.offset).astype(np.float32)


def _lanes(tiles: np.ndarray, form: Format) -> np.ndarray:
    """[panel, group, tile, row, 32] -> bytes [panel, group, tile, vector, row, 4]."""
    if form.bits == 8:
        return tiles.reshape(*tiles.shape[:4], 8, 4).swapaxes(3, 4)
    halves = tiles.reshape(*tiles.shape[:4], 4, 2, 4)
    return (halves[..., 0, :] | halves[..., 1, :] << 4).swapaxes(3, 4)
