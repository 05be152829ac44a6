"""Every error seriatim raises on purpose: what was seen, what was expected, what to do.

One line, always: the command line prints `str(error)` and exits with `error.exit_code`.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class SeriatimError(Exception):
    """Something was refused or failed.

    Args:
        seen: what was found, with its name and value.
        expected: what would have been accepted.
        fix: what the reader can do about it.

    Example:
        >>> str(RequestError("top_p is 1.5", expected="a number in (0, 1]", fix="leave it out"))
        'top_p is 1.5; expected a number in (0, 1]; leave it out'
    """

    exit_code = 1

    def __init__(self, seen: str, *, expected: str = "", fix: str = "") -> None:
        self.seen, self.expected, self.fix = seen, expected, fix
        parts = [seen, expected and f"expected {expected}", fix]
        super().__init__(" ".join("; ".join(part for part in parts if part).split()))


class RequestError(SeriatimError, ValueError):
    """An option or a prompt that cannot be honoured as given."""

    exit_code = 2


class FileError(SeriatimError, ValueError):
    """A file or folder that is missing, damaged, hostile or of an unknown kind."""

    exit_code = 2


class ModelError(SeriatimError, ValueError):
    """A checkpoint that is readable but not one seriatim can run exactly."""

    exit_code = 2


class NumericError(SeriatimError, ArithmeticError):
    """Weights or logits that are not finite."""


class ResourceError(SeriatimError, MemoryError):
    """Not enough memory, cache blocks or disk for what was asked."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a hint; or all of them, the ten nearest of more than thirty.

    Example:
        >>> did_you_mean("max_token", ["max_tokens", "seed"])
        'did you mean max_tokens?'
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    if len(known) <= 30:
        return f"known: {', '.join(known)}"
    return f"nearest of {len(known)}: {', '.join(get_close_matches(name, known, 10, cutoff=0.0))}"


def _begun(value: object, room: Iterator[int]) -> object:
    """As much of JSON as its first characters need: the `repr` of 16 MB would take a second."""
    if type(value) is str:
        return value[:80]
    if type(value) is list:
        return [_begun(item, room) for item, _ in zip(value, room, strict=False)]
    if type(value) is dict:
        pairs = zip(value.items(), room, strict=False)
        return {_begun(key, room): _begun(item, room) for (key, item), _ in pairs}
    return value


def shown(value: object) -> str:
    """A value as a message shows it: its `repr`, cut to 80 characters.

    Example:
        >>> shown("hot"), shown(10**5000)
        ("'hot'", 'an int that cannot be shown')
    """
    try:
        return f"{_begun(value, iter(range(80)))!r:.80}"
    except Exception:  # an int of over 4300 digits, or an object that does not want to be seen
        return f"an {type(value).__name__} that cannot be shown"
