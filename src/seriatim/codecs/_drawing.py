"""What the ids of an image draw, all at once or one by one, as values and as characters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from seriatim.codecs._pictures import LABEL

if TYPE_CHECKING:
    from seriatim.codecs.image import ImageCodec

_SHADES = ("  ", "░░", "▒▒", "▓▓", "██")  # two columns are about as wide as a line is high
_LUMA = np.array([299, 587, 114])  # thousandths, ITU-R BT.601


class Drawing:
    """What ids say of an image so far.

    Attributes:
        values: those that are no marks and no labels, at most as many as an image has.
        label: the first one's name, if it comes before the values.
    """

    def __init__(self, codec: "ImageCodec", ids: Sequence[int] = ()) -> None:
        self._codec, self._length = codec, codec.raster.length
        self.values: list[int] = []
        self.label: str | None = None
        for id in ids:
            self.take(id)

    def take(self, id: int) -> None:
        """Draws on."""
        if 0 <= id < self._codec.values and len(self.values) < self._length:
            self.values.append(id)
        elif id in self._codec.labels and self.label is None and not self.values:
            self.label = self._codec.labels[id]


class Pixels:
    """An image in characters: a line for its label, then rows of two characters a pixel.

    Dark pixels are blank, as on a dark screen. A pixel of which ids are missing is not shown.

    Args:
        codec: whose ids they are.
        after: ids that came before; what they draw comes with the first id's text.
    """

    def __init__(self, codec: "ImageCodec", after: Sequence[int] = ()) -> None:
        self._codec, self._so_far = codec, Drawing(codec, after)
        self._named, self._shown = False, 0

    def feed(self, id: int, /) -> str:
        """The text of the pixels that `id` completes."""
        self._so_far.take(id)
        return self.finish()

    def finish(self) -> str:
        """What is not shown yet."""
        named, self._named = self._named, self._so_far.label is not None
        line = f"{LABEL}={self._so_far.label}\n" if self._named and not named else ""
        return line + self._rows()

    def _rows(self) -> str:
        raster, width = self._codec.raster, self._codec.style.width
        values = self._so_far.values[raster.place(self._shown) :]
        first, self._shown = self._shown, raster.whole(len(self._so_far.values))
        pixels = raster.pixels(values)
        light = pixels[:, 0] if raster.way.channels == 1 else pixels @ _LUMA // 1000
        marks = [_SHADES[one * len(_SHADES) // 256] for one in light.tolist()]
        breaks = ["\n" * (at % width == 0 and at > 0) for at in range(first, self._shown)]
        return "".join(line + mark for line, mark in zip(breaks, marks, strict=True))
