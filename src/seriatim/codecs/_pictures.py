"""Image files and PIL images, as strangers made them, to plain ones; the only file that knows PIL.

A plain image is upright, of 8 bits, of mode L, LA, RGB or RGBA, and says of itself only its label
and, of one that is not finished, how many pixels it has. No image is decoded before its size is
checked, and only the formats below are opened, by content, whatever the name says.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.errors import FileError, RequestError, SeriatimError, shown
from seriatim.files.regular import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
MOST = 1 << 26  # pixels of a file: a sheet of 85,000 images of 28x28
FRAMES = 1 << 14
LABEL, LABELS, KNOWN = "label", "labels", "seriatim.pixels"  # names in `info`, and in PNG files

_LIKE = {  # what a mode is read as; "A" is added where a transparent colour is declared
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB",
    "RGBA": "RGBA", "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB",
}  # fmt: skip
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N")


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        SeriatimError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        fix = 'pip install "seriatim[image]"'
        raise SeriatimError("images need Pillow, which is not installed", fix=fix) from None
    return Image


def is_image(raw: Any) -> bool:
    """Whether it is a PIL image."""
    return isinstance(raw, pillow().Image)


def frames(path: Path) -> Iterator[tuple[str, "Image"]]:
    """The images in a file, plain, with their places: "" of the only one, "frame 1", ...

    Of a JPEG with further views or a gain map (MPO) the first image is the picture.

    Raises:
        FileError: it is no image of `FORMATS`, too large, damaged, or of an unknown kind.
    """
    with open_regular(path) as file, _decoding(path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow().DecompressionBombWarning)
            image = pillow().open(file, formats=FORMATS)
        check_size(image)
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        yield "frame 1" * several, _frame(image, 0)
        count = image.n_frames if several else 1  # of a GIF it is found by reading them all
        if count > FRAMES:
            raise FileError(f"{count} frames", expected=f"at most {FRAMES}")
        for index in range(1, count):
            yield f"frame {index + 1}", _frame(image, index)


def _frame(image: "ImageFile", index: int) -> "Image":
    image.seek(index)
    check_size(image)
    image.load()  # text behind the pixels is known after it
    return plain(image, texts=(LABELS,))


@contextmanager
def of_file(path: Path) -> Iterator[None]:
    """Errors raised within are errors of the file, and name it."""
    try:
        yield
    except SeriatimError as error:
        seen = error.seen if str(path) in error.seen else f"{path}: {error.seen}"
        raise FileError(seen, expected=error.expected, fix=error.fix) from error


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """So is whatever else goes wrong: decoders of damaged files raise anything."""
    try:
        with of_file(path):
            yield
    except SeriatimError:
        raise
    except Exception as error:
        what = str(error) or type(error).__name__
        if isinstance(error, pillow().UnidentifiedImageError):
            what = "no image of a known kind, or not its beginning"
        raise FileError(
            f"{path} cannot be read: {what:.200}",
            expected=f"a whole file of {', '.join(FORMATS)}, at most {MOST:,} pixels",
        ) from error


def check_size(image: "Image") -> None:
    """Refuse an image that is empty or huge.

    Raises:
        RequestError: its size.
    """
    width, height = image.size
    if width < 1 or height < 1 or width * height > MOST:
        seen = f"an image of {width}x{height}"
        raise RequestError(seen, expected=f"at least one pixel and at most {MOST:,}")


def plain(image: "Image", *, texts: Sequence[str] = ()) -> "Image":
    """An image of mode L, LA, RGB or RGBA, upright, with no `info` but that of this module.

    Of 16 bits the upper 8 count; CMYK and YCbCr are converted as Pillow does; profiles are ignored.

    Args:
        texts: further entries of `info` that stay.

    Raises:
        RequestError: an image of another mode, or that cannot be decoded.
    """
    check_size(image)
    if image.mode not in (*_LIKE, *_WIDE):
        seen = f"an image of mode {image.mode}"
        raise RequestError(seen, expected=f"one of {', '.join([*_LIKE, _WIDE[0]])}")
    from PIL import ImageOps

    kept: dict[Any, Any] = {n: str(image.info[n]) for n in (LABEL, *texts) if n in image.info}
    if (count := known(image)) is not None:
        kept[KNOWN] = count
    try:
        upright = ImageOps.exif_transpose(image)
        found = _narrow(upright) if image.mode in _WIDE else _eight(upright)
    except Exception as error:  # what is damaged shows only when it is decoded
        raise RequestError(f"an image that cannot be decoded: {error!s:.200}") from error
    found.info = kept
    return found


def _eight(image: "Image") -> "Image":
    mode = _LIKE[image.mode]
    if "transparency" in image.info and "A" not in mode:
        mode += "A"
    return image.convert(mode) if mode != image.mode else image.copy()


def _narrow(image: "Image") -> "Image":
    """Of 16 bits grey the upper 8; a transparent grey is compared by all 16."""
    wide = np.asarray(image).astype(np.uint16)
    grey = (wide >> 8).astype(np.uint8)
    if "transparency" not in image.info:
        return pillow().fromarray(grey)
    alpha = np.where(wide == image.info["transparency"], 0, 255).astype(np.uint8)
    return pillow().fromarray(np.stack([grey, alpha], 2))


def cut(sheet: "Image", shape: tuple[int, int], how: str) -> Iterator[tuple[str, "Image"]]:
    """The images of a sheet, with their places, from the top left on.

    Args:
        shape: width and height of an image.
        how: "rows": each row of the sheet is an image, its rows one after another; or "tiles".

    Raises:
        RequestError: the sheet does not hold a whole number of them.
    """
    (width, height), whole = shape, np.asarray(sheet)
    wide, high = (width * height, 1) if how == "rows" else shape
    if sheet.width % wide or sheet.height % high or (how == "rows" and sheet.width != wide):
        seen = f"a sheet of {sheet.width}x{sheet.height}"
        expected = f"{wide} pixels a row" if how == "rows" else f"whole tiles of {width}x{height}"
        raise RequestError(seen, expected=expected)
    across = sheet.width // wide
    for index in range(across * (sheet.height // high)):
        top, left = index // across * high, index % across * wide
        part = whole[top : top + high, left : left + wide]
        one = pillow().fromarray(part.reshape(height, width, *part.shape[2:]))
        yield (f"row {top + 1}" if how == "rows" else f"tile at {left},{top}"), one


def fitted(image: "Image", size: tuple[int, int], how: str, background: int) -> "Image":
    """A plain, opaque image of a size: as it is, or by `how`.

    Args:
        how: "none"; "crop" cuts the middle of that shape and scales it; "pad" scales it and puts it
            on the background; "scale" changes its shape.
        background: 0xRRGGBB.

    Raises:
        RequestError: it has another size and `how` is "none", or it is too narrow to be scaled.
    """
    if image.size == size:
        return image
    width, height = image.size
    if how == "none":
        raise RequestError(
            f"an image of {width}x{height}",
            expected=f"{size[0]}x{size[1]}",
            fix="make the codec with fit=crop, fit=pad or fit=scale, or scale it before",
        )
    from PIL import ImageOps

    filter = pillow().Resampling.LANCZOS
    try:
        if how == "scale":
            return image.resize(size, filter)
        if how == "crop":
            return ImageOps.fit(image, size, filter)
        return ImageOps.pad(image.convert("RGB"), size, filter, f"#{background:06x}")
    except ValueError as error:
        seen = f"an image of {width}x{height}, too narrow for fit={how}"
        raise RequestError(seen, fix="scale it before") from error


def opaque(image: "Image", background: int) -> "Image":
    """A plain image on a ground of the colour 0xRRGGBB, where it is not opaque."""
    if "A" not in image.mode:
        return image
    colour = (background >> 16, background >> 8 & 255, background & 255, 255)
    ground = pillow().new("RGBA", image.size, colour)
    whole = pillow().alpha_composite(ground, image.convert("RGBA"))
    return whole.convert("RGB")


def pixels(image: "Image", channels: int) -> np.ndarray:
    """uint8 [pixel, channel] of an opaque image; grey is luma, ITU-R BT.601."""
    mode = "L" if channels == 1 else "RGB"
    whole = image if image.mode == mode else image.convert(mode)
    return np.asarray(whole).reshape(-1, channels)


def clear(image: "Image") -> np.ndarray:
    """Which pixels have alpha 0: bool [pixel]."""
    if "A" not in image.mode:
        return np.zeros(image.width * image.height, bool)
    return np.asarray(image.getchannel("A")).ravel() == 0


def picture(known: np.ndarray, size: tuple[int, int], info: dict[str, Any]) -> "Image":
    """The image of its first pixels (uint8 [pixel, channel]); the others are transparent."""
    width, height = size
    count, channels = width * height, known.shape[1]
    whole = np.zeros((count, channels + (len(known) < count)), np.uint8)
    whole[: len(known), :channels] = known
    if len(known) < count:
        whole[: len(known), channels] = 255
        info = {**info, KNOWN: len(known)}
    shape = (height, width, whole.shape[1])[: 2 + (whole.shape[1] > 1)]  # L has no axis for it
    image = pillow().fromarray(whole.reshape(shape))
    image.info = dict(info)
    return image


def known(image: "Image") -> int | None:
    """How many pixels an unfinished image has, None of one that is whole.

    Raises:
        RequestError: what its `info` says is no such number.
    """
    if (given := image.info.get(KNOWN)) is None:
        return None
    most, text = image.width * image.height, str(given)
    if text.isascii() and text.isdigit() and int(text[:9]) <= most:
        return int(text[:9])
    raise RequestError(f"{KNOWN} is {shown(given)}", expected=f"0 to {most}")


def png(image: "Image") -> bytes:
    """A PNG file, with what a plain image says of itself as text."""
    from PIL.PngImagePlugin import PngInfo

    said, out = PngInfo(), BytesIO()
    for name, value in image.info.items():
        said.add_itxt(str(name), str(value))
    image.save(out, "PNG", pnginfo=said)
    return out.getvalue()


def grid(images: Sequence["Image"], *, columns: int | None = None) -> "Image":
    """Images of one size side by side, in rows, with a grey line between, enlarged to be seen.

    Args:
        images: plain ones; at least one.
        columns: default: as many as make it nearly square.
    """
    width, height = images[0].size
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    scale = max(1, 96 // max(width, height))
    cell, rows = (width * scale + 2, height * scale + 2), -(-len(images) // columns)
    whole = pillow().new("RGB", (columns * cell[0] + 2, rows * cell[1] + 2), "#808080")
    for index, image in enumerate(images):
        large = opaque(image, 0x808080).resize((width * scale, height * scale), 0)
        row, column = divmod(index, columns)
        whole.paste(large, (column * cell[0] + 2, row * cell[1] + 2))
    return whole


def examples(size: tuple[int, int]) -> Iterator["Image"]:
    """Images of a size, of several modes: a gradient, noise, noise with transparency, black."""
    width, height = size
    count = width * height
    steps = np.arange(count * 4, dtype=np.uint32)
    noise = (steps * np.uint32(2654435761) >> np.uint32(13)).astype(np.uint8)  # Knuth's multiplier
    grey = (np.arange(count) * 255 // max(count - 1, 1)).astype(np.uint8)
    yield pillow().fromarray(grey.reshape(height, width))
    yield pillow().fromarray(noise[: count * 3].reshape(height, width, 3))
    yield pillow().fromarray(noise.reshape(height, width, 4))
    yield pillow().new("1", size)
