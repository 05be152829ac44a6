"""Bytes as they are: id b is byte b, and 256 starts and ends a sequence. Nothing to train.

codec = ByteCodec()
codec.encode("é")  # [195, 169]
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.codecs._files import read_bytes, write
from seriatim.codecs._utf8 import ALPHABET, Utf8Stream
from seriatim.errors import FileError, RequestError

END = 256
_END_TEXT = "<|end|>"


class ByteCodec:
    """The identity; its raw object is `bytes`, and a `str` stands for its UTF-8 bytes."""

    name, unit, size = "byte", "byte", 257
    start = ends = (END,)

    @property
    def specials(self) -> dict[str, int]:
        """Special ids by their text."""
        return {_END_TEXT: END}

    def encode(self, raw: bytes | str, /) -> list[int]:
        """The bytes.

        Raises:
            RequestError: `raw` is neither bytes nor text that UTF-8 can hold.
        """
        return list(self.canonical(raw))

    def cut(self, data: bytes, /) -> int:
        """Bytes may be cut anywhere."""
        return len(data)

    def encode_many(self, pieces: Sequence[bytes], /) -> list[np.ndarray]:
        """The bytes of each, as they are."""
        return [np.frombuffer(piece, np.uint8) for piece in pieces]

    @property
    def added(self) -> dict[str, int]:
        """The same."""
        return self.specials

    def weave(self, parts: Sequence[Any], *, quoted: Collection[str] = ()) -> list[int]:
        """The bytes of text with special ids between."""
        return [id for p in parts for id in ([p] if isinstance(p, int) else self.encode(p))]

    def prompt(self, raw: bytes | str, /) -> list[int]:
        """The start id and the bytes."""
        return [*self.start, *self.encode(raw)]

    def decode(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> bytes:
        """The bytes of `ids`."""
        return b"".join(map(_piece, ids))

    def stream(self, *, after: Sequence[int] = ()) -> Utf8Stream:
        """The bytes as text, incrementally."""
        return Utf8Stream(_piece)

    def pieces(self) -> list[bytes]:
        """A byte for each id, and none for the end."""
        return [*map(_piece, range(self.size))]

    def lead(self, after: Sequence[int], /) -> bytes:
        """Nothing is dropped."""
        return b""

    def units(self, ids: Sequence[int], *, after: Sequence[int] = ()) -> int:
        """How many bytes."""
        return len(self.decode(ids))

    def canonical(self, raw: bytes | str, /) -> bytes:
        """The bytes of `raw`."""
        if isinstance(raw, bytes | bytearray | memoryview):
            return bytes(raw)
        if not isinstance(raw, str):
            raise RequestError(f"{type(raw).__name__} given to codec byte", expected="bytes or str")
        try:
            return raw.encode()
        except UnicodeEncodeError as error:
            seen = f"character {error.start} of the text is half a surrogate pair"
            raise RequestError(seen, expected="text that UTF-8 can hold") from error

    def differs(self, ids: Sequence[int]) -> bool:
        """Whether `ids` hold anything but bytes."""
        return self.encode(self.decode(ids)) != list(ids)

    def examples(self) -> list[bytes]:
        """Bytes that are text, and bytes that are none."""
        return [
            b"",
            b"\0",
            bytes(range(256)),
            "né 🧑‍🚀".encode(),
            b"\xf0\x9f",
            b"\xed\xa0\x80 \xff",
        ]

    def render(self, raw: bytes | str, /) -> dict[str, Any]:
        """The bytes, and what of them is text."""
        data = self.canonical(raw)
        return {"text/plain": data.decode(errors="replace"), "application/octet-stream": data}

    def read(self, path: Path, /) -> bytes:
        """The content of any file."""
        return read_bytes(path)

    def write(self, raw: bytes | str, path: Path, /) -> None:
        """Writes the bytes."""
        path.write_bytes(self.canonical(raw))

    def save(self, folder: Path, /) -> None:
        """Writes codec.json and the tokenizer files that give the same ids elsewhere."""
        write(folder, self, {}, json.dumps(_tokenizer(), ensure_ascii=False))


def make(options: dict[str, str]) -> ByteCodec:
    """The codec of that name.

    Raises:
        RequestError: options; there are none.
    """
    if options:
        raise RequestError(f"codec byte has no option {min(options)!r}", fix="leave it out")
    return ByteCodec()


def load(folder: Path, options: dict[str, Any]) -> ByteCodec:
    """The codec of a folder whose codec.json names it.

    Raises:
        FileError: codec.json gives options; there are none.
    """
    if options:
        raise FileError(f"{folder / 'codec.json'} has the option {min(options)!r}", expected="none")
    return ByteCodec()


def specimens() -> list[ByteCodec]:
    """Codecs for the law tests."""
    return [ByteCodec()]


def _piece(id: int) -> bytes:
    return bytes((id,)) if 0 <= id < END else b""


def _tokenizer() -> dict[str, Any]:
    """A byte-level BPE without merges (the `tokenizers` file format, version 1.0)."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    first, text = ({"SpecialToken": {"id": _END_TEXT, "type_id": 0}}, _sequence("A", 0))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": END, "content": _END_TEXT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, _sequence("B", 1)],
            "special_tokens": {_END_TEXT: {"id": _END_TEXT, "ids": [END], "tokens": [_END_TEXT]}},
        },
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {ALPHABET[byte]: byte for byte in range(256)},
            "merges": [],
        },
    }


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
