"""From names to what a run learns from: files read, split, encoded, packed, mixed.

Everything follows from the contents, the seed and the options: not from folders, file dates, the
cache, or how many processes encode. What may be larger than memory stays on disk, mapped.

    made = prepare("folk", codec="byte", vocab_size=257)
    batches = Batches(made.groups, context=256, windows=8, seed=0, folder=made.cache)
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.codecs import Codec, Fitted
from seriatim.codecs._safe import last_cut
from seriatim.errors import FileError, RequestError, ResourceError
from seriatim.files.regular import listed
from seriatim.train import encoding, packing, run, shards, splitting
from seriatim.train.batches import Batch, Batches, Group
from seriatim.train.reading import Bad, Paths, Reading, Record, Span, records
from seriatim.train.report import Note, Report
from seriatim.train.shards import Corpus, Shard, spooled
from seriatim.train.splitting import Data, Source

__all__ = ["Batch", "Batches", "Data", "Paths", "Prepared", "prepare"]

LEAST = 4  # ids to predict, below which a validation says nothing
SHOWN = 5  # names, or refused records, that are written out
LEARNED = 1 << 28  # bytes of text that a vocabulary is learned from


@dataclass(frozen=True)
class Prepared:
    """What a run learns from, and what it does not.

    Attributes:
        codec: whose ids these are.
        groups: documents to learn from.
        held: ids of each held-out document, framed but for the end: they are to be scored.
        trained, held_out: files that the two come from, with a count where only some of a file.
        documents, ids: how many to learn from.
        refused: records that are none: file, place, why.
        digest: SHA-256 of all of it: equal for equal data, whatever the folder.
        cache: where shards and plans lie.
    """

    codec: Codec
    groups: tuple[Group, ...]
    held: tuple[np.ndarray, ...]
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    documents: int
    ids: int
    refused: tuple[tuple[str, str, str], ...]
    digest: str
    cache: Path


@dataclass(frozen=True)
class Encoded:
    """A source in ids."""

    source: Source
    parts: tuple[tuple[Span, ...], ...]
    shards: tuple[Shard, ...]
    corpus: Corpus

    @property
    def refused(self) -> Iterator[tuple[str, str, str]]:
        """File, place, why."""
        for part, shard in zip(self.parts, self.shards, strict=True):
            for bad in shard.refused:
                yield part[bad.file].path, bad.place, bad.why

    def counts(self, chosen: np.ndarray) -> dict[str, tuple[int, int]]:
        """For each file, how many of its documents are chosen, and of how many."""
        found: dict[str, tuple[int, int]] = {}
        at = 0
        for part, shard in zip(self.parts, self.shards, strict=True):
            for span, count in zip(part, shard.accepted, strict=True):
                some, whole = found.get(span.path, (0, 0))
                mine = int(chosen[at : at + count].sum())
                found[span.path] = some + mine, whole + count
                at += count
        return found


def prepare(
    data: Data,
    *,
    codec: str | Codec,
    vocab_size: int,
    validation: Paths | float | None = None,
    seed: int = 0,
    field: str = "text",
    separator: str | None = None,
    cache: str | Path | None = None,
    processes: int = 1,
    reader: Callable[[Codec], Codec] | None = None,
    say: Report = lambda event: None,
) -> Prepared:
    """Read, split and encode data; a second time it comes from the cache.

    Args:
        data: files, folders, patterns, or a mapping of them to weights.
        codec: a registered name, a folder that holds a codec, or one.
        vocab_size: for a codec that learns its ids, from the documents that are not held out.
        validation: what is held out: paths, names of files of `data`, or a share of the documents.
        seed: of the split.
        field: of .jsonl lines, the text.
        separator: between the documents of a plain file.
        cache: folder of the shards.
        processes: how many encode at a time.
        reader: makes of the codec one that reads conversations, instead of text.
        say: told what was found.

    Raises:
        RequestError: an option that cannot be honoured, or a split that leaves a side empty.
        FileError: a file that fails as a whole.
        ResourceError: the disk refused.
    """
    if separator == "":
        raise RequestError("separator is empty", expected="at least one character")
    place = Path(cache) if cache else shards.default_cache()
    maker = run.maker(codec)
    if reader:
        _check_conversations(field, separator)
        talks = reader(maker.make((), vocab_size))
        maker = run.Maker(lambda texts, vocab_size: talks)
    text, objects = maker.text, maker.objects
    how = Reading(field, separator, text=text, objects=objects, messages=reader is not None)
    found = splitting.sources(data, validation, how)
    share = splitting.share_of(validation) or splitting.SHARE
    size = sum(span.size for source in found for span in source.spans)
    asked = validation not in (None, [])
    options = {"share": share, "size": 0 if asked else size, "seed": seed}
    paths = {span.path for source in found for span in source.spans}
    many = "file" if len(paths) == 1 else "files"
    say(Note(f"{len(paths):,} {many} of {size:,} bytes; encoded, they are kept in {place}"))
    made = maker.make(_texts(found, how, options, LEARNED / size, say), vocab_size)
    made = _fitted(made, found, say)
    encoder = encoding.Encoder(made, run.digest(made), how, place)
    every = [_encoded(source, encoder, processes, say) for source in found]
    away = _held(found, [e.corpus.digests for e in every], options)
    groups = [_group(e, ~mark, place) for e, mark in zip(every, away, strict=True)]
    refused = tuple(bad for e in every for bad in e.refused)
    _say_found(every, away, refused, say)
    return Prepared(
        made,
        learned := tuple(group for group in groups if group.weight),
        _scored(every, away, 0 if reader else len(made.ends[:1])),
        _files(every, [~mark for mark in away]),
        _files(every, away),
        sum(len(group.starts) for group in learned),
        sum(group.pairs for group in learned),
        refused,
        _digest(every, away),
        place,
    )


def _fitted(codec: Codec, found: Sequence[Source], say: Report) -> Codec:
    """A codec that adapts to files does to those that are not held out."""
    if not isinstance(codec, Fitted):
        return codec
    learned = {Path(span.path) for source in found if source.weight for span in source.spans}
    fitted = codec.fitted(sorted(learned))
    if fitted is not codec and all(source.weight for source in found):
        say(Note(f"the codec is fitted to all {len(learned):,} files, held-out documents as well"))
    return fitted


def _check_conversations(field: str, separator: str | None) -> None:
    """Refuse options that say how text is read."""
    for name, given, default in (("field", field, "text"), ("separator", separator, None)):
        if given != default:
            fix = "leave it out: conversations are the messages of .jsonl lines"
            raise RequestError(f"{name} is {given!r:.80}", fix=fix)


def _held(
    found: Sequence[Source], digests: Sequence[np.ndarray], options: dict[str, Any]
) -> list[np.ndarray]:
    return splitting.hold_out(digests, [not s.weight for s in found], **options)


def _texts(
    found: Sequence[Source], how: Reading, options: dict[str, Any], share: float, say: Report
) -> Iterator[str]:
    """Text of the documents that are not held out, for a codec that is still to be learned.

    Where `share` is below 1, it takes that share of the pieces, by their hash, and says so.
    """
    digests = [np.fromiter(map(_hash, _documents(s, how)), np.uint64) for s in found]
    away = _held(found, digests, options)
    if share < 1:
        say(Note(f"the vocabulary is learned from {share:.2%} of the text, chosen by hash"))
    for source, mark, numbers in zip(found, away, digests, strict=True):
        if source.weight:
            for record, out, number in zip(_documents(source, how), mark, numbers, strict=True):
                for index, piece in enumerate(record.pieces):
                    if not out and _rank(number, index) < share:
                        yield piece.decode()


def _documents(source: Source, how: Reading) -> Iterator[Record]:
    bad: dict[str, Bad] = {}
    good: set[str] = set()
    for index, span in enumerate(source.spans):
        for record in records(index, span, how, last_cut):
            if isinstance(record, Record):
                good.add(span.path)
                yield record
            else:
                bad.setdefault(span.path, record)
    for path in sorted(bad.keys() - good):
        raise _fruitless(path, bad[path].place, bad[path].why)


def _fruitless(path: str, place: str, why: str) -> FileError:
    return FileError(f"{path} holds no document: {place} is {why}", fix="leave it out")


def _hash(record: Record) -> int:
    """As shards have it."""
    content = hashlib.sha256()
    for piece in record.pieces:
        content.update(piece)
    return int.from_bytes(content.digest()[:8], "little")


def _rank(number: np.uint64, index: int) -> float:
    """A number in [0, 1) for each piece of a document."""
    return float(packing.mixed(np.array([number ^ np.uint64(index + 1)]))[0]) / 2**64


def _encoded(source: Source, encoder: encoding.Encoder, processes: int, say: Report) -> Encoded:
    parts = encoding.parts(source.spans)

    def begun(missing: int) -> None:
        if len(parts) > 1:
            say(Note(f"{source.name}: encoding {missing:,} of {len(parts):,} parts"))

    found = encoding.encode(encoder, parts, processes=processes, begun=begun)
    encoded = Encoded(source, tuple(parts), tuple(found), Corpus.of(found, encoder.cache))
    whole = encoded.counts(np.ones(len(encoded.corpus.digests), bool))
    for path, (count, _) in whole.items():
        if not count:
            raise _fruitless(*next(bad for bad in encoded.refused if bad[0] == path))
    return encoded


def _group(encoded: Encoded, chosen: np.ndarray, place: Path) -> Group:
    source, corpus = encoded.source, encoded.corpus
    starts, ends = (spooled([t[chosen]], np.int64, place) for t in (corpus.starts, corpus.ends))
    return Group(source.name, source.weight, corpus, starts, ends)


def _scored(every: Sequence[Encoded], away: Sequence[np.ndarray], tail: int) -> tuple[Any, ...]:
    """Held-out documents, each once, without the id that ends them.

    Raises:
        RequestError: nearly nothing is held out.
    """
    found = [
        encoded.corpus.document(int(index))[: -tail or None]
        for encoded, mark in zip(every, away, strict=True)
        if not encoded.source.weight or all(e.source.weight for e in every)
        for index in np.flatnonzero(mark)
    ]
    if (ids := sum(map(len, found))) < LEAST:
        raise RequestError(
            f"the held-out documents hold {ids} ids",
            expected=f"at least {LEAST}",
            fix="give more documents, or name validation files",
        )
    return tuple(found)


def _files(every: Sequence[Encoded], chosen: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Names of the files that chosen documents come from, with a count where not all are."""
    names = []
    for encoded, mark in zip(every, chosen, strict=True):
        for path, (some, whole) in encoded.counts(mark).items():
            tail = encoded.parts[0][0].start > 0
            name = f"end of {Path(path).name}" if tail else Path(path).name
            part = "" if some == whole else f" ({some:,} of {whole:,} documents)"
            names += [name + part] * (some > 0)
    return tuple(names)


def _digest(every: Sequence[Encoded], away: Sequence[np.ndarray]) -> str:
    """SHA-256 of each source's weight, the hashes of its documents, and which are held out."""
    whole = hashlib.sha256()
    for encoded, mark in zip(every, away, strict=True):
        digests = encoded.corpus.digests
        whole.update(repr((encoded.source.weight, len(digests))).encode())
        for at in range(0, len(digests), 1 << 20):
            whole.update(digests[at : at + (1 << 20)].tobytes())
        whole.update(np.packbits(mark).tobytes())
    return whole.hexdigest()


def _say_found(
    every: Sequence[Encoded],
    away: Sequence[np.ndarray],
    refused: Sequence[tuple[str, str, str]],
    say: Report,
) -> None:
    if refused:
        some = listed([f"{path} {place}: {why}" for path, place, why in refused[:SHOWN]], SHOWN)
        many = "record" if len(refused) == 1 else "records"
        say(Note(f"{len(refused):,} {many} refused: {some}"))
    if not all(encoded.source.weight for encoded in every):
        pairs = zip(every, away, strict=True)
        if doubles := sum(int(mark.sum()) for e, mark in pairs if e.source.weight):
            say(Note(f"{doubles:,} documents equal held-out ones and are not learned from"))


def write_refused(out: Path, refused: Sequence[tuple[str, str, str]]) -> None:
    """List all refused records in `checkpoints/refused.jsonl` of a run folder, if there are any.

    Raises:
        ResourceError: the disk refused.
    """
    path = out / "checkpoints" / "refused.jsonl"
    if not refused:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for name, place, why in refused:
                file.write(json.dumps({"file": name, "place": place, "why": why}) + "\n")
    except OSError as error:
        raise ResourceError(f"{path} was not written: {error.strerror}") from error
