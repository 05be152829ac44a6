"""Tasks: what is asked of a model, and what is right. Read from files; no model here.

A line of .jsonl (or .jsonl.gz) is an item, and its keys say which kind it is; all lines of a file
are of one kind. `lines` makes items of source files: one line of a file is the gap.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from seriatim.codecs._files import read_text
from seriatim.errors import RequestError, shown
from seriatim.files.jsonfile import LIMIT, parse
from seriatim.files.regular import listed, open_regular, refuse
from seriatim.search.answers import final_answer

LINES = 100  # gaps made of files, where no number is given


@dataclass(frozen=True)
class Exact:
    """A prompt, and the text that must follow it."""

    place: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Gap:
    """What stands on both sides of a gap, and the text that was in it."""

    place: str
    prefix: str
    suffix: str
    answer: str


@dataclass(frozen=True)
class Choice:
    """A prompt, and texts of which one, by its index from 0, follows it."""

    place: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Problem:
    """A question, its solution, and the final answer that `final_answer` reads in it."""

    place: str
    question: str
    solution: str
    answer: str


Item = Exact | Gap | Choice | Problem


@dataclass(frozen=True)
class Task:
    """Items of one kind.

    Attributes:
        name: the file's.
        kind: "exact", "infill", "choice" or "answer"; or "text", of which `items` are paths.
        items: what is asked.
        unused: fields of the records that mean nothing here.
        fitted: an item's sides are, by definition, as much as a context holds.
    """

    name: str
    kind: str
    items: tuple[Any, ...] = field(repr=False)
    unused: tuple[str, ...] = ()
    fitted: bool = False


def text(paths: Sequence[Path]) -> Task:
    """Files of the codec's kind, to be scored."""
    return Task("text", "text", tuple(paths))


def read(path: Path, *, items: int | None = None, seed: int = 0) -> Task:
    """The task in a file of JSON lines.

    Args:
        path: .jsonl, or gzipped .jsonl.gz; the keys of its records are those of `FORMS`.
        items: how many of them are drawn; default: all.
        seed: what they are drawn by.

    Raises:
        FileError: a record that is none, with its line; records of several kinds; no record.
        RequestError: more items than there are.
    """
    kinds: dict[str, str] = {}  # and where the first of each is
    found: list[Item] = []
    unused: set[str] = set()
    for place, record in _records(path):
        kind, item = _made(path, place, record)
        kinds.setdefault(kind, place)
        found.append(item)
        unused |= record.keys() - KNOWN
    if not found:
        raise refuse(path, "holds no items", expected="a JSON object on each line")
    kind, *others = kinds
    if others:
        seen = f"is of kind {others[0]}, and {kinds[kind]} of kind {kind}"
        raise refuse(f"{path} {kinds[others[0]]}", seen, expected="one kind in a file")
    return Task(str(path), kind, _drawn(found, items, seed, path), tuple(sorted(unused)))


def _made(path: Path, place: str, record: dict[str, Any]) -> tuple[str, Item]:
    """The item that a record is, and its kind."""
    form = FORMS.get(frozenset(record) & KNOWN)
    if form is None:
        raise refuse(
            f"{path} {place}",
            f"has the fields {listed(sorted(record)) or 'none'}",
            expected=" or ".join("{" + ", ".join(keys) + "}" for keys in _FORMS),
        )
    try:
        return form[0], form[1](place, record)
    except ValueError as error:
        raise refuse(f"{path} {place}", str(error)) from error


def lines(paths: Sequence[Path], *, items: int | None = None, seed: int = 0) -> Task:
    """Gaps of one line each in source files: what is before and after it is given.

    A line is what stands between newlines, without the space at its end. Blank ones are no items,
    nor is one with nothing before it: left to right there is nothing to continue.

    Args:
        paths: UTF-8 files.
        items: how many lines are drawn from all of them; default: 100, or all if there are fewer.
        seed: what they are drawn by: the lines are those of the smallest SHA-256 of seed and index.

    Raises:
        FileError: a file that cannot be read as UTF-8 text.
        RequestError: more items than there are lines that are not blank.
    """
    texts = [read_text(path) for path in paths]
    where = [(i, *line) for i, text in enumerate(texts) for line in _lines(text)]
    name = f"lines of {paths[0] if len(paths) == 1 else f'{len(paths)} files'}"
    if not where:
        raise RequestError(f"{name}: none to take out", expected="at least one after the first")
    wanted = min(LINES, len(where)) if items is None else items
    gaps = [
        Gap(f"{paths[i]}:{number}", texts[i][:start], texts[i][end:], texts[i][start:end])
        for i, number, start, end in _drawn(where, wanted, seed, name)
    ]
    return Task(name, "infill", tuple(gaps), fitted=True)


def _lines(text: str) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each line that is not blank and has something before it."""
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        if at and (bare := line.rstrip()):
            yield number, at, at + len(bare)
        at += len(line) + 1


def _drawn(found: Sequence[Any], items: int | None, seed: int, name: object) -> tuple[Any, ...]:
    """So many of them, in their order; which ones depends on the seed and their number alone."""
    if items is None:
        return tuple(found)
    if not 1 <= items <= len(found):
        raise RequestError(f"{items} items of {name}", expected=f"1 to {len(found)}")
    ranked = sorted(range(len(found)), key=lambda i: sha256(f"{seed}:{i}".encode()).digest())
    return tuple(found[i] for i in sorted(ranked[:items]))


# ---- records -----------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_content(path).split(b"\n"), 1):
        if line.strip():
            record = parse(line, f"{path} line {number}")
            if not isinstance(record, dict):
                seen = f"holds a JSON {type(record).__name__}"
                raise refuse(f"{path} line {number}", seen, expected="a JSON object")
            yield f"line {number}", record


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name says so."""
    try:
        with open_regular(path) as file:
            source = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            data = source.read(LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise refuse(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > LIMIT:
        raise refuse(path, f"has more than {LIMIT} bytes", expected="a smaller file")
    return data


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(value := record[key], str):
        raise ValueError(f"has {key} {shown(value)}, which is no text")
    return value


def _answer(record: dict[str, Any], key: str) -> str:
    if not (value := _text(record, key)).strip():
        raise ValueError(f"has {key} {shown(value)}, which is blank")
    return value


def _exact(place: str, record: dict[str, Any]) -> Exact:
    return Exact(place, _text(record, "prompt"), _answer(record, "answer"))


def _gap(before: str, answer: str) -> Callable[[str, dict[str, Any]], Gap]:
    def make(place: str, record: dict[str, Any]) -> Gap:
        sides = _text(record, before), _text(record, "suffix")
        return Gap(place, *sides, _answer(record, answer))

    return make


def _choice(place: str, record: dict[str, Any]) -> Choice:
    choices, answer = record["choices"], record["answer"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"has choices {shown(choices)}, which are no list of at least two texts")
    if bad := [c for c in choices if not isinstance(c, str) or not c]:
        raise ValueError(f"has the choice {shown(bad[0])}, which is no text to score")
    if len(set(choices)) < len(choices):
        raise ValueError(f"has choices {shown(choices)}, of which two are equal")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f"has answer {shown(answer)}, which is no index from 0 to {len(choices) - 1}"
        )
    return Choice(place, _text(record, "prompt"), tuple(choices), answer)


def _problem(place: str, record: dict[str, Any]) -> Problem:
    solution = _text(record, "answer")
    if (said := final_answer(solution)) is None:
        raise ValueError("has an answer without #### and without a number")
    return Problem(place, _text(record, "question"), solution, said)


# The keys of a record, and what they make; the third is that of HumanEval-Infilling.
_FORMS: dict[tuple[str, ...], tuple[str, Callable[[str, dict[str, Any]], Item]]] = {
    ("prompt", "answer"): ("exact", _exact),
    ("prefix", "suffix", "answer"): ("infill", _gap("prefix", "answer")),
    ("prompt", "suffix", "canonical_solution"): ("infill", _gap("prompt", "canonical_solution")),
    ("prompt", "choices", "answer"): ("choice", _choice),
    ("question", "answer"): ("answer", _problem),
}
FORMS = {frozenset(keys): form for keys, form in _FORMS.items()}
KNOWN = frozenset().union(*FORMS)  # a record has those of one form, and others that mean nothing
