"""The order in which the bars of a tune in ABC are played: repeats, endings and parts."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from seriatim.errors import RequestError

MOST_PARTS = 256
MOST_TURNS = 99
DOUBLE = ("||", "|]", "[|")


class Mark(NamedTuple):
    """Something between notes: a "bar" (its text), an "ending" (its numbers) or a "part"."""

    kind: str
    text: str


def played(events: Sequence[Any], order: str, most: int) -> list[Any]:
    """Events in the order in which they sound.

    Args:
        events: of any kind, marks among them.
        order: of the parts, such as AAB or (AB)2C3; "" is as they stand.
        most: events that there may be.

    Raises:
        RequestError: a part that is not there, or more events.
    """
    head, parts = _parts(events)
    if not order or not parts:
        return _repeated(events, most)
    found = _repeated(head, most)
    for name in _sequence(order):
        if name not in parts:
            raise RequestError(f"part {name} is to be played, but is not there")
        found += _repeated(parts[name], most)
        if len(found) > most:
            raise RequestError(f"played, the tune has more than {most:,} events")
    return found


def _parts(events: Sequence[Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """What comes before the first part, and the parts."""
    head: list[Any] = []
    parts: dict[str, list[Any]] = {}
    into = head
    for event in events:
        if isinstance(event, Mark) and event.kind == "part":
            into = parts.setdefault(event.text, [])
        else:
            into.append(event)
    return head, parts


def _sequence(order: str) -> list[str]:
    """The names in AAB or (AB)2C3.

    Example:
        >>> "".join(_sequence("(AB)2C3"))
        'ABABCCC'
    """
    group = re.compile(r"\(([A-Za-z0-9]*)\)(\d{0,2})")
    while match := group.search(order):
        many = match[1] * int(match[2] or 1)
        order = order[: match.start()] + many + order[match.end() :]
        if len(order) > MOST_PARTS:
            break
    names = [
        name
        for name, count in re.findall(r"([A-Za-z])(\d{0,2})", order)
        for _ in range(int(count or 1))
    ]
    if len(names) > MOST_PARTS or re.search(r"[^A-Za-z0-9]", order):
        raise RequestError(f"the parts are {order!r:.60}", expected="an order such as AABC2")
    return names


def _repeated(events: Sequence[Any], most: int) -> list[Any]:
    """Events with their repeats; one that begins nowhere begins after the last double bar."""
    found: list[Any] = []
    at, place = 0, Repeat()
    while at < len(events):
        event = events[at]
        at += 1
        if not isinstance(event, Mark):
            found.append(event)
        elif event.kind == "ending":
            place = place._replace(ending=True)
            if place.turn not in _numbers(event.text):
                at = _after_ending(events, at)
        else:
            found.append(event)
            if event.text.startswith(":") and place.turn < _turns(events, place.start, at):
                at, place = place.start, place._replace(turn=place.turn + 1, ending=False)
            else:
                place = place.after(event.text, at)
        if len(found) > most:
            raise RequestError(f"played, the tune has more than {most:,} events")
    return found


class Repeat(NamedTuple):
    """Where a repeat stands: its first event, whether `|:` marks it, its turn, within an ending."""

    start: int = 0
    marked: bool = False
    turn: int = 1
    ending: bool = False

    def after(self, bar: str, at: int) -> "Repeat":
        """Once a bar line that ends at `at` was passed."""
        if bar.endswith(":"):
            return Repeat(at, marked=True)
        over = self.ending and self.turn > 1
        if bar.startswith(":") or (bar in DOUBLE and (over or not self.marked)):
            return Repeat(at)
        return self


@lru_cache(256)  # they are asked for in each turn
def _numbers(text: str) -> frozenset[int]:
    """Of an ending such as 1,3 or 1-3."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first[:2]), int((last or first)[:2]) + 1))
    return frozenset(found)


def _after_ending(events: Sequence[Any], at: int) -> int:
    """Behind an ending that is passed over: at the next one, or after what closes this one."""
    for index in range(at, len(events)):
        event = events[index]
        if isinstance(event, Mark):
            if event.kind == "ending":
                return index
            if event.text.startswith(":") or event.text in DOUBLE:
                return index + 1
    return len(events)


def _turns(events: Sequence[Any], start: int, at: int) -> int:
    """How often the section from `start` to `at` is played: twice, or as its endings say."""
    found = {2}
    for event in events[start:at]:
        if isinstance(event, Mark) and event.kind == "ending":
            found |= _numbers(event.text)
    for _ in range(MOST_TURNS):  # endings that follow
        event = events[at] if at < len(events) else None
        if not isinstance(event, Mark) or event.kind != "ending":
            break
        found |= _numbers(event.text)
        at = _after_ending(events, at + 1)
    return max(found)
