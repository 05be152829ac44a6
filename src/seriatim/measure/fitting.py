"""Prompts that fit the context with room for an answer; what is cut is said.

What is too long is refused unless a cut was asked for: then a prompt loses its beginning, and a gap
what is farthest from it, down to equally many characters on either side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from seriatim import infilling
from seriatim.api import Model
from seriatim.errors import RequestError
from seriatim.measure.tasks import Gap
from seriatim.requesting import Extras


class Prompt(NamedTuple):
    """The ids to continue, what they say, and whether something was left out."""

    ids: list[int]
    shown: Any
    cut: bool


def prompt(model: Model, text: str, room: int, *, cut: bool) -> Prompt:
    """The ids of a prompt.

    Args:
        model: whose context it is.
        text: the prompt.
        room: ids that must fit after it.
        cut: whether it may lose its beginning.

    Raises:
        RequestError: it is too long, and may not be cut or would have nothing left.
    """
    end = _characters(model, lambda n: model.prompt_ids(_last(text, n)), len(text), room, cut)
    return Prompt(model.prompt_ids(_last(text, end)), _last(text, end), end < len(text))


def gap(
    model: Model, item: Gap, room: int, *, order: str | None, cut: bool
) -> tuple[Prompt, Extras]:
    """The ids that ask for a gap, and what ends it.

    Raises:
        RequestError: as `prompt`, or the model cannot fill gaps.
    """

    def ask(n: int) -> tuple[list[int], Extras]:
        sides = _last(item.prefix, n), item.suffix[:n]
        found = infilling.infill(model, None, *sides, order)
        assert found is not None  # sides are given
        return found

    longest = max(len(item.prefix), len(item.suffix))
    end = _characters(model, lambda n: ask(n)[0], longest, room, cut)
    ids, extras = ask(end)
    return Prompt(ids, [_last(item.prefix, end), item.suffix[:end]], end < longest), extras


def _last(text: str, count: int) -> str:
    return text[max(0, len(text) - count) :]


def _characters(
    model: Model, ask: Callable[[int], list[int]], longest: int, room: int, cut: bool
) -> int:
    """The most characters whose ids leave room in the context."""
    count = len(ask(longest))
    if count + room <= model.context:
        return longest
    most = _most(lambda n: len(ask(n)) + room <= model.context, longest) if cut else 0
    if not most:
        raise RequestError(
            f"the prompt has {count} ids and its answer needs {room}",
            expected=f"at most {model.context} together, the context",
            fix="leave it out" if cut else "cut prompts that are too long (--cut)",
        )
    return most


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The most that fits, of 0 to `limit`, which does not; what is below it is taken to fit."""
    low, high = 0, 1
    while high < limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
