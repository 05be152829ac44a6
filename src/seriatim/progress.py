"""How a training run looks on a terminal: one bar, and lines above it for scores and samples."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seriatim.train.report import Event, describe, to_stderr
from seriatim.train.report import Progress as Step


class Bar:
    """A `report` for `train`; where stderr is no terminal it prints plain lines instead."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("training", total=None, facts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._bar.disable:
            to_stderr(event)
        elif isinstance(event, Step):
            facts = f"loss {event.loss:.3f}, {event.tokens_per_s:,.0f} ids/s"
            self._bar.update(self._task, completed=event.step, total=event.steps, facts=facts)
        else:
            self._bar.console.print(describe(event), markup=False, highlight=False)
