"""One line of JSON on stderr for each request. Whoever reads it slowly, or not, stops nobody."""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty, Full, Queue
from threading import Thread
from typing import Any

WAITING = 10_000  # lines; more are dropped, and the next that is written says how many


class Log:
    """Writes lines in a thread of its own: a pipe that is full must not stop the event loop."""

    def __init__(self) -> None:
        self._lines: Queue[str] = Queue(WAITING)
        self._dropped = 0
        Thread(target=self._write, name="seriatim-log", daemon=True).start()

    def __call__(self, event: str, **facts: Any) -> None:
        """A line: when, what, and facts."""
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        said = {"time": when, "event": event, **facts}
        try:
            self._lines.put_nowait(
                json.dumps(said | ({"dropped": d} if (d := self._dropped) else {}))
            )
            self._dropped = 0
        except Full:
            self._dropped += 1

    def flush(self) -> None:
        """Write what waits, here and now."""
        with suppress(Empty):
            while True:
                _say(self._lines.get_nowait())

    def _write(self) -> None:
        while True:
            _say(self._lines.get())


def _say(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # full, closed, not there
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
