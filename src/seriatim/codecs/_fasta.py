"""FASTA as a stream of records: plain or gzipped, in the memory that one record takes.

The reader is our own: Biopython's `SimpleFastaParser` reads whole lines whatever their length,
passes over what stands before the first `>`, and does not say where in the file a record is.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from seriatim.codecs._files import named
from seriatim.errors import FileError, ResourceError
from seriatim.files.regular import open_regular

LIMIT = 1 << 24  # most bytes of a record, line ends too: the longest protein known has 45,000
LONGEST_NAME = 1 << 16  # bytes
BLOCK = 1 << 18  # bytes of a line that is passed over
WIDTH = 60  # symbols to a line, as most databases write them
MAGIC = b"\x1f\x8b"  # of gzip (RFC 1952)
BLANK = b" \t\r\n"


@dataclass
class Entry:
    """A record as it lies in a file.

    Attributes:
        line: of its header, from 1.
        name: what follows the `>`.
        lines: those below, without what is blank at their ends; a byte is a character.
        fault: why it is no record, or "".
    """

    line: int
    name: str = ""
    lines: list[str] = field(default_factory=list)
    size: int = 0
    fault: str = ""

    def where(self, index: int) -> str:
        """The place of a symbol, counted over all lines from 0."""
        for number, line in enumerate(self.lines, self.line + 1):
            if index < len(line):
                return place(number, index)
            index -= len(line)
        raise IndexError(index)

    def add(self, line: bytes) -> None:
        """Takes a line, unless there is too much of the record."""
        self.size += len(line) + 1  # blank lines take room as well
        if self.size > LIMIT:
            self.lines, self.fault = [], f"line {self.line}: a record longer than {LIMIT:,} bytes"
        elif not self.fault:
            self.lines.append(line.decode("latin-1"))


def place(line: int, index: int) -> str:
    """A line and, from 1, a column."""
    return f"line {line}, column {index + 1}"


def entries(path: Path) -> Iterator[Entry]:
    """The records of a file, those that are none with their fault.

    Raises:
        FileError: it cannot be read, or does not begin with a record.
    """
    with named(path), _opened(path) as file:
        yield from parsed(file)


def parsed(file: IO[bytes]) -> Iterator[Entry]:
    """The records of an open file.

    Raises:
        FileError: it does not begin with one.
    """
    entry: Entry | None = None
    for number, line in _lines(file):
        if line.startswith(b">"):
            if entry is not None:
                yield entry
            entry = _header(number, line)
        elif entry is not None:
            entry.add(line)
        elif line:
            seen = f"{place(number, 0)} is {shown(chr(line[0]))}"
            raise FileError(seen, expected="FASTA: > and a name, and a sequence below")
    if entry is None:
        raise FileError("there is no record", expected="FASTA: > and a name, and a sequence below")
    yield entry


def shown(symbol: str) -> str:
    """A symbol as a message shows it; a byte that is no ASCII by its number."""
    code = ord(symbol)
    return f"byte 0x{code:02x}" if 0x80 <= code < 0x100 else ascii(symbol)


def write(path: Path, name: str, sequence: str) -> None:
    """Write one record, gzipped where the file's name says so; equal records give equal files.

    Raises:
        FileError: the name would end its line.
        ResourceError: the disk refused.
    """
    if not name.isprintable():
        raise FileError(f"the name {name!r:.80} cannot stand in FASTA", expected="one line")
    rows = [sequence[at : at + WIDTH] for at in range(0, len(sequence), WIDTH)]
    data = "\n".join([f">{name}", *rows, ""]).encode()
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise ResourceError(f"{path} was not written: {error.strerror}") from error


def _header(number: int, line: bytes) -> Entry:
    if len(line) > LONGEST_NAME:
        return Entry(number, fault=f"line {number}: a name longer than {LONGEST_NAME:,} bytes")
    try:
        name = line[1:].decode().strip()
    except UnicodeDecodeError as error:
        seen = f"{place(number, error.start + 1)} is byte 0x{line[error.start + 1]:02x}: not UTF-8"
        return Entry(number, fault=seen)
    if odd := next((c for c in name if not c.isprintable()), ""):
        seen = f"{place(number, line.decode().index(odd))} is {odd!a}, which no name has"
        return Entry(number, fault=seen)
    return Entry(number, name)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines without what is blank at their ends; of one that is too long, its whole beginning."""
    number = 0
    while data := file.readline(LIMIT + 1):
        number += 1
        if len(data) > LIMIT and not data.endswith(b"\n"):
            while (more := file.readline(BLOCK)) and not more.endswith(b"\n"):
                pass
            yield number, data
        else:
            yield number, data.rstrip(BLANK)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file, unpacked where its first bytes are gzip's."""
    try:
        with open_regular(path) as file:
            packed = file.read(2) == MAGIC
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield cast("IO[bytes]", unpacked)
            else:
                yield file
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be read: {why}") from error
