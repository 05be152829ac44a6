"""An object that comes as a file: its bytes in base64, read as the model's codec reads files."""

import re
from base64 import b64decode
from binascii import Error
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seriatim import requesting
from seriatim.errors import FileError, RequestError, shown
from seriatim.serve.served import Served

NAME = re.compile(r"[^/\\\0]{0,200}(\.[A-Za-z0-9]{1,8})", re.DOTALL)


@dataclass(frozen=True)
class File:
    """What is in it, and what kind it is (".mid")."""

    data: bytes
    suffix: str


def file(name: str, value: dict[str, Any]) -> File:
    """A file from what a body says of it.

    Raises:
        RequestError: it is none.
    """
    match value:
        case {"base64": str(data), "name": str(called)} if len(value) == 2:
            if known := NAME.fullmatch(called):
                return File(_bytes(name, data), known[1].lower())
    expected = '{"base64": "...", "name": "tune.mid"}, the name with a suffix'
    raise RequestError(f"{name} is {shown(value)}", expected=expected)


def raw(served: Served, name: str, given: File) -> Any:
    """The object in a file. For a worker.

    Raises:
        RequestError: the codec reads no such file; or there is none.
    """
    codec = requesting.codec_of(served.model, "a file")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}{given.suffix}"
        path.write_bytes(given.data)
        try:
            return codec.read(path)
        except (FileError, RequestError) as error:  # it may name the path
            seen = error.seen.replace(str(path), "the file")
            raise RequestError(f"{name}: {seen}", expected=error.expected) from error


def ids(served: Served, given: File) -> list[int]:
    """The prompt's ids. For a worker.

    Raises:
        RequestError: as `raw`.
        Fault: a text that fills the context.
    """
    found = raw(served, "prompt", given)
    if isinstance(found, str):
        served.check_prompt(found)
    return requesting.prompt_ids(served.model, found)


def _bytes(name: str, data: str) -> bytes:
    try:
        return b64decode(data, validate=True)
    except (Error, ValueError) as error:
        raise RequestError(f"{name} is not base64") from error
