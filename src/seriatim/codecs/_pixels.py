"""Ways to write pixels as values, the ids of an image that are neither marks nor labels.

Pixels are uint8 [pixel, channel] in raster order: one channel (grey) or three (red, green, blue).
Another way, such as the codes of a VQ autoencoder, is another `Way`. Nothing here knows files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from seriatim.codecs._palette import channels, nearest

WHITE = 255
_ORDER = {"r": 0, "g": 1, "b": 2}


class Way(Protocol):
    """How pixels become values, and what values become.

    Attributes:
        size: one more than the largest value.
        channels: of a pixel: 1 or 3.
        parts: how many values a pixel takes.
        pack: how many pixels a value takes; one of the two is 1.
    """

    @property
    def size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def parts(self) -> int: ...
    @property
    def pack(self) -> int: ...

    def values(self, pixels: np.ndarray, /) -> np.ndarray:
        """uint8 [pixel, channel] to int64 [value]."""
        ...

    def pixels(self, values: np.ndarray, /) -> np.ndarray:
        """int64 [value], whole pixels, to uint8 [pixel, channel]; any values below `size`."""
        ...

    def at(self, place: int, /) -> range:
        """What the value at a place of an image may be."""
        ...


@dataclass(frozen=True)
class Binary:
    """A pixel is off below 128 and else on; a value holds `pack` of them, the first in its top bit.

    Example:
        >>> Binary(4).values(np.array([[255], [0], [0], [200]], np.uint8)).tolist()
        [9]
    """

    pack: int = 1
    channels = parts = 1

    @property
    def size(self) -> int:
        return 1 << self.pack

    @property
    def _shifts(self) -> np.ndarray:
        return np.arange(self.pack)[::-1]

    def values(self, pixels: np.ndarray, /) -> np.ndarray:
        on = pixels.reshape(-1, self.pack) > WHITE // 2
        return (on.astype(np.int64) << self._shifts).sum(1)

    def pixels(self, values: np.ndarray, /) -> np.ndarray:
        bits = values[:, None] >> self._shifts & 1
        return (bits * WHITE).astype(np.uint8).reshape(-1, 1)

    def at(self, place: int, /) -> range:
        return range(self.size)


@dataclass(frozen=True)
class Levels:
    """Each channel in equal steps from 0 to 255, to the nearest; each in `order` has own values.

    Example:
        >>> Levels(2, "bgr").values(np.array([[255, 0, 130]], np.uint8)).tolist()
        [1, 2, 5]
    """

    levels: int = 256
    order: str = ""  # "": grey
    pack = 1

    @property
    def channels(self) -> int:
        return len(self.order) or 1

    parts = channels

    @property
    def size(self) -> int:
        return self.levels * self.parts

    @property
    def _places(self) -> list[int]:
        return [_ORDER[channel] for channel in self.order] or [0]

    def values(self, pixels: np.ndarray, /) -> np.ndarray:
        top = self.levels - 1
        steps = (pixels[:, self._places].astype(np.int64) * top + WHITE // 2) // WHITE
        return (steps + self.levels * np.arange(self.parts)).ravel()

    def pixels(self, values: np.ndarray, /) -> np.ndarray:
        top = self.levels - 1
        steps = (values % self.levels).reshape(-1, self.parts)
        found = np.empty(steps.shape, np.uint8)
        found[:, self._places] = (steps * WHITE + top // 2) // top
        return found

    def at(self, place: int, /) -> range:
        first = place % self.parts * self.levels
        return range(first, first + self.levels)


@dataclass(frozen=True)
class Colours:
    """A value is the place of the nearest colour of a palette.

    Attributes:
        palette: colours as 0xRRGGBB, each once.
    """

    palette: tuple[int, ...]
    channels, parts, pack = 3, 1, 1

    @property
    def size(self) -> int:
        return len(self.palette)

    @cached_property
    def _table(self) -> np.ndarray:
        return channels(np.array(self.palette))

    def values(self, pixels: np.ndarray, /) -> np.ndarray:
        return nearest(pixels, self._table)

    def pixels(self, values: np.ndarray, /) -> np.ndarray:
        return self._table[values]

    def at(self, place: int, /) -> range:
        return range(self.size)


@dataclass(frozen=True)
class Raster:
    """An image of some pixels in one way.

    Attributes:
        way: how pixels become values.
        count: of its pixels, a multiple of `way.pack`.
    """

    way: Way
    count: int

    @property
    def length(self) -> int:
        """How many values an image takes."""
        return self.place(self.count)

    def place(self, pixels: int) -> int:
        """How many values the first pixels take."""
        return pixels * self.way.parts // self.way.pack

    def whole(self, values: int) -> int:
        """How many pixels are whole when there are so many values; more than all are none."""
        return min(values, self.length) * self.way.pack // self.way.parts

    def pixels(self, values: Sequence[int]) -> np.ndarray:
        """Those that are whole: uint8 [pixel, channel]."""
        size = self.place(self.whole(len(values)))
        return self.way.pixels(np.array(values[:size], np.int64))

    def care(self, known: np.ndarray) -> np.ndarray:
        """Which bits of each value known pixels (bool [pixel]) decide: int64 [value]."""
        if self.way.pack > 1:
            return Binary(self.way.pack).values(known[:, None] * np.uint8(WHITE))
        return np.repeat(np.where(known, -1, 0), self.way.parts)
