"""What is learned from and what is held out: by name, or by a hash of the content.

Equal documents are always on one side. The split does not depend on the codec, which may be learned
from the training side alone.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.errors import FileError, RequestError
from seriatim.files.regular import listed, open_regular
from seriatim.train.packing import mixed
from seriatim.train.reading import Paths, Reading, Span, files, spans

Data = Paths | Mapping[str | Path, float]

SHARE = 0.1  # of the documents that are held out
MOST = 1 << 22  # bytes: of data larger than ten times this, the share that is about as much


@dataclass(frozen=True)
class Source:
    """Files that are drawn from together; weight 0 is held out."""

    name: str
    weight: float
    spans: tuple[Span, ...]


def sources(data: Data, validation: Paths | float | None, reading: Reading) -> list[Source]:
    """The files of `data` by weight, and last, where they are named, those that are held out.

    Without names, the end of a lone plain file is held out; of more, `hold_out` chooses documents.

    Raises:
        RequestError: a name without files, a weight that is none, or nothing left to train on.
        FileError: a file that cannot be read.
    """
    groups = [(name, weight, files(paths)) for name, weight, paths in weighed(data)]
    every = [path for _, _, paths in groups for path in paths]
    _refuse_twice(every)
    held = [] if share_of(validation) is not None else named(every, validation)
    away = {path.resolve() for path in held}
    kept = [(n, w, [p for p in paths if p.resolve() not in away]) for n, w, paths in groups]
    if empty := [name for name, _, paths in kept if not paths]:
        where = "" if len(kept) == 1 else f" of {empty[0]}"
        raise RequestError(f"every file{where} is held out", expected="at least one to train on")
    found = [Source(name, weight, _spans(paths, reading)) for name, weight, paths in kept]
    if held:
        return [*found, Source("held out", 0.0, _spans(held, reading))]
    if validation is None and len(every) == 1 and found[0].spans[0].kind == "text":
        return _lone(found[0])
    return found


def weighed(data: Data) -> list[tuple[str, float, Paths]]:
    """Names, weights and paths: one group unless weights are given, as a mapping or PATH=WEIGHT.

    Raises:
        RequestError: a weight that is none, or weights for some names only.

    Example:
        >>> weighed(["a.txt=3", "b=1"])
        [('a.txt', 3.0, 'a.txt'), ('b', 1.0, 'b')]
    """
    if isinstance(data, Mapping):
        return [(str(path), _weight(path, weight), path) for path, weight in data.items()]
    names = [data] if isinstance(data, str | Path) else list(data)
    pairs = [_parted(name) for name in names]
    if all(weight is None for _, weight in pairs):
        return [(listed(list(map(str, names))), 1.0, names)]
    for name, weight in pairs:
        if weight is None:
            raise RequestError(f"{name} has no weight", expected="PATH=WEIGHT for all, or for none")
    return [(str(path), _weight(path, weight), path) for path, weight in pairs]


def _parted(name: str | Path) -> tuple[str | Path, str | None]:
    """A path and its weight; a file whose own name ends like a weight is a path."""
    path, equals, weight = str(name).rpartition("=")
    if not equals or isinstance(name, Path) or Path(name).exists():
        return name, None
    return path, weight


def _weight(path: str | Path, weight: Any) -> float:
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf or isinstance(weight, bool):
        raise RequestError(f"the weight of {path} is {weight}", expected="a number above 0")
    return number


def share_of(validation: Paths | float | None) -> float | None:
    """The share of the documents that `validation` asks for, None where it names files.

    Raises:
        RequestError: a share outside (0, 1).
    """
    names = [validation] if isinstance(validation, str | float | int) else validation
    match names:
        case None | []:
            return SHARE
        case [str(one)] if re.fullmatch(r"\d*\.\d+", one) and not Path(one).exists():
            share = float(one)
        case [float(share) | int(share)]:
            pass
        case _:
            return None
    if not 0 < share < 1:
        raise RequestError(f"validation is {share}", expected="a share between 0 and 1, or files")
    return float(share)


def named(every: Sequence[Path], validation: Paths | float | None) -> list[Path]:
    """Held-out files: paths of their own, or names of files among the data."""
    names = [validation] if isinstance(validation, str | Path) else validation
    if names is None or isinstance(names, float | int):
        return []
    held: set[Path] = set()
    for name in names:
        held.update([p for p in every if name in (p.name, p.stem)] or files(name))
    return sorted(held)


def _refuse_twice(every: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in every:
        if path in seen:
            raise RequestError(f"{path} is in two groups", expected="each file in one")
        seen.add(path)


def _spans(paths: Sequence[Path], reading: Reading) -> tuple[Span, ...]:
    """Parts of files, in order; hashing them releases the interpreter, so threads do it."""
    with ThreadPoolExecutor() as pool:
        many = pool.map(lambda path: spans(path, reading), paths)
        return tuple(span for found in many for span in found)


def _lone(source: Source) -> list[Source]:
    """A lone plain file and its last tenth, from the next line on, where there is one."""
    span = source.spans[0]
    path = Path(span.path)
    if path.suffix == ".gz":
        raise FileError(f"{path} is one packed document", fix="unpack it, or name validation files")
    size = path.stat().st_size
    with open_regular(path) as file:
        file.seek(size - size // 10)
        near = file.read(1 << 16)
    line = near.find(b"\n") + 1
    if not 0 < line < len(near):
        line = next((n for n, byte in enumerate(near) if byte & 0xC0 != 0x80), 0)
    at = size - size // 10 + line
    return [
        replace(source, spans=(span._replace(end=at),)),
        Source("held out", 0.0, (span._replace(start=at),)),
    ]


def hold_out(
    digests: Sequence[np.ndarray], held: Sequence[bool], *, share: float, size: int, seed: int
) -> list[np.ndarray]:
    """Which documents are held out: bool [document] for each source.

    Args:
        digests: hashes of the documents of each source: uint64 [document].
        held: whether all of a source is held out: then equal documents elsewhere are too;
            otherwise those with the least hashes are, `share` of them, at least one.
        share: of the documents; smaller where it would be more than `MOST` of `size`.
        size: bytes of all files; 0 where the share was asked for.
        seed: another one chooses others.

    Raises:
        RequestError: nothing is left to train on.
    """
    if any(held):
        away = np.concatenate([d for d, all_ in zip(digests, held, strict=True) if all_])
        marks = [np.ones(len(d), bool) if all_ else np.isin(d, away)
                 for d, all_ in zip(digests, held, strict=True)]  # fmt: skip
    else:
        key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        ranks = [mixed(d ^ key) for d in digests]
        whole = np.concatenate(ranks)
        share = min(share, MOST / max(size, 1))
        count = max(1, int(len(whole) * share))
        least = np.partition(whole, count - 1)[count - 1] if len(whole) else 0
        marks = [rank <= least for rank in ranks]
    for index, mark in enumerate(marks):
        if not held[index] and len(mark) and mark.all():
            fix = "give more documents, or name validation files"
            raise RequestError("every document of a group is held out", fix=fix)
    return marks
