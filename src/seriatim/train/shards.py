"""Encoded documents on disk: ids end to end, where each ends, and what tells equal ones.

A shard is a folder of the cache, named by a hash of what it was made from:

    ids.bin         uint16 or uint32 (by the vocabulary) [id], each document framed; or int32,
                    where some ids are only read and not to be learned: those are `~id`
    documents.bin   uint64 [document, 2]: where it ends in ids.bin, hash of its content
    refused.jsonl   one line for each record that is none: span, place, why
    manifest.json   format, codec, counts, SHA-256 of the other files

It is written beside its place and renamed into it; a shard that does not match its manifest is
made again. Deleting the cache costs time and nothing else.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from seriatim.errors import ResourceError
from seriatim.train.reading import Bad

FORMAT = 1
FILES = ("ids.bin", "documents.bin", "refused.jsonl")
GATHERED = 1 << 18  # ids that are written at once
STALE = 86_400  # seconds after which a half-written shard has no writer any more


@dataclass(frozen=True)
class Shard:
    """What is in a shard folder, memory-mapped."""

    ids: np.ndarray  # [id]
    ends: np.ndarray  # uint64 [document]
    digests: np.ndarray  # uint64 [document]
    refused: tuple[Bad, ...]
    accepted: tuple[int, ...]  # documents of each span


def default_cache() -> Path:
    """$XDG_CACHE_HOME/seriatim/shards, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "seriatim" / "shards"


def key(facts: Any) -> str:
    """The name of a shard that is made from `facts`, which JSON can hold."""
    return hashlib.sha256(json.dumps([FORMAT, facts], sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> Shard | None:
    """The shard in a folder, or None if there is none or not as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if manifest["sha256"] != {name: _sum(folder / name) for name in FILES}:
            return None
        lines = (folder / "refused.jsonl").read_text().splitlines()
        table = _mapped(folder / "documents.bin", "<u8").reshape(-1, 2)
        return Shard(
            _mapped(folder / "ids.bin", manifest["dtype"]),
            table[:, 0],
            table[:, 1],
            tuple(Bad(*json.loads(line)) for line in lines),
            tuple(manifest["accepted"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapped(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r")


def read(ids: np.ndarray) -> np.ndarray:
    """The ids themselves, also of those that are only read.

    Example:
        >>> read(np.array([~5, ~0, 7], np.int32)).tolist()
        [5, 0, 7]
    """
    return ids ^ (ids >> 31) if ids.dtype == np.int32 else ids


def learned(ids: np.ndarray) -> np.ndarray:
    """Which of them are to be learned: bool [id]."""
    return ids >= 0


class Writer:
    """Writes one shard; `close` publishes it whole, leaving the context without it removes it.

    Args:
        folder: its place in the cache.
        size: of the vocabulary.
        spans: how many spans it is made from.
        signed: some ids are only read.

    Raises:
        ResourceError: the disk refused; nothing half-written is left.
    """

    def __init__(self, folder: Path, *, size: int, spans: int, signed: bool = False) -> None:
        self.folder = folder
        self.dtype = "<i4" if signed else "<u2" if size <= 1 << 16 else "<u4"
        self.refused, self.accepted, self._end = 0, [0] * spans, 0
        self._waiting: list[np.ndarray] = []
        self._held = 0  # ids in `_waiting`

    def __enter__(self) -> Self:
        with _refusing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=f"{self.folder.name}.partial-", dir=self.folder.parent)
            self._partial = Path(made)
            self._files = [(self._partial / name).open("wb") for name in FILES]
        self._sums = [hashlib.sha256() for _ in FILES]
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            with suppress(OSError):  # a full disk again: the error that ended us says so
                file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, ids: np.ndarray) -> None:
        """The next ids of the document that `finish` will end."""
        self._waiting.append(ids)
        self._end, self._held = self._end + len(ids), self._held + len(ids)
        if self._held >= GATHERED:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            ids = np.concatenate(self._waiting, dtype=self.dtype, casting="unsafe")
            self._write(0, ids.data)
        self._waiting, self._held = [], 0

    def finish(self, span: int, digest: bytes) -> None:
        """Ends a document of that span, whose content has that hash (8 bytes or more)."""
        self.accepted[span] += 1
        self._write(1, self._end.to_bytes(8, "little") + digest[:8])

    def refuse(self, bad: Bad) -> None:
        """Notes a record that is none."""
        self.refused += 1
        self._write(2, (json.dumps(bad) + "\n").encode())

    def close(self, facts: dict[str, Any]) -> None:
        """Publishes the shard; `facts` go into the manifest."""
        self._flush()
        with _refusing(self.folder):
            for file in self._files:
                file.close()
            sums = {n: s.hexdigest() for n, s in zip(FILES, self._sums, strict=True)}
            own = {"format": FORMAT, "dtype": self.dtype, "accepted": self.accepted}
            own |= {"documents": sum(self.accepted), "ids": self._end, "refused": self.refused}
            text = json.dumps(facts | own | {"sha256": sums}, indent=2, sort_keys=True)
            (self._partial / "manifest.json").write_text(text + "\n")
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged one
            try:
                self._partial.rename(self.folder)
            except FileExistsError:
                pass  # another run has just written the same
            except OSError:
                if not self.folder.is_dir():
                    raise

    def _write(self, which: int, data: bytes | memoryview) -> None:
        with _refusing(self.folder):
            self._files[which].write(data)
        self._sums[which].update(data)


class _refusing:
    """A disk that refuses is a `ResourceError` that names the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise ResourceError(
                f"the cache {self.folder.parent} cannot be written: {error.strerror}",
                fix="make room, or name another folder with cache",
            ) from error


def tidy(cache: Path) -> None:
    """Removes what killed runs left half-written, once nothing can be writing it any more."""
    for left in cache.glob("*.partial-*"):
        try:
            old = time.time() - left.stat().st_mtime > STALE
        except OSError:
            continue
        if old:
            shutil.rmtree(left, ignore_errors=True)


def spooled(parts: Iterable[np.ndarray], dtype: Any, folder: Path) -> np.ndarray:
    """`parts` end to end in a file that has no name any more, memory-mapped: [entry].

    Raises:
        ResourceError: the disk refused.
    """
    with _refusing(folder / "table"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
            file.flush()
            return np.memmap(file, dtype, "r") if file.tell() else np.empty(0, dtype)


@dataclass(frozen=True)
class Corpus:
    """Documents of shards, one after another; positions count ids over all of them.

    Attributes:
        shards: their ids, in order.
        begins: position where each shard begins, and the end: int64 [shard + 1].
        starts, ends: positions of each document: int64 [document].
        digests: hash of each document's content: uint64 [document].
    """

    shards: tuple[np.ndarray, ...]
    begins: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    digests: np.ndarray

    @classmethod
    def of(cls, shards: Sequence[Shard], folder: Path) -> Self:
        """The corpus of `shards`; its tables lie in files below `folder` that have no name."""
        begins = np.cumsum([0, *(len(s.ids) for s in shards)])
        bases = list(zip(shards, begins.tolist(), strict=False))
        return cls(
            tuple(s.ids for s in shards),
            begins,
            spooled((_starts(s) + base for s, base in bases), np.int64, folder),
            spooled((s.ends.astype(np.int64) + base for s, base in bases), np.int64, folder),
            spooled((s.digests for s in shards), np.uint64, folder),
        )

    def ids(self, start: int, count: int) -> np.ndarray:
        """`count` ids from a position on, all of one document."""
        shard = int(np.searchsorted(self.begins, start, "right")) - 1
        at = start - int(self.begins[shard])
        return self.shards[shard][at : at + count]

    def document(self, index: int) -> np.ndarray:
        """The ids of a document, framed."""
        start = int(self.starts[index])
        return self.ids(start, int(self.ends[index]) - start)


def _starts(shard: Shard) -> np.ndarray:
    return (
        np.concatenate([[0], shard.ends[:-1].astype(np.int64)]) if len(shard.ends) else shard.ends
    )
