"""An answer's text told apart: what was thought, what was said, which tools were called."""

from collections.abc import Sequence
from typing import NamedTuple

from seriatim.chatting import Turn
from seriatim.serve.tools import Call, Calling


class Heard(NamedTuple):
    """What a text adds to each."""

    thought: str
    said: str
    calls: Sequence[Call]


class Hearing:
    """An answer as it comes.

    Args:
        turn: whose answer it is.
        reading: how its calls are written; None: there are none.
    """

    def __init__(self, turn: Turn, reading: Calling | None) -> None:
        self._splitter = turn.splitter()
        self._caller = reading.caller() if reading else None

    def feed(self, text: str) -> Heard:
        """What `text` adds."""
        thought, said = self._splitter.feed(text)
        return Heard(thought, *(self._caller.feed(said) if self._caller else (said, [])))

    def finish(self) -> Heard:
        """What was held back, for nothing more will come."""
        thought, said = self._splitter.finish()
        if self._caller is None:
            return Heard(thought, said, [])
        (said, calls), (rest, more) = self._caller.feed(said), self._caller.finish()
        return Heard(thought, said + rest, [*calls, *more])


def heard(turn: Turn, reading: Calling | None, text: str) -> Heard:
    """A whole answer."""
    hearing = Hearing(turn, reading)
    first, last = hearing.feed(text), hearing.finish()
    return Heard(first.thought + last.thought, first.said + last.said, [*first.calls, *last.calls])
