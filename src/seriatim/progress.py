"""How a training run looks on a terminal: what it has done and has left, its loss and its scores.

Below, a few lines that change; above them, scores, samples and notes as they come. Where stderr is
no terminal there are plain lines instead.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from seriatim.train.report import Event, Sample, Saved, Score, Started, describe, to_stderr
from seriatim.train.report import Progress as Step

STYLES = {Score: "bold", Sample: "italic"}


class Bar:
    """A `report` for `train`.

    Args:
        console: where to draw, if it is a terminal; default: stderr.
        clock: seconds, from any origin.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._waiting = Spinner("dots", "preparing")
        self._begun = self._stepped = 0.0
        self._started: Started | None = None
        self._step: Step | None = None
        self._score: Score | None = None
        self._saved: Saved | None = None
        self._loss, self._mean = Smoothed(2), math.nan
        self._live = Live(get_renderable=self._screen, console=self._console)

    def __enter__(self) -> Self:
        if self._drawn:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._live.transient = self._started is None  # a run that never began leaves no bar
        self._live.stop()

    def __call__(self, event: Event) -> None:
        if not self._drawn:
            to_stderr(event)
            return
        self._take(event)
        if not isinstance(event, Step | Saved):  # these are below
            self._console.print(Text(describe(event), STYLES.get(type(event), "")))

    def _take(self, event: Event) -> None:
        match event:
            case Started():
                self._started, self._begun = event, self._clock()
                self._loss = Smoothed(max(2, min(30, event.steps / 20)))
            case Step():
                self._step, self._stepped = event, self._clock()
                self._mean = self._loss(event.loss)
            case Score():
                self._score = event
            case Saved():
                self._saved = event

    def _screen(self) -> RenderableType:
        if self._started is None:
            return self._waiting
        done, steps = self._step.step if self._step else self._started.first, self._started.steps
        top = Table.grid(padding=(0, 1), expand=True)
        top.add_column(ratio=1)
        top.add_column(no_wrap=True)
        top.add_row(ProgressBar(total=steps, completed=done), f"{100 * done / steps:.0f}%")
        facts = [[f"step {done:,}/{steps:,}", *self._times()], self._numbers(), self._results()]
        lines = (line for group in facts for line in _filled(group, self._console.width))
        return Group(top, *map(Text, lines))

    def _times(self) -> Iterator[str]:
        now = self._clock()
        yield f"{_clock_time(now - self._begun)} passed"
        if step := self._step:
            yield f"{_clock_time(max(0.0, step.eta_s - (now - self._stepped)))} left"
            yield f"{step.tokens_per_s:,.0f} ids/s"

    def _numbers(self) -> Iterator[str]:
        if step := self._step:
            yield f"loss {self._mean:.4f}"
            yield f"norm {step.norm:.2f}"
            yield f"rate {step.rate:.3f}"

    def _results(self) -> Iterator[str]:
        if score := self._score:
            yield f"{score} at {score.step:,}"
        if self._saved:
            yield f"saved at {self._saved.step:,}"


class Smoothed:
    """A running mean in which about the last `span` values count.

    Example:
        >>> mean = Smoothed(2)
        >>> [round(mean(value), 2) for value in (4.0, 4.0, 1.0)]
        [4.0, 4.0, 2.29]
    """

    def __init__(self, span: float) -> None:
        self._fade = 1 - 1 / span
        self._sum = self._weight = 0.0

    def __call__(self, value: float) -> float:
        """The mean with `value` in it; one that is not finite is left out."""
        if math.isfinite(value):
            self._sum = self._fade * self._sum + value
            self._weight = self._fade * self._weight + 1
        return self._sum / self._weight if self._weight else math.nan


def _filled(facts: Iterable[str], width: int) -> list[str]:
    """Facts side by side, on as many lines as it takes that none is parted if it fits alone."""
    lines: list[str] = []
    for fact in facts:
        if lines and len(lines[-1]) + len(f" · {fact}") <= width:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    return lines


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
