"""Images: pixels as ids in raster order, binary, grey, of a palette or RGB, with a class label.

A codec has one size of image, and its raw objects are PIL images. What is drawn so far of an image
is one too, whose other pixels are transparent.

    codec = codecs.made("image:size=16,mode=grey,levels=16")
    codec.decode(codec.encode(Image.open("icon.png")))
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.codecs import _pictures
from seriatim.codecs._base import Base, refused, words
from seriatim.codecs._drawing import Drawing, Pixels
from seriatim.codecs._palette import Counts, spelt
from seriatim.codecs._pictures import KNOWN, LABEL, LABELS
from seriatim.codecs._pixels import Raster
from seriatim.codecs._styles import Style, style
from seriatim.errors import FileError, RequestError, SeriatimError, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageCodec", "load", "make", "specimens"]

_MARK = "<|image|>"


class ImageCodec(Base):
    """Images of one size in one style; the ids are its values, a mark, and labels.

    The mark starts and ends a sequence. A label, where the codec has labels and the image one,
    comes before the pixels.
    """

    name, unit = "image", "pixel"
    suffixes = (".png",)

    def __init__(self, style: Style) -> None:
        self.style = style
        self.values = style.values
        self.start = self.ends = (self.values,)
        self.labels = dict(enumerate(style.names, self.values + 1))  # by id
        self.size = self.values + 1 + len(self.labels)
        self.specials = {_MARK: self.values}
        self.options = style.options()

    @cached_property
    def raster(self) -> Raster:
        """How its pixels become values.

        Raises:
            RequestError: its palette is still to be learnt.
        """
        return Raster(self.style.way, self.style.count)

    # ---- ids -----------------------------------------------------------------------------------

    def encode(self, raw: "Image | str", /) -> list[int]:
        """The label's id, if there is one, and the values of the pixels, as far as it has any.

        Args:
            raw: an image of the codec's size, or what its `fit` makes one of; or "label=NAME".

        Raises:
            RequestError: another object, size, mode or label.
        """
        image = self._image(raw)
        values = self._values(image)
        if (count := image.info.get(KNOWN)) is not None:
            if count % self.raster.way.pack:
                expected = f"a multiple of {self.raster.way.pack}"
                raise RequestError(f"{KNOWN} is {count}", expected=expected)
            values = values[: self.raster.place(count)]
        return [*self._label(image), *values.tolist()]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> "Image":
        """The image that `after` and `ids` draw, of mode L or RGB, its label in `info["label"]`.

        Of fewer pixels than all it is LA or RGBA: the rest is transparent, and `info` says how many
        there are. What comes after all of them is nothing.
        """
        so_far = Drawing(self, [*after, *ids])
        info = {} if so_far.label is None else {LABEL: so_far.label}
        return _pictures.picture(self.raster.pixels(so_far.values), self.style.shape, info)

    def stream(self, *, after: Sequence[int] = ()) -> Pixels:
        """The picture in characters, pixel by pixel."""
        return Pixels(self, after)

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many pixels `ids` complete."""
        before = self._place(after)
        return self.raster.whole(before + self._place(ids)) - self.raster.whole(before)

    def legal(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> np.ndarray:
        """As many values as an image has, each of its own channel, a label before them; the end."""
        place = self._place(after) + self._place(ids)
        allowed = np.zeros(self.size, bool)
        if place >= self.raster.length:
            allowed[list(self.ends)] = True
            return words(allowed)
        allowed[self.raster.way.at(place)] = True
        if not place and not self.labels.keys() & {*after, *ids}:
            allowed[list(self.labels)] = True
        return words(allowed)

    def agreeing(
        self, given: "Image | str", /, *, after: Sequence[int] = ()
    ) -> Callable[[Sequence[int]], np.ndarray]:
        """Which ids agree with an image whose pixels of alpha 0 are open, and with its label.

        Raises:
            RequestError: no such image, of another size, or the ids contradict it.
        """
        image = self._image(given)
        if image.size != self.style.shape:
            seen = f"an image of {image.width}x{image.height} is given in part"
            raise RequestError(seen, expected=f"{self.style.width}x{self.style.height}")
        target, care = self._values(image), self.raster.care(~_pictures.clear(image))
        label = self._label(image)
        decided = np.flatnonzero(care)
        last = int(decided[-1]) if len(decided) else -1

        def rule(ids: Sequence[int]) -> np.ndarray:
            so_far = Drawing(self, [*after, *ids])
            self._check(so_far, target, care, label)
            place = len(so_far.values)
            allowed = np.ones(self.size, bool)
            allowed[list(self.ends)] = place > last
            if not place and so_far.label is None and label:
                allowed[:] = False
                allowed[label] = True
            elif place < len(care) and care[place]:
                values = np.arange(self.values)
                allowed[self.values :] = False
                allowed[: self.values] = (values ^ target[place]) & care[place] == 0
                allowed[list(self.labels)] = not place and so_far.label is None
            return words(allowed)

        rule(())
        return rule

    # ---- files ---------------------------------------------------------------------------------

    def read(self, path: Path, /) -> "Image":
        """The one image in a file.

        Its label is its text chunk "label", or the name of its folder where that is a label.

        Raises:
            FileError: no image that can be read, several, or one of another size.
        """
        with _pictures.of_file(path):
            place, image = next(_pictures.frames(path))
            if place:
                raise FileError(f"{path} has several frames", fix="save each as a file of its own")
            return self._labelled(image, path, image.info.get(LABEL))

    def records(self, path: Path, /) -> Iterator[tuple[str, "Image | SeriatimError"]]:
        """The images to learn from: each frame, or each image of a sheet, in order.

        Where the codec has labels each must have one: the text chunk "label", of a sheet the word
        in the text chunk "labels", or the name of the folder.
        """
        for place, frame in _pictures.frames(path):
            with _pictures.of_file(path):
                images = list(self._cut(frame))
                labels = str(frame.info.get(LABELS, "")).split() if self.labels else []
                labels = labels or [frame.info.get(LABEL)] * len(images)
                if len(labels) != len(images):
                    seen = f"{len(labels)} labels"
                    raise FileError(seen, expected=f"{len(images)}, one an image")
            for (within, image), label in zip(images, labels, strict=True):
                yield self._record(image, path, f"{place} {within}".strip(), label)

    def write(self, raw: "Image | str", path: Path, /) -> None:
        """Writes a PNG file; its label is a text chunk.

        Raises:
            RequestError: the name does not end in .png.
        """
        path.write_bytes(self._png(path, self.canonical(raw)))

    def write_all(self, raws: Sequence[Any], path: Path, /) -> None:
        """Writes images into one PNG file, enlarged, side by side, to be looked at.

        Raises:
            RequestError: there are none, or the name does not end in .png.
        """
        if not raws:
            raise RequestError("there are no images to write", expected="at least one")
        path.write_bytes(self._png(path, _pictures.grid([self.canonical(raw) for raw in raws])))

    def render(self, raw: "Image | str", /) -> dict[str, Any]:
        """The picture in characters, and as PNG."""
        ids = self.encode(raw)
        return {
            "text/plain": Pixels(self, ids).finish(),
            "image/png": _pictures.png(self.decode(ids)),
        }

    def fitted(self, files: Sequence[Path], /) -> "ImageCodec":
        """With a palette of the files' colours, where it has none yet; else as it is.

        Raises:
            FileError: a file that is no image, or none holds one.
        """
        if self.style.mode != "palette" or self.style.palette:
            return self
        counts = Counts()
        for path in files:
            for _, image in self.records(path):
                if not isinstance(image, SeriatimError):
                    counts.add(self._pixels(image, 3))
        palette = counts.palette(self.style.colours)
        if not palette:
            raise FileError("no image to learn a palette from", expected="at least one")
        return ImageCodec(replace(self.style, palette=spelt(palette)))

    def examples(self) -> list[Any]:
        """Images of every mode that is read: gradients, noise, transparency."""
        found = list(_pictures.examples(self.style.shape))
        for number, image in enumerate(found[:-1] if self.labels else ()):
            image.info = {LABEL: self.labels[self.values + 1 + number % len(self.labels)]}
        return found

    # ---- parts ---------------------------------------------------------------------------------

    def _image(self, raw: Any) -> "Image":
        """A plain image of what was given."""
        if isinstance(raw, str):
            label = raw.removeprefix(f"{LABEL}=")
            if label == raw or not self.labels:
                forms = f"{LABEL}=NAME, or an image" if self.labels else "an image"
                raise RequestError(
                    f"the text {shown(raw)} given to codec image",
                    expected=forms,
                    fix="name a file with --prompt-file or --given-file, a pathlib.Path in Python",
                )
            nothing = np.empty((0, self.raster.way.channels), np.uint8)
            return _pictures.picture(nothing, self.style.shape, {LABEL: label})
        if not _pictures.is_image(raw):
            raise refused(self.name, raw, "a PIL image")
        return _pictures.plain(raw)

    def _values(self, image: "Image") -> np.ndarray:
        """The values of all its pixels, transparent ones too."""
        return self.raster.way.values(self._pixels(image, self.raster.way.channels))

    def _pixels(self, image: "Image", channels: int) -> np.ndarray:
        whole = _pictures.opaque(image, self.style.ground)
        fit = "none" if KNOWN in image.info else self.style.fit
        whole = _pictures.fitted(whole, self.style.shape, fit, self.style.ground)
        return _pictures.pixels(whole, channels)

    def _label(self, image: "Image") -> list[int]:
        """Its label's id; a codec without labels reads none."""
        label = image.info.get(LABEL)
        if not self.labels or label is None:
            return []
        found = [id for id, name in self.labels.items() if name == label]
        if not found:
            known = ", ".join([*self.labels.values()][:20])
            raise RequestError(f"the label {shown(label)}", expected=f"one of {known}")
        return found

    def _place(self, ids: Sequence[int]) -> int:
        """How many values they hold."""
        return sum(0 <= id < self.values for id in ids)

    def _check(
        self, so_far: Drawing, target: np.ndarray, care: np.ndarray, label: Sequence[int]
    ) -> None:
        """Refuse ids that are not of the image given."""
        values = np.array(so_far.values, np.int64)
        wrong = np.flatnonzero((values ^ target[: len(values)]) & care[: len(values)])
        if len(wrong):
            seen = f"value {wrong[0]} of the image (from 0) is {values[wrong[0]]}"
            raise RequestError(seen, expected=f"{target[wrong[0]]}, which is given")
        if label and so_far.label not in (None, self.labels[label[0]]):
            seen = f"the label is {so_far.label}"
            raise RequestError(seen, expected=f"{self.labels[label[0]]}, which is given")

    def _cut(self, frame: "Image") -> Iterator[tuple[str, "Image"]]:
        if self.style.sheet == "none":
            return iter([("", frame)])
        return _pictures.cut(frame, self.style.shape, self.style.sheet)

    def _record(
        self, image: "Image", path: Path, place: str, label: str | None
    ) -> tuple[str, "Image | SeriatimError"]:
        try:
            found = self._labelled(image, path, label)
            if self.labels and LABEL not in found.info:
                raise FileError("an image without a label", expected='a text chunk "label"')
            if KNOWN in found.info:
                raise FileError("an image that is not finished", expected="all of its pixels")
        except SeriatimError as error:
            return place, error
        return place, found

    def _labelled(self, image: "Image", path: Path, label: str | None) -> "Image":
        """With its label, once it is seen to be one of this codec's images."""
        if label is None and path.absolute().parent.name in self.labels.values():
            label = path.absolute().parent.name
        image.info = {n: v for n, v in image.info.items() if n == KNOWN}
        image.info |= {LABEL: label} if self.labels and label is not None else {}
        self._label(image)
        if self.style.fit == "none":
            _pictures.fitted(image, self.style.shape, "none", self.style.ground)
        return image

    def _png(self, path: Path, image: "Image") -> bytes:
        if path.suffix.lower() != ".png":
            raise RequestError(f"{path} is to be written", expected="a name that ends in .png")
        return _pictures.png(image)


def make(options: dict[str, str]) -> ImageCodec:
    """The codec of options that were typed; a palette may be a file.

    Raises:
        RequestError: an option that there is not, or that cannot be honoured.
        FileError: a palette's file.
    """
    return ImageCodec(style(options, files=True))


def load(folder: Path, options: dict[str, Any]) -> ImageCodec:
    """The codec of a folder whose codec.json names it.

    Raises:
        FileError: options that there are not, or that cannot be honoured.
    """
    try:
        return ImageCodec(style(options))
    except RequestError as error:
        seen = f"{folder / 'codec.json'}: {error.seen}"
        raise FileError(seen, expected=error.expected, fix=error.fix) from error


def specimens() -> list[ImageCodec]:
    """Codecs for the law tests."""
    return [
        ImageCodec(style(options))
        for options in (
            {"size": 8, "mode": "binary"},
            {"width": 6, "height": 4, "mode": "binary", "pack": 4, "labels": "3"},
            {"size": 4, "mode": "grey", "levels": 16, "labels": "cat/dog"},
            {"size": 4, "mode": "palette", "palette": "000000-ff0000-00ff00-ffffff"},
            {"size": 4, "levels": 4, "channels": "bgr", "background": "000000"},
            {"width": 5, "height": 3, "fit": "pad"},
        )
    ]
