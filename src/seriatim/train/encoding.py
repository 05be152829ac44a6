"""Documents to shards by any codec, several at a time, in processes of their own.

A worker is this module run as a program: it is told the codec's folder, gets parts to encode as
lines of JSON and answers each with a line. Nothing is pickled, and the caller's own program is not
run again. The ids are those that the codec gives for the whole document.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from seriatim import codecs, errors
from seriatim.codecs import Codec, Divisible, Records
from seriatim.errors import FileError, ResourceError, SeriatimError
from seriatim.train import conversations, shards
from seriatim.train.reading import (
    PART,
    Bad,
    Cut,
    Reading,
    Record,
    Span,
    check_unchanged,
    records,
)
from seriatim.train.shards import Shard, Writer

ALONE = 1 << 22  # bytes below which starting a process (0.4 s) costs more than it saves
TOGETHER = 1 << 20  # bytes that are encoded in one call

Part = tuple[Span, ...]


def parts(spans: Sequence[Span]) -> list[Part]:
    """Spans in order, those of small files together: each part becomes a shard.

    Where parts end follows from the data alone, so shards are found again on any machine.
    """
    found: list[list[Span]] = []
    room = 0
    for span in spans:
        if span.size > room:
            found.append([])
            room = PART
        found[-1].append(span)
        room -= span.size
    return [tuple(part) for part in found]


def cut_of(codec: Codec) -> Cut:
    """Where the codec allows text to be cut."""
    return codec.cut if isinstance(codec, Divisible) else lambda data: 0


@dataclass(frozen=True)
class Encoder:
    """What encodes a part into the cache.

    Attributes:
        codec: any codec.
        digest: SHA-256 of what it saves.
        reading: how files become documents.
        cache: folder of the shards.
    """

    codec: Codec
    digest: str
    reading: Reading
    cache: Path

    @cached_property
    def _frame(self) -> tuple[np.ndarray, np.ndarray]:
        """What begins and what ends a document; a chat template has put it there."""
        if self.reading.messages:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        return np.array(self.codec.start, np.uint32), np.array(self.codec.ends[:1], np.uint32)

    def place(self, part: Part) -> Path:
        """The folder of the shard that `part` becomes."""
        content = [[s.sha256, s.kind, s.start, s.end, s.line] for s in part]
        return self.cache / shards.key([self.digest, asdict(self.reading), content])

    def encode(self, part: Part) -> None:
        """Encodes a part and publishes its shard.

        Raises:
            FileError: a file that cannot be read, or that the codec refuses as a whole.
            ResourceError: the disk refused.
        """
        size, signed = self.codec.size, self.reading.messages
        with Writer(self.place(part), size=size, spans=len(part), signed=signed) as out:
            for index, span in enumerate(part):
                many = self._objects if span.kind == "objects" else self._texts
                many(index, span, out)
            facts = {"codec": self.codec.name, "codec_sha256": self.digest}
            out.close(facts | {"files": [Path(span.path).name for span in part]})

    def _texts(self, index: int, span: Span, out: Writer) -> None:
        waiting: list[tuple[str, list[bytes]]] = []
        size = 0
        for record in records(index, span, self.reading, cut_of(self.codec)):
            if isinstance(record, Bad):
                out.refuse(record)
            elif span.kind == "text":
                self._whole(index, span, record, out)
            else:
                waiting.append((record.place, list(record.pieces)))
                size += sum(map(len, waiting[-1][1]))
                if size >= TOGETHER:
                    self._several(index, waiting, out)
                    waiting, size = [], 0
        self._several(index, waiting, out)

    def _whole(self, index: int, span: Span, record: Record, out: Writer) -> None:
        """A file that is one document, of any length."""
        content = hashlib.sha256()
        out.add(self._frame[0])
        for group in _grouped(record.pieces):
            for piece in group:
                content.update(piece)
            try:
                for ids in self._ids(group):
                    out.add(ids)
            except SeriatimError as error:
                raise _of_file(span.path, error) from error
        if content.digest() == hashlib.sha256().digest():
            raise FileError(f"{span.path} is empty", expected="text", fix="leave it out")
        self._finish(index, content.digest(), out)

    def _several(self, index: int, waiting: list[tuple[str, list[bytes]]], out: Writer) -> None:
        """Records that are in memory, together where all can be encoded."""
        try:
            found = iter(self._ids([piece for _, pieces in waiting for piece in pieces]))
        except SeriatimError as error:
            if len(waiting) > 1:
                for one in waiting:
                    self._several(index, [one], out)
            else:
                out.refuse(Bad(index, waiting[0][0], str(error)))
            return
        for _, pieces in waiting:
            out.add(self._frame[0])
            for _ in pieces:
                out.add(next(found))
            self._finish(index, hashlib.sha256(b"".join(pieces)).digest(), out)

    def _objects(self, index: int, span: Span, out: Writer) -> None:
        """What the codec itself finds in the file."""
        for place, raw in self._found(Path(span.path)):
            try:
                if isinstance(raw, SeriatimError):
                    raise raw
                ids = np.array(self.codec.encode(raw), np.uint32)
            except SeriatimError as error:
                if not place:
                    raise _of_file(span.path, error) from error
                out.refuse(Bad(index, place, str(error)))
            else:
                out.add(np.concatenate([self._frame[0], ids]))
                self._finish(index, hashlib.sha256(ids.tobytes()).digest(), out)
        check_unchanged(span)

    def _found(self, path: Path) -> Iterator[tuple[str, Any]]:
        if isinstance(self.codec, Records):
            yield from self.codec.records(path)
        else:
            yield "", self.codec.read(path)

    def _ids(self, pieces: list[bytes]) -> list[np.ndarray]:
        if isinstance(self.codec, Divisible):
            return self.codec.encode_many(pieces)
        return [np.array(self.codec.encode(piece.decode()), np.uint32) for piece in pieces]

    def _finish(self, index: int, digest: bytes, out: Writer) -> None:
        out.add(self._frame[1])
        out.finish(index, digest)


def _grouped(pieces: Iterator[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for piece in pieces:
        group.append(piece)
        if sum(map(len, group)) >= TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _of_file(path: str, error: SeriatimError) -> FileError:
    seen = error.seen if path in error.seen else f"{path}: {error.seen}"
    return FileError(seen, expected=error.expected, fix=error.fix)


def encode(
    encoder: Encoder,
    every: Sequence[Part],
    *,
    processes: int,
    begun: Callable[[int], None] = lambda missing: None,
) -> list[Shard]:
    """The shards of all parts, in order: from the cache where they are whole there.

    Args:
        processes: how many encode at a time.
        begun: called with how many parts the cache lacks.

    Raises:
        FileError: a file that is refused as a whole, or none of whose records is one.
        ResourceError: the disk refused, or a process was killed.
    """
    shards.tidy(encoder.cache)
    found = {place: shards.load(place) for place in map(encoder.place, every)}
    missing = {encoder.place(part): part for part in every if found[encoder.place(part)] is None}
    begun(len(missing))
    size = sum(span.size for part in missing.values() for span in part)
    if min(processes, len(missing)) > 1 and size >= ALONE:
        _encode_beside(encoder, list(missing.values()), min(processes, len(missing)))
    else:
        for part in missing.values():
            encoder.encode(part)
    for place in missing:
        found[place] = shards.load(place)
    return [_whole_shard(found[encoder.place(part)], encoder, part) for part in every]


def _whole_shard(shard: Shard | None, encoder: Encoder, part: Part) -> Shard:
    if shard is None:
        fix = "check the disk, or name another folder with cache"
        raise ResourceError(f"{encoder.place(part)} was written and reads otherwise", fix=fix)
    return shard


def _encode_beside(encoder: Encoder, every: list[Part], processes: int) -> None:
    """Each process takes the next part when it has done one."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        encoder.codec.save(Path(folder))
        setup = [folder, encoder.digest, asdict(encoder.reading), str(encoder.cache)]
        waiting = iter(every)
        threads = [pool.submit(_feed, json.dumps(setup), waiting) for _ in range(processes)]
        try:
            for thread in threads:
                thread.result()
        except BaseException:  # Ctrl-C too: each process ends after the part it is at
            for _ in waiting:
                pass
            raise


def _feed(setup: str, waiting: Iterator[Part]) -> None:
    paths = os.pathsep.join(path or os.curdir for path in sys.path)
    # Each has one processor: the threads of `tokenizers` would take turns.
    here = os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "seriatim.train.encoding", setup]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=here) as worker:
        if worker.stdin is None or worker.stdout is None:
            raise ResourceError("an encoding process has no pipes")
        try:
            for part in waiting:
                worker.stdin.write(json.dumps(part).encode() + b"\n")
                worker.stdin.flush()
                _check(worker.stdout.readline(), worker)
        except BrokenPipeError:
            _check(b"", worker)


def _check(answer: bytes, worker: subprocess.Popen[bytes]) -> None:
    """Refuse as the worker did.

    Raises:
        SeriatimError: of the class that the worker raised.
        ResourceError: it ended without an answer.
    """
    if not answer:
        seen = f"an encoding process ended with exit code {worker.wait()}"
        raise ResourceError(seen, fix="it may have been killed for want of memory: run again")
    if said := json.loads(answer):
        name, seen, expected, fix = said
        raise getattr(errors, name)(seen, expected=expected, fix=fix)


def main(setup: str) -> None:
    """Encodes the parts that come as lines on stdin; answers `null`, or the error's fields."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us by closing stdin
    folder, digest, reading, cache = json.loads(setup)
    codec = codecs.load(Path(folder))
    if codec is None:
        raise FileError(f"{folder} holds no codec")
    how = Reading(**reading)
    if how.messages:
        codec = conversations.of(codec, Path(folder))
    encoder = Encoder(codec, digest, how, Path(cache))
    for line in sys.stdin:
        said = None
        try:
            encoder.encode(tuple(Span(*span) for span in json.loads(line)))
        except SeriatimError as error:
            said = [type(error).__name__, error.seen, error.expected, error.fix]
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
