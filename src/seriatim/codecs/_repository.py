"""Other files of a repository, shown before a gap, within a budget of ids. Part of `code`."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import PurePath
from re import findall

# What begins a comment, by the ends of names; elsewhere "#".
_COMMENTS = {
    "//": "c cc cpp cs cu cxx dart go h hpp java js jsx kt m mjs php proto rs scala swift ts tsx v",
    "--": "ada elm hs lua sql vhd",
    ";": "asm clj el ini lisp scm",
    "%": "erl tex",
}
_COMMENT = {f".{end}": mark for mark, ends in _COMMENTS.items() for end in ends.split()}


@dataclass(frozen=True)
class Repository:
    """What surrounds the file with a gap.

    Attributes:
        files: texts by path, in the order in which they are shown: the last stands nearest.
        file: the path of the file with the gap; "" if it is not said.
        name: the repository's; "" if it is not said.
        budget: how many ids `files` may take, names and marks included; None: as many as they need.
    """

    files: dict[str, str] = field(default_factory=dict)
    file: str = ""
    name: str = ""
    budget: int | None = None


@dataclass(frozen=True)
class Shown:
    """How much of a file a prompt shows.

    Attributes:
        path: its name.
        lines: so many of its first lines, of `total`.
        ids: what they take, the name and its mark included; 0 where nothing is shown.
    """

    path: str
    lines: int
    total: int
    ids: int


def comment(path: str) -> str:
    """A line that names a file, in the language that its name says."""
    return f"{_COMMENT.get(PurePath(path).suffix, '#')} {path}\n"


def fitted(
    repository: Repository, cost: Callable[[str, str], int]
) -> list[tuple[str, str | None, int, int]]:
    """Of each file its path, the text that fits the budget, and how many lines of how many it is.

    Whole files come first, the last (nearest) before the others. What is then left goes, in the
    same order, to the beginnings of those that did not fit, cut at the end of a line. The text is
    None where not even one line fits.

    Args:
        repository: the files and the budget.
        cost: how many ids a path and a text take.
    """
    left: float = inf if repository.budget is None else repository.budget
    lines = {path: findall(r".*\n|.+", text) for path, text in repository.files.items()}
    kept: dict[str, int] = {}
    for path in reversed(lines):
        if (ids := cost(path, repository.files[path])) <= left:
            kept[path], left = len(lines[path]), left - ids
    for path in reversed([path for path in lines if path not in kept]):
        if count := _head(lines[path], left, lambda text, path=path: cost(path, text)):
            kept[path], left = count, left - cost(path, "".join(lines[path][:count]))
    return [
        (path, "".join(own[: kept[path]]) if path in kept else None, kept.get(path, 0), len(own))
        for path, own in lines.items()
    ]


def _head(lines: list[str], left: float, cost: Callable[[str], int]) -> int:
    """How many of the first lines fit; all of them do not."""
    return bisect_right(range(1, len(lines)), left, key=lambda n: cost("".join(lines[:n])))
