"""Text that knows which of its characters are a template's own and which a caller's.

A plain `str` is the template's own. The operations here keep the origin of every character; what an
operation cannot attribute is the caller's, so nothing of a caller's ever passes for a template's.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

OWN, GIVEN, FINAL = b"t", b"g", b"f"  # of the template; of a message; of the message to continue


class Traced(str):
    """A `str` and the origin of each of its characters: bytes [len(self)]."""

    __slots__ = ("_origin",)
    _origin: bytes

    def __new__(cls, text: str, origin: bytes) -> "Traced":
        """`origin` is one byte for each character, or one for all."""
        made = super().__new__(cls, text)
        made._origin = origin * len(text) if len(origin) == 1 else origin
        return made

    def __str__(self) -> str:
        return self  # generated code calls `str` on all that it puts out

    def __getitem__(self, key: SupportsIndex | slice) -> "Traced":
        text = super().__getitem__(key)
        if isinstance(key, slice):
            return Traced(text, self._origin[key])
        return Traced(text, self._origin[key : key.__index__() + 1 or None])

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))


def origin(text: str) -> bytes:
    """Where each character comes from."""
    return text._origin if isinstance(text, Traced) else OWN * len(text)


def runs(text: str, of: bytes) -> list[str]:
    """The parts of a text that are all of one origin."""
    found = re.finditer(re.escape(of) + b"+", origin(text))
    return [str.__getitem__(text, slice(*run.span())) for run in found]


def joined(parts: Iterable[str], between: str = "") -> str:
    """The parts in one, `between` each two."""
    parts = list(parts)
    text = str.join(between, parts)
    if not any(isinstance(part, Traced) for part in (between, *parts)):
        return text
    return Traced(text, origin(between).join(map(origin, parts)))


def repeated(text: str, count: int) -> str:
    """The text `count` times."""
    made = str.__mul__(text, count)
    return Traced(made, origin(text) * count) if isinstance(text, Traced) else made


def _lstrip(text: str, chars: str | None = None) -> str:
    return text[len(text) - len(str.lstrip(text, chars)) :]


def _rstrip(text: str, chars: str | None = None) -> str:
    return text[: len(str.rstrip(text, chars))]


def _strip(text: str, chars: str | None = None) -> str:
    return _lstrip(_rstrip(text, chars), chars)


def _removeprefix(text: str, prefix: str) -> str:
    return text[len(prefix) :] if text.startswith(prefix) else text


def _removesuffix(text: str, suffix: str) -> str:
    return text[: len(text) - len(suffix)] if text.endswith(suffix) else text


def _located(text: str, pieces: Sequence[str], gap: int = 0) -> list[str]:
    """Pieces that lie in `text` in this order, `gap` apart or what separates them being in none."""
    found, at = [], 0
    for piece in pieces:
        at = str.index(text, piece, at)
        found.append(text[at : at + len(piece)])
        at += len(piece) + gap
    return found


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _located(text, str.split(text, sep, maxsplit), len(sep or ""))


def _rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _located(text, str.rsplit(text, sep, maxsplit), len(sep or ""))


def _splitlines(text: str, keepends: bool = False) -> list[str]:
    return _located(text, str.splitlines(text, keepends))


def _partition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_located(text, str.partition(text, sep)))


def _rpartition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_located(text, str.rpartition(text, sep)))


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    return joined(_split(text, old, count), new)


def _join(text: str, parts: Iterable[str]) -> str:
    return joined(parts, text)


def _same_length(name: str) -> Callable[[str], str]:
    """Of a method that changes letters; where their number changes, all become the caller's."""

    def change(text: str) -> str:
        made = getattr(str, name)(text)
        if not isinstance(text, Traced):
            return made
        return Traced(made, origin(text) if len(made) == len(text) else GIVEN)

    return change


def _plain(name: str) -> Callable[..., Any]:
    return lambda text, *args: getattr(str, name)(text, *args)


_LETTERS = "upper lower title capitalize swapcase casefold"
_FACTS = """startswith endswith find rfind index rindex count isalpha isalnum isascii isdecimal
isdigit isidentifier islower isnumeric isprintable isspace istitle isupper"""

# The methods of strings that templates have; no others: `center` makes much text from little.
METHODS: dict[str, Callable[..., Any]] = {
    "strip": _strip,
    "lstrip": _lstrip,
    "rstrip": _rstrip,
    "removeprefix": _removeprefix,
    "removesuffix": _removesuffix,
    "split": _split,
    "rsplit": _rsplit,
    "splitlines": _splitlines,
    "partition": _partition,
    "rpartition": _rpartition,
    "replace": _replace,
    "join": _join,
    **{name: _same_length(name) for name in _LETTERS.split()},
    **{name: _plain(name) for name in _FACTS.split()},
}
