"""Images: what becomes of every kind of file, of hostile ones, and of images given in part."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import seriatim
from seriatim import cli, codecs
from seriatim.codecs import _palette, _pictures, image
from seriatim.engine.constrain import allows
from seriatim.errors import FileError, RequestError, SeriatimError
from seriatim.train.data import prepare

GUIDE = Path(__file__).parents[1] / "docs" / "image.md"


def made(options: str) -> image.ImageCodec:
    codec = codecs.made(f"image:{options}")
    assert isinstance(codec, image.ImageCodec)
    return codec


def grey(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint8))


def noise(*shape: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, shape, np.uint8))


def model(folder: Path, codec: codecs.Codec, **config) -> seriatim.Model:
    """One of random weights, whose ids are the codec's."""
    ends = dict(bos_token_id=codec.start[0], eos_token_id=codec.ends[0])
    tiny.write(folder, codec=False, vocab_size=codec.size, ids=ends, **config)
    codec.save(folder)
    return seriatim.load(folder, threads=1)


# ---- pixels as ids ----------------------------------------------------------------------------


def test_binary_pixels_are_on_from_128():
    codec = made("size=2,mode=binary")
    assert codec.encode(grey([0, 127], [128, 255])) == [0, 0, 1, 1]
    assert codec.size == 3


def test_several_binary_pixels_are_one_id_the_first_in_its_top_bit():
    codec = made("width=4,height=2,mode=binary,pack=8")
    ids = codec.encode(grey([255, 0, 0, 0], [0, 0, 255, 255]))
    assert ids == [0b10000011]
    assert (codec.size, codec.units(ids)) == (257, 8)


def test_grey_levels_are_the_nearest():
    codec = made("size=2,mode=grey,levels=4")
    assert codec.encode(grey([0, 42], [43, 255])) == [0, 0, 1, 3]
    assert np.asarray(codec.decode([0, 1, 2, 3])).tolist() == [[0, 85], [170, 255]]


def test_channels_have_ids_of_their_own_in_the_order_asked_for():
    pixel = Image.new("RGB", (1, 1), (1, 2, 3))
    assert made("size=1").encode(pixel) == [1, 256 + 2, 512 + 3]
    assert made("size=1,channels=bgr").encode(pixel) == [3, 256 + 2, 512 + 1]
    assert made("size=1,channels=grb").decode([2, 256 + 1, 512 + 3]) == pixel


def test_pixels_of_a_palette_are_its_nearest_colours():
    codec = made("size=2,mode=palette,palette=000000-ff0000-ffffff")
    raw = Image.new("RGB", (2, 2), (200, 10, 10))
    raw.putpixel((1, 1), (250, 250, 250))
    assert codec.encode(raw) == [1, 1, 1, 2]


def test_ids_are_in_raster_order():
    codec = made("width=3,height=2,mode=grey")
    raw = grey([1, 2, 3], [4, 5, 6])
    assert codec.encode(raw) == [1, 2, 3, 4, 5, 6]
    assert codec.decode([1, 2, 3, 4, 5, 6]) == raw


@given(data=st.data())
@settings(max_examples=40)
def test_whatever_an_image_becomes_stays_as_it_is(data):
    options = data.draw(
        st.sampled_from(
            ["mode=binary,pack=2", "mode=grey,levels=7", "mode=grey", "levels=3", "channels=brg"]
        )
    )
    codec = made(f"width=4,height=3,{options}")
    shape = data.draw(st.sampled_from([(3, 4), (3, 4, 2), (3, 4, 3), (3, 4, 4)]))
    raw = noise(*shape, seed=data.draw(st.integers(0, 1 << 32)))
    ids = codec.encode(raw)
    assert codec.encode(codec.decode(ids)) == ids
    assert codec.units(codec.prompt(raw)) == 12


# ---- what is read -----------------------------------------------------------------------------


def saved(path: Path, raw: Image.Image, kind: str = "PNG", **options) -> Path:
    raw.save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_a_file_is_known_by_its_content(tmp_path, kind):
    raw = Image.new("RGB", (4, 4), (255, 0, 0))
    for name in ("right", "wrong.png", "wrong.jpg"):
        path = saved(tmp_path / name, raw, kind, lossless=True)
        assert made("size=4").canonical(made("size=4").read(path)) == raw


def test_a_jpeg_named_png_is_a_jpeg(tmp_path):
    path = saved(tmp_path / "photo.png", Image.new("RGB", (8, 8), (0, 128, 255)), "JPEG")
    colour = made("size=8").read(path).getpixel((3, 3))
    assert np.abs(np.subtract(colour, (0, 128, 255))).max() <= 3


def test_transparency_shows_the_background(tmp_path):
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 128))
    path = saved(tmp_path / "half.png", half)
    white, black = (made(f"width=2,height=1,background={b}") for b in ("ffffff", "000000"))
    assert white.encode(white.read(path)) == [255, 511, 767, 255, 256 + 127, 512 + 127]
    assert black.encode(black.read(path))[:3] == [0, 256, 512]


def test_a_transparent_colour_of_a_palette_is_transparent(tmp_path):
    raw = Image.new("P", (2, 2), 1)
    raw.putpalette([9, 9, 9, 200, 100, 50])
    raw.putpixel((0, 0), 0)
    codec = made("size=2")
    ids = codec.encode(codec.read(saved(tmp_path / "p.png", raw, transparency=0)))
    assert ids[:6] == [255, 511, 767, 200, 356, 562]


@pytest.mark.parametrize("transparent", [None, 0x1234])
def test_of_sixteen_bits_the_upper_eight_count(tmp_path, transparent):
    raw = Image.fromarray(np.array([[0x1234, 0xFFFF], [0x00FF, 0x80FF]], np.uint16))
    path = tmp_path / "wide.png"
    path.write_bytes(wide_png(raw, transparent))
    codec = made("size=2,mode=grey")
    first = 0x12 if transparent is None else 255
    assert codec.encode(codec.read(path)) == [first, 0xFF, 0x00, 0x80]
    assert codec.encode(raw) == [0x12, 0xFF, 0x00, 0x80]


def wide_png(raw: Image.Image, transparent: int | None) -> bytes:
    """A grey PNG of 16 bits; Pillow writes no transparent colour into one."""
    out = io.BytesIO()
    raw.save(out, "PNG")
    data = out.getvalue()
    extra = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    at = data.index(b"IDAT") - 4
    return data[:at] + extra + data[at:]


def test_sixteen_bits_of_a_colour_lose_the_lower_eight(tmp_path):
    path = tmp_path / "wide.png"
    row = b"\0" + struct.pack(">3H", 0x12FF, 0x8000, 0xFEFF)
    path.write_bytes(png(1, 1, row, depth=16, colour=2))
    assert made("size=1").encode(made("size=1").read(path)) == [0x12, 256 + 0x80, 512 + 0xFE]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_a_camera_says_of_its_orientation_is_applied(tmp_path, orientation):
    raw = noise(3, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", raw, exif=exif)
    turned = orientation >= 5
    codec = made("width=3,height=4" if turned else "width=4,height=3")
    pixels = np.asarray(raw)
    wanted = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1),
        7: np.rot90(pixels.transpose(1, 0, 2), 2), 8: np.rot90(pixels),
    }  # fmt: skip
    found = codec.read(path)
    assert (np.asarray(found) == wanted[orientation]).all()
    assert codec.encode(found) == codec.encode(Image.open(path)), "of an open image as of a file"
    assert found.info == {}, "it is upright now: a second reader must not turn it again"


def test_cmyk_is_converted_and_a_profile_is_ignored(tmp_path):
    ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    codec = made("size=8")
    found = codec.decode(codec.encode(codec.read(saved(tmp_path / "ink.jpg", ink, "JPEG"))))
    assert np.abs(np.subtract(found.getpixel((4, 4)), (0, 255, 255))).max() <= 4
    raw = noise(8, 8, 3)
    profiled = saved(tmp_path / "profile.png", raw, icc_profile=b"not even a profile")
    assert codec.read(profiled) == raw


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_an_image_of_every_common_mode_is_encoded(mode):
    raw = (
        noise(4, 4, 3).convert(mode) if mode != "PA" else noise(4, 4, 3).convert("P").convert(mode)
    )
    for codec in (made("size=4"), made("size=4,mode=binary")):
        assert codec.units(codec.encode(raw)) == 16


@pytest.mark.parametrize("mode", ["I", "F", "HSV", "LAB", "RGBX"])
def test_an_image_of_another_mode_is_refused_by_name(mode):
    with pytest.raises(RequestError, match=f"mode {mode}"):
        made("size=4").encode(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("raw", [7, b"x", None, np.zeros((4, 4), np.uint8), "hello"])
def test_what_is_no_image_is_refused(raw):
    with pytest.raises(RequestError, match="given to codec image"):
        made("size=4").encode(raw)


def test_several_frames_are_several_records_and_no_image(tmp_path):
    every = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    codec = made("size=4")
    for kind in ("GIF", "PNG", "WEBP"):
        path = tmp_path / f"film.{kind}"
        every[0].save(path, kind, save_all=True, append_images=every[1:], lossless=True)
        with pytest.raises(FileError, match="several frames"):
            codec.read(path)
        records = list(codec.records(path))
        assert [place for place, _ in records] == ["frame 1", "frame 2", "frame 3"]
        assert [codec.canonical(raw) for _, raw in records] == every


def test_of_a_photograph_with_a_second_view_the_first_counts(tmp_path):
    path, first = tmp_path / "photo.jpg", Image.new("RGB", (8, 8), "red")
    first.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert made("size=8").read(path).getpixel((0, 0))[0] > 250
    assert [place for place, _ in made("size=8").records(path)] == [""]


# ---- sizes ------------------------------------------------------------------------------------


def test_another_size_is_refused_with_both(tmp_path):
    path = saved(tmp_path / "large.png", noise(5, 6, 3))
    with pytest.raises(FileError, match=r"large.png.*6x5; expected 4x4; .*fit=crop"):
        made("size=4").read(path)
    with pytest.raises(RequestError, match="6x5; expected 4x4"):
        made("size=4").encode(noise(5, 6, 3))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(shape):
    with pytest.raises(RequestError, match=f"{shape[0]}x{shape[1]}; expected at least one pixel"):
        made("size=4,fit=pad").encode(Image.new("L", shape))


def test_a_name_of_a_label_may_be_a_digit_of_another_script():
    assert made("size=2,labels=²").labels == {769: "²"}


def test_another_size_is_fitted_only_if_asked():
    wide = Image.new("RGB", (8, 4), "red")
    wide.paste("blue", (4, 0, 8, 4))
    crop, pad, scale = (
        made(f"size=4,fit={how}").canonical(wide) for how in ("crop", "pad", "scale")
    )
    colours = lambda found: [found.getpixel((x, 2)) for x in (0, 3)]  # noqa: E731
    assert colours(crop) == colours(scale) == [(255, 0, 0), (0, 0, 255)]
    assert [pad.getpixel((0, y))[:3] for y in (0, 3)] == [(255, 255, 255)] * 2, "the background"
    assert pad.getpixel((0, 1))[2] == 0


@pytest.mark.parametrize("how", ["crop", "pad", "scale"])
@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
def test_an_extreme_shape_is_fitted_or_refused(how, shape):
    with suppress(RequestError):
        assert made(f"size=4,fit={how}").canonical(noise(*shape)).size == (4, 4)


# ---- hostile files ----------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, rows: bytes, *, depth=8, colour=0, extra: bytes = b"") -> bytes:
    """A PNG file that may lie about anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


GOOD = png(4, 4, bytes(20))
HUGE = zlib.compress(bytes(1 << 24))
HOSTILE = {
    "empty": b"",
    "text": b"not an image at all",
    "zip": b"PK\x03\x04" + bytes(100),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n",
    "tiff": b"II*\0" + bytes(100),
    "no width": png(0, 4, b""),
    "no height": png(4, 0, b""),
    "huge": png(100_000, 100_000, b""),
    "the largest": png(2**31 - 1, 2**31 - 1, b""),
    "just too large": png(8193, 8192, b""),
    "no pixels": png(4, 4, b""),
    "cut": GOOD[:-30],
    "cut in the header": GOOD[:20],
    "a damaged header": GOOD[:20] + b"\xff" + GOOD[21:],
    "too many frames": png(4, 4, bytes(20), extra=chunk(b"acTL", b"\x7f\xff\xff\xff" * 2)),
    "frames that are not there": png(
        4, 4, bytes(20), extra=chunk(b"acTL", struct.pack(">II", 3, 0))
    ),
    "a text that grows": png(4, 4, bytes(20), extra=chunk(b"zTXt", b"label\0\0" + HUGE)),
    "a profile that grows": png(4, 4, bytes(20), extra=chunk(b"iCCP", b"x\0\0" + HUGE)),
    "a gif of no size": b"GIF89a" + bytes(7) + b";",
    "a gif cut": b"GIF89a\x04\0\x04\0\x80\0\0" + bytes(6) + b",\0\0\0\0\x04\0\x04\0\0\x02",
    "a bmp that lies": b"BM" + struct.pack("<4I", 54, 0, 54, 40)
    + struct.pack("<iiHH6I", 1 << 30, 1 << 30, 1, 24, *[0] * 6),
    "a jpeg's beginning": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(9),
    "a webp's beginning": b"RIFF\x10\0\0\0WEBPVP8 " + bytes(8),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_that_names_it(tmp_path, name):
    path = tmp_path / "file.png"
    path.write_bytes(HOSTILE[name])
    for use in (made("size=4").read, lambda path: list(made("size=4").records(path))):
        with pytest.raises(FileError, match=re.escape(str(path))) as error:
            use(path)
        assert "\n" not in str(error.value)


def test_a_good_file_is_not_refused(tmp_path):
    """Lest the refusals above be for some other reason."""
    (tmp_path / "file.png").write_bytes(GOOD)
    assert made("size=4").encode(made("size=4").read(tmp_path / "file.png")) == [0, 256, 512] * 16


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    path.write_bytes(HOSTILE["just too large"])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(FileError, match="8193x8192; expected at least one pixel and at most"):
        made("size=4").read(path)


@pytest.mark.parametrize("special", ["folder", "pipe", "missing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, special):
    import os

    path = tmp_path / special
    if special == "folder":
        path.mkdir()
    if special == "pipe":
        os.mkfifo(path)
    with pytest.raises(FileError, match=special):
        made("size=4").read(path)


def every_kind() -> list[bytes]:
    raw, files = noise(4, 4, 3), []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        out = io.BytesIO()
        raw.save(out, kind)
        files.append(out.getvalue())
    return files


WHOLE = every_kind()


@given(data=st.data())
@settings(max_examples=150)
def test_damage_anywhere_gives_an_image_or_a_refusal(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(content[:end])
    codec = made("size=4,labels=3")
    try:
        assert codec.units(codec.encode(codec.read(path))) == 16
    except FileError as error:
        assert str(path) in str(error)


# ---- labels, sheets ---------------------------------------------------------------------------


def test_a_label_comes_before_the_pixels():
    codec = made("size=2,mode=binary,labels=cat/dog")
    raw = grey([0, 255], [0, 0])
    raw.info["label"] = "dog"
    assert codec.labels == {3: "cat", 4: "dog"}
    assert codec.encode(raw) == [4, 0, 1, 0, 0]
    assert codec.decode([4, 0, 1, 0, 0]).info == {"label": "dog"}
    assert codec.prompt("label=dog") == [2, 4]
    assert codec.render(raw)["text/plain"] == "label=dog\n  ██\n    "


def test_a_label_is_kept_in_a_file_and_a_folder_can_say_it(tmp_path):
    codec = made("size=2,mode=grey,labels=cat/dog")
    raw = grey([0, 255], [0, 0])
    raw.info["label"] = "dog"
    codec.write(raw, tmp_path / "a.png")
    assert codec.read(tmp_path / "a.png").info == {"label": "dog"}
    (tmp_path / "cat").mkdir()
    grey([0, 255], [0, 0]).save(tmp_path / "cat" / "b.png")
    assert codec.read(tmp_path / "cat" / "b.png").info == {"label": "cat"}
    assert made("size=2,mode=grey").read(tmp_path / "a.png").info == {}


def test_a_label_that_there_is_not_is_refused_by_name(tmp_path):
    codec = made("size=2,mode=grey,labels=cat/dog")
    raw = grey([0, 255], [0, 0])
    raw.info["label"] = "cow"
    with pytest.raises(RequestError, match="'cow'; expected one of cat, dog"):
        codec.encode(raw)
    with pytest.raises(RequestError, match="'cow'"):
        codec.encode("label=cow")
    with pytest.raises(RequestError, match="given to codec image"):
        made("size=2").encode("label=cat")


def test_an_image_without_a_label_is_no_record_where_labels_are_learnt(tmp_path):
    saved(tmp_path / "a.png", noise(2, 2))
    codec = made("size=2,mode=grey,labels=2")
    assert isinstance(codec.read(tmp_path / "a.png"), Image.Image), "it can be given or scored"
    ((place, error),) = codec.records(tmp_path / "a.png")
    assert place == ""
    assert "without a label" in str(error)


def test_each_row_of_a_sheet_is_an_image(tmp_path):
    sheet = noise(3, 6)
    text = PngImagePlugin.PngInfo()
    text.add_text("labels", "1 0 1")
    path = saved(tmp_path / "sheet.png", sheet, pnginfo=text)
    codec = made("width=3,height=2,mode=grey,sheet=rows,labels=2")
    records = list(codec.records(path))
    assert [place for place, _ in records] == ["row 1", "row 2", "row 3"]
    assert [raw.info["label"] for _, raw in records] == ["1", "0", "1"]
    assert np.asarray(sheet).tolist() == [codec.encode(raw)[1:] for _, raw in records]
    with pytest.raises(FileError, match="6x3; expected 9 pixels a row"):
        list(made("size=3,sheet=rows").records(path))
    with pytest.raises(FileError, match="3 labels; expected 9"):
        list(made("width=2,height=1,labels=2,sheet=tiles").records(path))


def test_a_sheet_is_cut_into_tiles(tmp_path):
    sheet = noise(4, 6, 4)
    path = saved(tmp_path / "sheet.png", sheet)
    codec = made("width=3,height=2,sheet=tiles")
    records = dict(codec.records(path))
    assert list(records) == ["tile at 0,0", "tile at 3,0", "tile at 0,2", "tile at 3,2"]
    assert records["tile at 3,2"] == sheet.crop((3, 2, 6, 4))
    with pytest.raises(FileError, match="sheet of 6x4; expected whole tiles of 4x4"):
        list(made("size=4,sheet=tiles").records(path))


# ---- palettes ---------------------------------------------------------------------------------


def test_few_colours_are_learnt_as_they_are(tmp_path):
    raw = Image.new("RGB", (4, 4), "white")
    raw.paste("#102030", (0, 0, 2, 2))
    path = saved(tmp_path / "a.png", raw)
    codec = made("size=4,mode=palette,colours=8").fitted([path])
    assert codec.style.palette == "102030-ffffff"
    assert codec.canonical(raw) == raw
    assert codec.size == 3


def test_many_colours_become_few_the_same_in_any_order_and_place(tmp_path):
    paths = [saved(tmp_path / f"{n}.png", noise(8, 8, 3, seed=n)) for n in range(9)]
    moved = [saved(tmp_path / f"x{8 - n}.png", noise(8, 8, 3, seed=n)) for n in range(9)]
    first, second = (
        made("size=8,mode=palette,colours=16").fitted(sorted(some)) for some in (paths, moved)
    )
    assert first.style.palette == second.style.palette
    assert first.style.palette.count("-") == 15
    everything = np.concatenate(
        [np.asarray(noise(8, 8, 3, seed=n)).reshape(-1, 3) for n in range(9)]
    )
    table = _palette.channels(np.array(_palette.parse(first.style.palette)))
    off = everything.astype(int) - table[_palette.nearest(everything, table)]
    alone = everything - everything.mean(0)
    assert (off**2).sum() < 0.25 * (alone**2).sum(), "16 colours of noise leave less than a quarter"


def test_more_colours_than_are_compared_are_counted_in_coarser_steps():
    counts = _palette.Counts()
    codes = np.arange(0, 1 << 24, 251)
    assert len(codes) > _palette.DISTINCT
    counts.add(_palette.channels(codes))
    found = counts.palette(4)
    assert len(found) == 4
    light = _palette.channels(np.array(found)) @ [299, 587, 114]
    assert (np.diff(light) >= 0).all(), "dark ones first"


def test_a_palette_can_be_a_file(tmp_path):
    (tmp_path / "a.hex").write_text("000000\n#FF0000\n")
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0], [0, 0, 0]]], np.uint8)).save(
        tmp_path / "a.png"
    )
    for name in ("a.hex", "a.png"):
        codec = made(f"size=2,mode=palette,palette={tmp_path / name}")
        assert codec.style.palette == "000000-ff0000"


def test_files_of_one_colour_make_a_palette_that_is_loaded_again(tmp_path):
    path = saved(tmp_path / "a.png", Image.new("L", (4, 4), 255))
    codec = made("size=4,mode=palette").fitted([path])
    codec.save(tmp_path)
    assert codecs.load(tmp_path).encode(Image.open(path)) == [0] * 16


def test_an_image_of_too_many_colours_is_no_palette(tmp_path):
    path = saved(tmp_path / "a.png", noise(64, 64, 3))
    with pytest.raises(FileError, match=r"a\.png: .* different colours; expected at most 1024"):
        made(f"size=4,mode=palette,palette={path}")


def test_a_palette_that_is_still_to_be_learnt_says_so():
    codec = made("size=4,mode=palette,colours=8")
    assert codec.size == 9
    for use in (lambda: codec.encode(noise(4, 4)), lambda: codec.decode([1]), codec.stream):
        with pytest.raises(RequestError, match=r"not learnt yet.*palette=FILE"):
            use()


# ---- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("size=0", "width is 0"),
        ("size=2000", "expected a whole number from 1 to 1024"),
        ("size=1024", "1024x1024; expected at most 65536 pixels"),
        ("size=-1", "size is '-1'"),
        ("sise=4", "did you mean size"),
        ("width=4", "expected size, or width and height"),
        ("size=4,width=4,height=4", "expected size, or width and height"),
        ("mode=colour", "expected binary or grey or palette or rgb"),
        ("mode=grey,pack=2", "pack is given with mode=grey; expected mode=binary"),
        ("mode=binary,levels=2", "expected mode=grey or mode=rgb"),
        ("size=3,mode=binary,pack=2", "expected a divisor"),
        ("mode=binary,pack=9", "pack is 9"),
        ("mode=grey,levels=1", "levels is 1"),
        ("mode=grey,levels=257", "levels is 257"),
        ("channels=rrr", "channels is 'rrr'"),
        ("mode=palette,palette=" + "-".join(f"{n:06x}" for n in range(1025)), "of 1025 colours"),
        ("mode=palette,palette=000000-000000", "000000 twice"),
        ("mode=palette,palette=0-1", "0-1"),
        ("mode=palette,colours=4,palette=000000-ffffff", "colours and palette"),
        ("background=red", "background is 'red'; expected RRGGBB"),
        ("labels=0", "labels is 0"),
        ("labels=99999999999999999999", "labels is 999"),
        ("labels=cat/cat", "different names"),
        ("labels=cat/", "different names"),
        ("labels=cat/\x1b[2J", "different names"),
        ("fit=yes", "fit is 'yes'"),
        ("sheet=yes", "sheet is 'yes'"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(options, names):
    with pytest.raises((RequestError, FileError), match=re.escape(names)):
        made(options)


def test_a_folder_s_codec_never_reads_another_file(tmp_path):
    (tmp_path / "a.hex").write_text("000000\nff0000\n")
    options = {"mode": "palette", "palette": str(tmp_path / "a.hex")}
    said = {"codec": "image", "version": 1, "options": options}
    (tmp_path / "codec.json").write_text(json.dumps(said))
    with pytest.raises(FileError, match=r"codec\.json: palette is"):
        codecs.load(tmp_path)


@pytest.mark.parametrize("options", [{"size": "4"}, {"size": 4}, {"palette": "000000"}, {"a": 1}])
def test_options_of_a_folder_are_checked_as_typed_ones_are(tmp_path, options):
    said = {"codec": "image", "version": 1, "options": options}
    (tmp_path / "codec.json").write_text(json.dumps(said))
    if "size" in options:
        assert codecs.load(tmp_path).size == 769
    else:
        with pytest.raises(FileError, match=r"codec\.json"):
            codecs.load(tmp_path)


# ---- images in part ---------------------------------------------------------------------------


def test_fewer_ids_than_an_image_draw_its_beginning():
    codec = made("width=3,height=2,mode=grey")
    part = codec.decode([10, 20, 30, 40])
    assert part.mode == "LA"
    assert part.size == (3, 2)
    assert np.asarray(part)[..., 1].tolist() == [[255, 255, 255], [255, 0, 0]]
    assert codec.encode(part) == [10, 20, 30, 40]
    assert codec.render(part)["text/plain"].count("\n") == 1
    assert codec.decode([30, 40], after=[10, 20]) == part, "what came before belongs to it"
    assert codec.units([30, 40], after=[10, 20]) == 2


def test_what_comes_after_a_whole_image_is_nothing():
    codec = made("size=2,mode=grey")
    assert codec.decode([1, 2, 3, 4, 5, 6]) == codec.decode([1, 2, 3, 4])
    assert codec.units([1, 2, 3, 4, 5, 6]) == 4
    assert codec.differs([1, 2, 3, 4, 5])


def test_an_unfinished_image_is_read_again_as_such(tmp_path):
    codec = made("width=3,height=2,levels=4")
    part = codec.decode([1, 4, 8, 2, 5, 9, 3])
    assert part.info == {"seriatim.pixels": 2}
    codec.write(part, tmp_path / "part.png")
    assert codec.read(tmp_path / "part.png") == part
    ((_, error),) = codec.records(tmp_path / "part.png")
    assert "not finished" in str(error), "half an image is nothing to learn from"


@pytest.mark.parametrize("said", [-1, 10, "x", "9" * 5000, 1.5, 3])
def test_a_count_of_pixels_that_cannot_be_is_refused(said):
    raw = noise(2, 4)
    raw.info["seriatim.pixels"] = said
    with pytest.raises(RequestError, match=r"seriatim\.pixels is"):
        made("width=4,height=2,mode=binary,pack=2").encode(raw)


def test_the_text_comes_pixel_by_pixel():
    codec = made("width=2,height=2,levels=4")
    stream = codec.stream()
    ids = codec.encode(Image.new("RGB", (2, 2), "white"))
    pieces = [stream.feed(id) for id in ids]
    assert pieces == ["", "", "██", "", "", "██", "", "", "\n██", "", "", "██"]


def half(size: int, seed: int = 0) -> Image.Image:
    """An image whose lower half and one pixel more are open."""
    raw = noise(size, size, 4, seed=seed)
    raw.putalpha(255)
    raw.paste((7, 7, 7, 0), (0, size // 2, size, size))
    raw.putpixel((1, 0), (9, 9, 9, 0))
    return raw


@pytest.mark.parametrize(
    "options", ["levels=4", "mode=grey", "mode=binary,pack=4", "mode=palette,palette=000000-ff8000"]
)
def test_the_open_pixels_of_a_given_image_are_generated(tmp_path, options):
    codec = made(f"size=4,{options}")
    machine = model(tmp_path / "model", codec)
    results = machine.generate(given=half(4), n=3, seed=1)
    wanted, known = codec.canonical(half(4)), ~_pictures.clear(half(4)).reshape(4, 4)
    for result in results.samples:
        assert result.stop == codec.ends[0]
        assert (np.asarray(result.output)[known] == np.asarray(wanted)[known]).all()
    assert len({tuple(result.ids) for result in results.samples}) == 3


def test_a_given_file_is_completed_from_the_command_line(tmp_path, capsys):
    codec = made("size=4,mode=grey,levels=4")
    model(tmp_path / "model", codec)
    half(4).save(tmp_path / "half.png")
    call = ["generate", "-m", str(tmp_path / "model"), "--given-file", str(tmp_path / "half.png")]
    call += ["--seed", "3", "--threads", "1"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*call, "--out", str(tmp_path / "whole.png")])
    whole, known = Image.open(tmp_path / "whole.png"), ~_pictures.clear(half(4)).reshape(4, 4)
    assert (np.asarray(whole)[known] == np.asarray(codec.canonical(half(4)))[known]).all()
    with pytest.raises(SystemExit, match="0"):
        cli.main(call)
    assert capsys.readouterr().out.count("\n") == 4, "four rows of characters"


def test_a_pack_is_open_where_its_pixels_are():
    codec = made("width=4,height=2,mode=binary,pack=4")
    raw = Image.fromarray(np.full((2, 4, 2), 255, np.uint8))
    raw.putpixel((1, 0), (255, 0))
    mask = codec.agreeing(raw)([])
    assert [id for id in range(codec.size) if allows(mask, id)] == [0b1011, 0b1111]
    assert not allows(codec.agreeing(raw)([0b1011]), 0)


def test_what_is_prompted_must_agree_with_what_is_given():
    codec = made("size=2,mode=grey,labels=2")
    whole = grey([1, 2], [3, 4])
    whole.info["label"] = "1"
    label, end = codec.encode("label=1")[0], codec.ends[0]
    agrees = codec.agreeing(whole, after=[end, label, 1])
    assert [id for id in range(codec.size) if allows(agrees([]), id)] == [2]
    assert [id for id in range(codec.size) if allows(codec.agreeing(whole)([end]), id)] == [label]
    with pytest.raises(RequestError, match=r"value 1 .* is 7; expected 2, which is given"):
        codec.agreeing(whole, after=[label, 1, 7])
    with pytest.raises(RequestError, match="the label is 0; expected 1"):
        codec.agreeing(whole, after=codec.encode("label=0"))
    with pytest.raises(RequestError, match="value 0"):
        agrees = codec.agreeing(whole)([9])
    with pytest.raises(RequestError, match="3x2 is given in part; expected 2x2"):
        codec.agreeing(noise(2, 3))


# ---- a model of images ------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(image.specimens())))
def test_what_is_generated_is_always_a_whole_image(tmp_path, number):
    codec = image.specimens()[number]
    machine = model(tmp_path / "model", codec)
    for result in machine.generate(n=3, seed=number, temperature=3.0).samples:
        assert result.stop == codec.ends[0]
        assert result.output.size == codec.style.shape
        assert "A" not in result.output.mode, "nothing is left open"
        assert result.reencodes
    pieces = list(machine.stream(seed=number))
    whole = machine.generate(seed=number)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert whole.text == codec.render(whole.output)["text/plain"]


def test_a_prompt_is_a_label_or_the_rows_so_far(tmp_path):
    codec = made("size=4,mode=grey,levels=4,labels=cat/dog")
    machine = model(tmp_path / "model", codec)
    labelled = machine.generate("label=dog", seed=2)
    assert labelled.output.info == {"label": "dog"}
    begun = codec.decode(labelled.ids[:8])
    rest = machine.generate(begun, seed=2)
    assert len(rest.ids) == 8
    assert np.asarray(rest.output)[:2].tolist() == np.asarray(begun)[:2, :, 0].tolist()


def test_an_image_is_scored_by_the_pixel(tmp_path):
    codec = made("size=4,mode=grey,levels=4")
    machine = model(tmp_path / "model", codec)
    score = machine.score(saved(tmp_path / "a.png", noise(4, 4)))
    assert (score.units, score.unit, len(score.ids)) == (16, "pixel", 16)


def test_several_images_are_written_as_a_grid(tmp_path):
    codec = made("size=4,mode=grey,levels=4")
    model(tmp_path / "model", codec)
    call = ["generate", "-m", str(tmp_path / "model"), "-n", "5", "--seed", "1", "--threads", "1"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*call, "--out", str(tmp_path / "grid.png"), "--together"])
    cell = 4 * 24 + 2
    assert Image.open(tmp_path / "grid.png").size == (3 * cell + 2, 2 * cell + 2)
    assert [path.name for path in tmp_path.glob("*.png")] == ["grid.png"]


def test_together_is_refused_where_it_says_nothing(tmp_path, capsys):
    tiny.write(tmp_path / "bytes")
    for more in ([], ["--out", str(tmp_path / "x")]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["generate", "-m", str(tmp_path / "bytes"), "-n", "2", "--together", *more])
    assert "the model has the codec byte" in capsys.readouterr().err


def test_only_png_files_are_written(tmp_path):
    codec = made("size=2")
    for write in (codec.write, lambda raw, path: codec.write_all([raw], path)):
        with pytest.raises(RequestError, match=r"ends in \.png"):
            write(noise(2, 2), tmp_path / "a.jpg")
    with pytest.raises(RequestError, match="no images"):
        codec.write_all([], tmp_path / "a.png")


# ---- training, real files ---------------------------------------------------------------------


def test_files_of_images_are_learnt_from_with_their_palette(tmp_path):
    for number in range(20):
        saved(tmp_path / f"{number}.png", noise(4, 4, 3, seed=number))
    found = prepare(
        [str(tmp_path / "*.png")],
        codec="image:size=4,mode=palette,colours=4",
        vocab_size=0,
        cache=tmp_path / "cache",
    )
    assert (found.codec.size, found.documents, len(found.held)) == (5, 18, 2)
    assert all(len(held) == 1 + 16 for held in found.held)


def test_silk_icons_keep_their_look(data):
    files = sorted((data / "images" / "silk16").glob("*.png"))[::20]
    codec = made("size=16,mode=palette,colours=64").fitted(files)
    exact = made("size=16")
    for path in files:
        raw = codec.read(path)
        ids = codec.encode(raw)
        assert codec.encode(codec.decode(ids)) == ids
        off = np.subtract(*(np.asarray(c.canonical(raw), float) for c in (codec, exact)))
        assert np.sqrt((off**2).mean()) < 26


def test_a_sheet_of_digits_is_read_by_its_rows(data):
    path = data / "images" / "mnist" / "mnist_batch_0.png"
    codec = made("size=28,mode=grey,sheet=rows")
    records = codec.records(path)
    first = codec.encode(next(records)[1])
    pixels = np.asarray(Image.open(path).convert("L"))
    assert first == pixels[0].tolist()
    assert sum(1 for _ in records) == len(pixels) - 1


def test_a_sheet_of_tiles_is_cut(data):
    codec = made("size=32,mode=rgb,sheet=tiles,background=000000")
    path = data / "images" / "rltiles" / "rltiles-2d.png"
    records = list(codec.records(path))
    assert len(records) == 960 * 1760 // 32**2
    assert not any(isinstance(raw, SeriatimError) for _, raw in records)


def test_without_pillow_the_extra_is_named():
    code = """
import sys
sys.modules["PIL"] = None
from seriatim import codecs
codec = codecs.made("image:size=4")
assert codec.legal([]).any() and codec.units([1, 257, 513]) == 1
try:
    codec.decode([])
except Exception as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "seriatim[image]"' in ran.stdout


def test_the_documented_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), {"print": lambda *_: None})
