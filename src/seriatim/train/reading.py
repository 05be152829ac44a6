"""From names to documents: which files are meant, of what kind, and the records in them, streamed.

A plain file is one document, or several where a separator is given; a line of .jsonl is one; both
may be gzipped. Nothing here knows ids. A record that is none is a `Bad`, with its place and why; a
file that is none is an error.
"""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from seriatim.errors import FileError, RequestError
from seriatim.files.regular import listed, open_regular

Paths = str | Path | Sequence[str | Path]
Cut = Callable[[bytes], int]  # where a piece may end; 0: nowhere

BLOCK = 1 << 18  # bytes read at once, and of a piece
LIMIT = 1 << 26  # most bytes of a record, and of text without a place to cut
PART = 1 << 23  # bytes of files or of their lines that become one shard

CONVERSATION = ("messages", "tools")  # what is read of one
LINES = (".jsonl", ".ndjson")
FOREIGN = (".parquet", ".arrow", ".feather", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z")


@dataclass(frozen=True)
class Reading:
    """How files become documents.

    Attributes:
        field: of a .jsonl line's object, the text.
        separator: between the documents of a plain file; none: a file is one document.
        text: documents must be UTF-8 text, rather than any bytes.
        objects: files are the codec's own kind, which it reads itself.
        messages: lines of .jsonl are conversations, for a codec that reads them.
    """

    field: str = "text"
    separator: str | None = None
    text: bool = True
    objects: bool = False
    messages: bool = False


class Span(NamedTuple):
    """A file, or some of its bytes, with what tells it from another."""

    path: str
    kind: str  # "text", "separated", "lines" or "objects"
    sha256: str  # of the whole file
    stamp: int  # nanoseconds of its last change, when that was taken
    start: int
    end: int  # -1: the end of the file, gzipped or not
    line: int  # number of the first line, from 1
    bytes: int  # of the whole file

    @property
    def size(self) -> int:
        """How many bytes of the file it is, as they lie on disk."""
        return (self.bytes if self.end < 0 else self.end) - self.start


class Bad(NamedTuple):
    """A record that was refused."""

    file: int  # index of the span
    place: str  # "line 7"
    why: str


class Record(NamedTuple):
    """A document's bytes, in pieces to be encoded one by one; take them before the next record."""

    place: str  # "" is the whole file
    pieces: Iterator[bytes]


def files(data: Paths) -> list[Path]:
    """Files that paths, folders (all files below) and glob patterns name, sorted, each once.

    Raises:
        RequestError: one of them names no file.
        FileError: one is of a kind that is not read.
    """
    named = [data] if isinstance(data, str | Path) else data
    found: set[Path] = set()
    for name in named:
        here = _expand(Path(name))
        if not here:
            raise RequestError(f"{name} names no file", expected="a file, a folder or a pattern")
        found.update(here)
    if foreign := sorted(p for p in found if p.suffix.lower() in FOREIGN):
        fix = "convert it to .jsonl, or leave it out"
        raise FileError(f"{foreign[0]} is not read", expected="plain, .jsonl or .gz files", fix=fix)
    return sorted(found)


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inner = (p for p in path.rglob("*") if p.is_file())
        return [p for p in inner if not any(s.startswith(".") for s in p.relative_to(path).parts)]
    return [path] if path.is_file() else [p for p in map(Path, glob.glob(str(path))) if p.is_file()]


def spans(path: Path, reading: Reading) -> list[Span]:
    """A file as parts to encode: one, or of .jsonl one for each `PART` bytes of whole lines.

    Raises:
        FileError: it cannot be read, or is empty.
    """
    kind = _kind(path, reading)
    whole, starts, at, line = hashlib.sha256(), [(0, 1)], 0, 1
    with _failing(path), open_regular(path) as file:
        stamp = Path(path).stat().st_mtime_ns
        while block := file.read(BLOCK):
            whole.update(block)
            newline = block.find(b"\n")
            if at - starts[-1][0] >= PART and newline >= 0:
                starts.append((at + newline + 1, line + 1))
            line, at = line + block.count(b"\n"), at + len(block)
    if not at:
        raise FileError(f"{path} is empty", expected="at least one document", fix="leave it out")
    if kind != "lines" or path.suffix == ".gz":
        starts = [(0, 1)]
    ends = [start for start, _ in starts[1:]] + [-1]
    return [
        Span(str(path), kind, whole.hexdigest(), stamp, start, end, line, at)
        for (start, line), end in zip(starts, ends, strict=True)
        if start < at
    ]


def _kind(path: Path, reading: Reading) -> str:
    inner = path.with_suffix("") if path.suffix == ".gz" else path
    if inner.suffix.lower() in LINES:
        if reading.objects:
            raise FileError(f"{path} holds text", expected="files that the codec itself reads")
        return "lines"
    if reading.messages:
        fix = 'write {"messages": [{"role": ..., "content": ...}, ...]} on each line'
        raise FileError(f"{path} holds no conversations", expected=".jsonl files", fix=fix)
    if reading.objects:
        return "objects"
    return "text" if reading.separator is None else "separated"


@contextmanager
def _failing(path: str | Path) -> Iterator[None]:
    """What a file or its packing does wrong is a `FileError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be read: {why}") from error


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """A file, unpacked where its name says so."""
    with open_regular(Path(path)) as file:
        if path.endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield file


def records(index: int, span: Span, reading: Reading, cut: Cut) -> Iterator[Record | Bad]:
    """The documents of a span, and what is none; `index` is the span's.

    Raises:
        FileError: the file cannot be read, is not what its name says, or has changed.
    """
    with _failing(span.path), _opened(span.path) as file:
        if span.kind == "text":
            end = None if span.end < 0 else span.end - span.start
            file.seek(span.start)
            yield Record("", _pieces(span, file, end, reading, cut))
        else:
            split = _lines if span.kind == "lines" else _separated
            for place, data in split(span, file, reading):
                if not data:
                    continue
                try:
                    text = (
                        _field(data, reading) if span.kind == "lines" else _checked(data, reading)
                    )
                except ValueError as error:
                    yield Bad(index, place, _why(error))
                else:
                    yield Record(place, _cuts(text, cut))
    check_unchanged(span)


def check_unchanged(span: Span) -> None:
    """Refuse a file that is no longer the one whose SHA-256 was taken.

    Raises:
        FileError: it was written to, or is gone.
    """
    try:
        stamp = Path(span.path).stat().st_mtime_ns
    except OSError as error:
        raise FileError(f"{span.path} is gone: {error.strerror}") from error
    if stamp != span.stamp:
        raise FileError(f"{span.path} changed while it was read", fix="run again")


def _pieces(
    span: Span, file: IO[bytes], left: int | None, reading: Reading, cut: Cut
) -> Iterator[bytes]:
    """One document of any length; text that has no place to cut is refused beyond `LIMIT`."""
    held, at = b"", span.start
    while block := _block(file, span.path, max(BLOCK, len(held)), left):
        left = None if left is None else left - len(block)
        held += block
        if size := cut(held):
            yield _utf8(held[:size], at, span.path, reading)
            held, at = held[size:], at + size
        elif len(held) > LIMIT:
            seen = f"{span.path} has no place to cut in {len(held):,} bytes from byte {at} on"
            fix = 'break it into several files or lines, or take codec "byte"'
            raise FileError(seen, expected=f"at most {LIMIT:,} bytes that are one piece", fix=fix)
    if held:
        yield _utf8(held, at, span.path, reading)


def _block(file: IO[bytes], path: str, size: int, left: int | None) -> bytes:
    with _failing(path):
        return file.read(size if left is None else min(size, left))


def _utf8(piece: bytes, at: int, path: str, reading: Reading) -> bytes:
    try:
        return _checked(piece, reading)
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not UTF-8 at byte {at + error.start}: {error.reason}",
            expected="UTF-8 text",
            fix="convert the file, or leave it out",
        ) from error


def _checked(data: bytes, reading: Reading) -> bytes:
    if reading.text:
        data.decode()
    return data


def _cuts(data: bytes, cut: Cut) -> Iterator[bytes]:
    """A document in memory, in pieces near `BLOCK` where it may be cut."""
    while len(data) > 2 * BLOCK and (size := cut(data[:BLOCK])):
        yield data[:size]
        data = data[size:]
    yield data


def _lines(span: Span, file: IO[bytes], reading: Reading) -> Iterator[tuple[str, bytes]]:
    """Lines that are not blank, each with its place; one beyond `LIMIT` is passed over in blocks.

    What is too long comes as its first bytes, which are no JSON by themselves.
    """
    file.seek(span.start)
    at, line = span.start, span.line
    while (span.end < 0 or at < span.end) and (data := file.readline(LIMIT + 1)):
        at, place = at + len(data), f"line {line}"
        if len(data) > LIMIT and not data.endswith(b"\n"):
            while more := file.readline(BLOCK):
                at += len(more)
                if more.endswith(b"\n"):
                    break
        line += 1
        yield place, data.strip(b" \t\r\n")


def _separated(span: Span, file: IO[bytes], reading: Reading) -> Iterator[tuple[str, bytes]]:
    """What lies between separators, with the line where it begins."""
    mark = (reading.separator or "\n").encode()
    held, line = b"", 1
    while block := file.read(BLOCK):
        *whole, held = (held + block).split(mark)
        for data in whole:
            yield f"line {line}", data
            line += data.count(b"\n") + mark.count(b"\n")
        if len(held) > LIMIT:
            seen = f"{span.path}: from line {line} on, no separator in {len(held):,} bytes"
            raise FileError(seen, expected=f"a separator in every {LIMIT:,} bytes")
    yield f"line {line}", held


def _field(line: bytes, reading: Reading) -> bytes:
    """The text of a .jsonl line, or its conversation as JSON.

    Raises:
        ValueError: it has none; the message says why.
    """
    if len(line) > LIMIT:
        raise ValueError(f"longer than {LIMIT:,} bytes")
    try:
        value = json.loads(line.decode())
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__} instead of an object")
    wanted = "messages" if reading.messages else reading.field
    if wanted not in value:
        raise ValueError(f"no field {wanted!r}; it has {listed(list(value)) or 'none'}")
    if reading.messages:
        kept = {name: value[name] for name in CONVERSATION if name in value}
        return json.dumps(kept, ensure_ascii=False).encode()
    text = value[reading.field]
    if not isinstance(text, str):
        raise ValueError(f"{reading.field!r} is a JSON {type(text).__name__} instead of text")
    if not text:
        raise ValueError(f"{reading.field!r} is empty")
    return text.encode()


def _why(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}: {error.reason}"
    if isinstance(error, UnicodeEncodeError):
        return f"character {error.start} is half a surrogate pair"
    return f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
