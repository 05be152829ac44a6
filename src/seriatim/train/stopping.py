"""Ctrl-C and SIGTERM: a step is finished and saved before a run ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import NoReturn, Self

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns the first Ctrl-C, or SIGTERM, into `asked`, so that a step is finished and saved.

    A second one ends at once. Outside the main thread there is no signal to catch.
    """

    def __init__(self) -> None:
        self.asked = 0  # the signal

    def __enter__(self) -> Self:
        self._handling = handled(STOPS, self._note)
        self._handling.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handling.__exit__(None, None, None)
        if self.asked and kind is None:
            self.end()  # after the last step: nothing was lost

    def end(self) -> NoReturn:
        """Raise what was asked for.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: SIGTERM, with code 143.
        """
        end(self.asked or signal.SIGINT, None)  # which may have come to another rank

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            end(number, frame)
        self.asked = number


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Raise what a signal stands for in Python, as its handler."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def handled(
    numbers: tuple[signal.Signals, ...], act: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Meanwhile these signals do `act`, also where a shell had them ignored.

    Whoever listens to SIGTERM already, as ranks do to torchrun's, goes on doing so.
    """
    here = numbers if current_thread() is main_thread() else ()
    before = {n: b for n in here if (b := signal.getsignal(n)) is not None}  # None: not Python's
    if before.get(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, end):
        before.pop(signal.SIGTERM, None)
    for number in before:
        signal.signal(number, act)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
