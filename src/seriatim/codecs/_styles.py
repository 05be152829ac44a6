"""The options of the codec `image`: size, how pixels become values, labels, how files are taken."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seriatim.codecs import _palette, _pictures
from seriatim.codecs._files import read_text
from seriatim.codecs._options import parse
from seriatim.codecs._pixels import Binary, Colours, Levels, Way
from seriatim.errors import FileError, RequestError, shown

SIDE, COUNT = 1024, 1 << 16  # most pixels of a side, and of an image
COLOURS, LABELS = 1024, 4096  # most of a palette, and of labels

_OWN = {  # the options of each mode
    "binary": ("pack",),
    "grey": ("levels",),
    "palette": ("colours", "palette"),
    "rgb": ("levels", "channels"),
}
_ANY = ("labels", "fit", "sheet", "background")
_LIMITS = (
    ("width", 1, SIDE),
    ("height", 1, SIDE),
    ("pack", 1, 8),
    ("levels", 2, 256),
    ("colours", 2, COLOURS),
)


@dataclass(frozen=True)
class Style:
    """What a codec's images are; each field is an option.

    Attributes:
        size: width and height; or the two are given.
        mode: how pixels become values.
        pack: binary: pixels in a value, 1 to 8.
        levels: grey, rgb: values of a channel, 2 to 256.
        colours: palette: how many are learnt, at most.
        palette: RRGGBB-RRGGBB-..., or a file of colours; "": learnt from what is trained on.
        channels: rgb: the order of a pixel's three ids.
        labels: how many (their names are 0, 1, ...), or names: cat/dog; "": none.
        fit: what becomes of an image of another size: refused, or cut, padded, scaled to this one.
        sheet: of files to learn from: each is an image; or each of its rows; or each tile.
        background: RRGGBB, what shows through where an image is not opaque.
    """

    size: int = 16
    width: int = 0
    height: int = 0
    mode: Literal["binary", "grey", "palette", "rgb"] = "rgb"
    pack: int = 1
    levels: int = 256
    colours: int = 64
    palette: str = ""
    channels: Literal["rgb", "rbg", "grb", "gbr", "brg", "bgr"] = "rgb"
    labels: str = ""
    fit: Literal["none", "crop", "pad", "scale"] = "none"
    sheet: Literal["none", "rows", "tiles"] = "none"
    background: str = "ffffff"

    @property
    def shape(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def count(self) -> int:
        """Of pixels."""
        return self.width * self.height

    @property
    def ground(self) -> int:
        """The background as 0xRRGGBB."""
        return int(self.background, 16)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the labels."""
        if self.labels.isascii() and self.labels.isdigit():
            return tuple(map(str, range(int(self.labels))))
        return tuple(self.labels.split("/")) if self.labels else ()

    @property
    def values(self) -> int:
        """How many different ones there are; also of a palette that is still to be learnt."""
        learnt = self.mode != "palette" or self.palette
        return self.way.size if learnt else self.colours

    @property
    def way(self) -> Way:
        """How pixels become values.

        Raises:
            RequestError: the palette is still to be learnt.
        """
        if self.mode == "binary":
            return Binary(self.pack)
        if self.mode != "palette":
            return Levels(self.levels, self.channels if self.mode == "rgb" else "")
        if not self.palette:
            fix = "train a model with it, or give palette=RRGGBB-RRGGBB-... or palette=FILE"
            raise RequestError("the palette of codec image is not learnt yet", fix=fix)
        return Colours(_palette.parse(self.palette))

    def options(self) -> dict[str, Any]:
        """What makes it again."""
        own = {"width", "height", "mode", *_OWN[self.mode]}
        own -= {"colours"} if self.palette else {"palette"}
        every = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {
            name: value
            for name, (value, default) in every.items()
            if name in own or (name in _ANY and value != default)
        }


def style(given: Mapping[str, Any], *, files: bool = False) -> Style:
    """The style that options say, each checked.

    Args:
        given: the options, by name.
        files: a palette may be a file's name; codec.json never makes us read one.

    Raises:
        RequestError: one that there is not, or that cannot be honoured whole.
        FileError: a palette's file.
    """
    found = parse(Style, given, "image")
    for name in given:
        owners = [mode for mode, own in _OWN.items() if name in own]
        if owners and found.mode not in owners:
            seen = f"image:{name} is given with mode={found.mode}"
            raise RequestError(seen, expected=f"mode={' or mode='.join(owners)}", fix="or leave it")
    if "colours" in given and "palette" in given:
        raise RequestError("image has the options colours and palette", expected="one of them")
    sides = [name for name in ("width", "height") if name in given]
    if len(sides) == 1 or (sides and "size" in given):
        seen = f"image has the options {', '.join(n for n in given if n in ('size', *sides))}"
        raise RequestError(seen, expected="size, or width and height")
    if not sides:
        found = replace(found, width=found.size, height=found.size)
    for name, least, most in _LIMITS:
        if not least <= getattr(found, name) <= most:
            seen = f"image:{name} is {getattr(found, name)}"
            raise RequestError(seen, expected=f"a whole number from {least} to {most}")
    _check(found)
    return replace(found, palette=_given_palette(found.palette, files)) if found.palette else found


def _check(found: Style) -> None:
    """Refuse what does not fit together."""
    if found.count > COUNT:
        seen = f"images of {found.width}x{found.height}"
        raise RequestError(seen, expected=f"at most {COUNT} pixels")
    if found.count % found.pack:
        seen = f"image:pack is {found.pack}, of {found.width}x{found.height}={found.count} pixels"
        raise RequestError(seen, expected="a divisor of their number")
    if not re.fullmatch(r"[0-9a-fA-F]{6}", found.background):
        raise RequestError(f"image:background is {shown(found.background)}", expected="RRGGBB")
    _check_labels(found.labels)


def _check_labels(labels: str) -> None:
    expected = f"1 to {LABELS}, or different names: cat/dog"
    if re.fullmatch(r"[0-9]+", labels) and not 1 <= int(labels[:9]) <= LABELS:
        raise RequestError(f"image:labels is {labels:.40}", expected=expected)
    names = labels.split("/") if labels else []
    right = all(name.strip() == name != "" and name.isprintable() for name in names)
    if not right or len(set(names)) < len(names) or len(names) > LABELS:
        raise RequestError(f"image:labels is {shown(labels)}", expected=expected)


def _given_palette(text: str, files: bool) -> str:
    """RRGGBB-RRGGBB-..., of a file where it is no such text and files are meant."""
    if files and not re.fullmatch(r"[0-9a-fA-F]{6}(-[0-9a-fA-F]{6})*", text):
        text = _palette_file(Path(text))
    colours = _palette.parse(text)
    if len(colours) > COLOURS:
        raise RequestError(f"a palette of {len(colours)} colours", expected=f"at most {COLOURS}")
    return _palette.spelt(colours)


def _palette_file(path: Path) -> str:
    """The lines of a .hex or .txt file; the different colours of an image, as they first appear."""
    if path.suffix.lower() in (".hex", ".txt"):
        return "-".join(line.strip().lstrip("#") for line in read_text(path).split())
    with _pictures.of_file(path):
        _, image = next(_pictures.frames(path))
        codes = _palette.codes(_pictures.pixels(_pictures.opaque(image, 0xFFFFFF), 3))
        _, first = np.unique(codes, return_index=True)
        if len(first) > COLOURS:
            raise FileError(f"{len(first)} different colours", expected=f"at most {COLOURS}")
        return _palette.spelt(tuple(codes[np.sort(first)].tolist()))
