"""Small files of a codec, read with suspicion and written plainly."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seriatim.errors import FileError, SeriatimError
from seriatim.files.jsonfile import read_object

if TYPE_CHECKING:
    from seriatim.codecs import Codec

LIMIT = 1 << 28  # bytes; the largest public tokenizer.json is below 40 MB


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Errors raised within name the file, or the place in it, they are about."""
    try:
        yield
    except SeriatimError as error:
        if str(path) in error.seen:
            raise
        seen = f"{path}: {error.seen}"
        raise type(error)(seen, expected=error.expected, fix=error.fix) from error


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        FileError: it is not there, is no regular file (a pipe would block), or is far too large.
    """
    if not path.is_file():
        raise FileError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if (size := path.stat().st_size) > LIMIT:
        raise FileError(f"{path} has {size} bytes", expected=f"at most {LIMIT}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, to the letter: no newline is translated, no mark dropped.

    Raises:
        FileError: as `read_bytes`, or a byte that is not UTF-8, with its offset.
    """
    data = read_bytes(path)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        seen = f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise FileError(seen, fix="convert it to UTF-8") from error


def write(folder: Path, codec: "Codec", options: dict[str, Any], tokenizer: str) -> None:
    """Writes codec.json, tokenizer.json and the tokenizer_config.json that makes others obey it.

    Without the last, transformers 5 takes the splitting rule of the model's architecture and gives
    other ids (a text vocabulary in a GPT-2 folder: 5 of 13 test strings).
    """
    texts = {id: text for text, id in codec.specials.items()}
    marks = {"bos_token": codec.start[:1], "eos_token": codec.ends[:1]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: texts[id] for name, ids in marks.items() for id in ids if id in texts}
    write_json(folder / "codec.json", {"codec": codec.name, "version": 1, "options": options})
    write_json(folder / "tokenizer_config.json", config)
    (folder / "tokenizer.json").write_bytes(tokenizer.encode())


def rename(folder: Path, codec: str) -> None:
    """Lets codec.json name a codec that is made of the one whose files are there."""
    write_json(folder / "codec.json", read_object(folder / "codec.json") | {"codec": codec})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes((json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())
