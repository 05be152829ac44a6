"""From files to batches: documents, their split, one stream of ids, windows of it for each step.

There is no generator state: which windows step N sees follows from (seed, N) alone, so a run
resumes anywhere.
"""

import glob
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from seriatim.codecs import Codec
from seriatim.errors import FileError, RequestError, ResourceError

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Document:
    """One file, or the held-out tail of one."""

    name: str
    text: str


@dataclass(frozen=True)
class Split:
    """What is learned from and what is not."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of every document, in order: equal for equal data, whatever the folder."""
        sums = [_digest(part) for part in (self.train, self.validation)]
        return hashlib.sha256("".join(sums).encode()).hexdigest()


def _digest(documents: Iterable[Document]) -> str:
    whole = hashlib.sha256()
    for document in documents:
        whole.update(hashlib.sha256(document.text.encode()).digest())
    return whole.hexdigest()


def files(data: Paths) -> list[Path]:
    """Files that paths, folders (all files below) and glob patterns name, sorted, each once.

    Raises:
        RequestError: one of them names no file.
    """
    named = [data] if isinstance(data, str | Path) else data
    found: set[Path] = set()
    for name in named:
        here = _expand(Path(name))
        if not here:
            raise RequestError(f"{name} names no file", expected="a file, a folder or a pattern")
        found.update(here)
    return sorted(found)


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inner = (p for p in path.rglob("*") if p.is_file())
        return [p for p in inner if not any(s.startswith(".") for s in p.relative_to(path).parts)]
    return [path] if path.is_file() else [p for p in map(Path, glob.glob(str(path))) if p.is_file()]


def read(path: Path) -> Document:
    """A UTF-8 file as it is: line ends, byte order mark and all.

    Raises:
        FileError: unreadable, empty or not UTF-8; the byte offset is named.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not UTF-8 at byte {error.start}: {error.reason}",
            expected="UTF-8 text",
            fix="convert the file, or leave it out",
        ) from error
    if not text:
        raise FileError(f"{path} is empty", expected="text", fix="leave it out")
    return Document(path.name, text)


def split(data: Paths, validation: Paths | None, seed: int) -> Split:
    """Read everything; hold out `validation`, or a tenth of the files, or of a lone file its end.

    Raises:
        RequestError: nothing is left to train on.
    """
    paths = files(data)
    held = _held(paths, validation) if validation else []
    if not validation and len(paths) > 1:
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(paths))
        held = sorted(paths[i] for i in order[: max(1, len(paths) // 10)])
    away = {p.resolve() for p in held}
    train = [read(p) for p in paths if p.resolve() not in away]
    if held and not train:
        raise RequestError("every file is held out", expected="at least one to train on")
    return Split(tuple(train), tuple(map(read, held))) if held else _cut(train[0])


def _held(paths: list[Path], validation: Paths) -> list[Path]:
    """Held-out files: paths of their own, or names of files among the data."""
    named = [validation] if isinstance(validation, str | Path) else validation
    held: set[Path] = set()
    for name in named:
        mine = [p for p in paths if name in (p.name, p.stem)]
        held.update(mine or files(name))
    return sorted(held)


def _cut(document: Document) -> Split:
    """The last tenth, from the next line on, where there is one."""
    text = document.text
    at = len(text) - len(text) // 10
    line = text.find("\n", at) + 1
    at = line if 0 < line < len(text) else at
    head, tail = (
        Document(document.name, text[:at]),
        Document(f"end of {document.name}", text[at:]),
    )
    return Split((head,), (tail,))


def encode(documents: Iterable[Document], codec: Codec) -> list[np.ndarray]:
    """Ids of each document, int32, beginning with the codec's start id where there is one."""
    return [np.array(codec.prompt(document.text), np.int32) for document in documents]


def stored(run: Path, name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`arrays` end to end in a memory-mapped file of the run folder: int32 [id].

    Raises:
        ResourceError: the disk refused.
    """
    path = run / "checkpoints" / f"{name}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(arrays), allow_pickle=False)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ResourceError(f"{path} was not written: {error.strerror}") from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def check_length(arrays: Iterable[np.ndarray], *, windows: int, context: int) -> None:
    """Refuse data that is shorter than one batch.

    Raises:
        RequestError: with both lengths.
    """
    count = sum(map(len, arrays))
    if count <= windows * context:
        raise RequestError(
            f"the data holds {count:,} ids to train on",
            expected=f"more than one batch, {windows} windows of {context}",
            fix="give more data, a smaller batch or a smaller context",
        )


def batch(stream: np.ndarray, *, step: int, seed: int, windows: int, context: int) -> np.ndarray:
    """Inputs and targets of one step: int64 [window, context + 1].

    The stream is cut into windows at an offset that changes with each pass over it; a pass visits
    each once, in an order drawn from (seed, pass).
    """
    room = min(context, len(stream) - context)  # offsets of a pass
    count = (len(stream) - room) // context  # whole windows at any of them
    rows = []
    for index in range(step * windows, (step + 1) * windows):
        offset, order = _pass(seed, index // count, count, room)
        at = offset + int(order[index % count]) * context
        rows.append(stream[at : at + context + 1])
    return np.stack(rows).astype(np.int64)


@lru_cache(maxsize=2)
def _pass(seed: int, number: int, count: int, room: int) -> tuple[int, np.ndarray]:
    draw = np.random.Generator(np.random.PCG64([seed, number]))
    return int(draw.integers(room)), draw.permutation(count)
