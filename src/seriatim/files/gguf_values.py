"""The values of a GGUF header: walked over once, decoded when they are asked for.

The lowest part of `files/gguf.py`; what the keys mean is said in `models/` and `codecs/`.
"""

import struct
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seriatim.errors import FileError
from seriatim.files.regular import listed, refuse

MOST = 1 << 16  # keys, tensors, bytes of a name

# Types of a value, by number; 8 is a string, 9 an array.
SCALARS = {
    0: np.dtype(np.uint8),
    1: np.dtype(np.int8),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype(np.bool_),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
UINT32, STRING, ARRAY = 4, 8, 9

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class Place(NamedTuple):
    """Where a value lies in the header; `length` is None for what is not an array."""

    type: int
    start: int
    length: int | None

    @property
    def items(self) -> int:
        return 1 if self.length is None else self.length


class Short(Exception):
    """The header goes on behind the bytes that were read of it."""


class Cursor:
    """A place in the header: whatever is taken is first compared with the file's size.

    Args:
        data: the beginning of the file.
        size: bytes of the whole file.
        path: for errors.
    """

    def __init__(self, data: bytes, size: int, path: Path) -> None:
        self.data, self.size, self.path, self.at = data, size, path, 0

    def take(self, length: int) -> int:
        """Move past `length` bytes; where they begin.

        Raises:
            FileError: the file ends before.
            Short: `data` does.
        """
        start, self.at = self.at, self.at + length
        if self.at > self.size:
            raise self.refuse(
                f"is cut short: its header reaches byte {self.at}, the file has {self.size}"
            )
        if self.at > len(self.data):
            raise Short
        return start

    def number(self, form: struct.Struct) -> int:
        """Move past one integer."""
        return form.unpack_from(self.data, self.take(form.size))[0]

    def name(self, what: str) -> str:
        """Move past the name of a key or a tensor."""
        length = self.number(U64)
        if not 1 <= length <= MOST:
            raise self.refuse(f"has {what} with a name of {length} bytes", f"1 to {MOST}")
        start = self.take(length)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise self.refuse(f"has {what} with a name that is not UTF-8") from None

    def value(self, key: str) -> Place:
        """Move past a value; the types of those inside an array are checked, not the values."""
        kind, length = self.number(U32), None
        if kind == ARRAY:
            kind, length = self.number(U32), self.number(U64)
        place = Place(kind, self.at, length)
        if kind == STRING:
            self._strings(place.items)
        elif kind in SCALARS:
            self.take(place.items * SCALARS[kind].itemsize)
        else:
            what = "an array of arrays" if kind == ARRAY else f"a value of the unknown type {kind}"
            raise self.refuse(f"has {what} under the key {listed([key])}")
        return place

    def refuse(self, why: str, expected: str = "") -> FileError:
        """The error for this file."""
        return refuse(self.path, why, expected=expected)

    def _strings(self, count: int) -> None:
        """Only the lengths are read: 0.15 us each."""
        at, data, unpack = self.at, self.data, U64.unpack_from
        self.at = self.take(8 * count)  # none is shorter than its length
        try:
            for _ in repeat(None, count):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError):  # no length at `at`
            at += 8
        self.take(at - self.at)


class Metadata(Mapping[str, Any]):
    """Values by key: numbers, truth values, strings, lists of strings, or read-only arrays.

    Each is decoded anew whenever it is asked for: 128,000 strings take 30 ms.

    Raises:
        FileError: on access, a string that is not UTF-8.
    """

    def __init__(self, data: bytes, places: Mapping[str, Place], path: Path) -> None:
        self._data, self._places, self._path = data, places, path

    def __getitem__(self, key: str) -> Any:
        place = self._places[key]
        try:
            return decode(self._data, place)
        except UnicodeDecodeError:
            raise refuse(self._path, f"has text that is not UTF-8 under {listed([key])}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def decode(data: bytes, place: Place) -> Any:
    """One value of a header that was walked over."""
    if place.type == STRING:
        strings = _decode_strings(data, place.start, place.items)
        return strings[0] if place.length is None else strings
    array = np.frombuffer(data, SCALARS[place.type], place.items, place.start)
    return array[0].item() if place.length is None else array


def _decode_strings(data: bytes, at: int, count: int) -> list[str]:
    strings, unpack = [], U64.unpack_from
    for _ in repeat(None, count):
        start = at + 8
        at = start + unpack(data, at)[0]
        strings.append(data[start:at].decode())
    return strings
