"""GGUF: every number of the header checked against the file, tensors as views of one memory map.

Not a parser of meaning: what keys say is in `models/gguf.py`, what a block of weights holds in
`models/ggml.py`. Values are decoded when they are asked for: opening a file only walks over them,
0.1 s for a vocabulary of 128,000 strings and its merges.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.

    file = gguf.read(Path("model.gguf"))
    file.metadata["tokenizer.ggml.tokens"], file.tensors["token_embd.weight"].shape
"""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from seriatim.files.gguf_values import (
    MOST,
    U32,
    U64,
    UINT32,
    Cursor,
    Metadata,
    Place,
    Short,
    decode,
)
from seriatim.files.regular import listed, mapped, open_regular, refuse

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # which differ for big-endian files only
WINDOWS = (1 << 20, 1 << 24, 1 << 26)  # bytes of header to try: vocabularies take up to 16 MB
ALIGNMENT, ALIGNMENT_KEY = 32, "general.alignment"

# Types of a tensor, by number: the values of a block along a row, and its bytes.
# Source: ggml.h (`enum ggml_type`), ggml-common.h (the blocks' structures).
KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_HEAD = struct.Struct("<4sIQQ")


class Tensor(NamedTuple):
    """A tensor as stored: `kind` is ggml's name of its type, `shape` [rows, columns]."""

    kind: str
    shape: tuple[int, ...]
    data: np.ndarray  # uint8 [byte]: a read-only view of the map


class File(NamedTuple):
    """One file: its keys' values, decoded when asked for, and its tensors by name."""

    metadata: Metadata
    tensors: dict[str, Tensor]


class _Info(NamedTuple):
    """A tensor's record; `start` and `stop` are bytes of the data section."""

    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read(path: Path) -> File:
    """Map one file.

    Raises:
        FileError: the file, and what of it is not as the format says.
    """
    with open_regular(path) as file:
        metadata, infos, start = _header(file, path)
        data = mapped(file, path)[start:]
    views = {n: Tensor(i.kind, i.shape, data[i.start : i.stop]) for n, i in infos.items()}
    return File(metadata, views)


def matches(path: Path) -> bool:
    """Whether a file begins as GGUF does.

    Raises:
        FileError: it is missing, unreadable or not a regular file.
    """
    with open_regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def _header(file: BinaryIO, path: Path) -> tuple[Metadata, dict[str, _Info], int]:
    """Its keys, its tensors, and where the data begins."""
    size = os.fstat(file.fileno()).st_size
    for window in WINDOWS:
        file.seek(0)
        try:
            return _parse(Cursor(file.read(window), size, path))
        except Short:
            continue
    raise refuse(path, f"has a header of more than {WINDOWS[-1]} bytes", expected="less")


def _parse(cursor: Cursor) -> tuple[Metadata, dict[str, _Info], int]:
    start = cursor.take(_HEAD.size)
    magic, version, tensors, keys = _HEAD.unpack_from(cursor.data, start)
    if magic != MAGIC:
        raise cursor.refuse(f"begins with {magic!r}", f"{MAGIC!r}, as GGUF does")
    _check_version(cursor, version)
    for count, what in ((tensors, "tensors"), (keys, "keys")):
        if count > MOST:
            raise cursor.refuse(f"says it has {count} {what}", f"at most {MOST}")
    places = _places(cursor, keys)
    alignment = _alignment(cursor, places)
    infos = _infos(cursor, tensors)
    begin = _padded(cursor.at, alignment)
    _check_layout(cursor, infos, alignment, max(cursor.size - begin, 0))
    return Metadata(cursor.data, places, cursor.path), infos, begin


def _check_version(cursor: Cursor, version: int) -> None:
    expected = f"version {' or '.join(map(str, VERSIONS))}, little-endian"
    if version and version & 0xFFFF == 0:
        raise cursor.refuse("is big-endian GGUF", expected)
    if version not in VERSIONS:
        raise cursor.refuse(f"is GGUF of version {version}", expected)


def _places(cursor: Cursor, count: int) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for _ in range(count):
        key = cursor.name("a key")
        if key in places:
            raise cursor.refuse(f"has the key {listed([key])} twice")
        places[key] = cursor.value(key)
    return places


def _alignment(cursor: Cursor, places: Mapping[str, Place]) -> int:
    if ALIGNMENT_KEY not in places:
        return ALIGNMENT
    place, expected = places[ALIGNMENT_KEY], "a power of two, of type uint32"
    if place.type != UINT32 or place.length is not None:
        raise cursor.refuse(f"has {ALIGNMENT_KEY} of another type", expected)
    value = decode(cursor.data, place)
    if value.bit_count() != 1:
        raise cursor.refuse(f"has {ALIGNMENT_KEY} = {value}", expected)
    return value


def _infos(cursor: Cursor, count: int) -> dict[str, _Info]:
    infos: dict[str, _Info] = {}
    for _ in range(count):
        name = cursor.name("a tensor")
        if name in infos:
            raise cursor.refuse(f"has the tensor {listed([name])} twice")
        infos[name] = _info(cursor, name)
    return infos


def _info(cursor: Cursor, name: str) -> _Info:
    axes = cursor.number(U32)
    if not 1 <= axes <= 4:
        raise cursor.refuse(f"has the tensor {listed([name])} with {axes} axes", "1 to 4")
    shape = tuple(cursor.number(U64) for _ in range(axes))[::-1]  # rows first
    number, start = cursor.number(U32), cursor.number(U64)
    if number not in KINDS:
        expected = f"one of {', '.join(kind for kind, *_ in KINDS.values())}"
        raise cursor.refuse(f"has the tensor {listed([name])} of unknown type {number}", expected)
    kind, values, size = KINDS[number]
    if 0 in shape or shape[-1] % values:
        expected = f"rows of {kind}: a multiple of {values}, none empty"
        raise cursor.refuse(f"has the tensor {listed([name])} of shape {shape}", expected)
    return _Info(kind, shape, start, start + math.prod(shape) // values * size)


def _check_layout(cursor: Cursor, infos: dict[str, _Info], alignment: int, size: int) -> None:
    """Aligned, and together they cover the data exactly once but for padding."""
    end, before = 0, "the header"
    for name, info in sorted(infos.items(), key=lambda item: item[1].start):
        if info.start % alignment:
            expected = f"a multiple of {alignment}"
            raise cursor.refuse(f"has {listed([name])} at the offset {info.start}", expected)
        if info.start != _padded(end, alignment):
            kind = "overlaps" if info.start < end else "leaves a gap after"
            raise cursor.refuse(f"is damaged: {listed([name])} {kind} {listed([before])}")
        end, before = info.stop, name
    if not end <= size <= _padded(end, alignment):
        kind = "is cut short" if end > size else "has bytes that belong to no tensor"
        raise cursor.refuse(f"{kind}: its tensors take {end} bytes, its data has {size}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
