"""What a training run tells its caller while it goes: frozen records, passed to `report`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seriatim.files.regular import listed
from seriatim.train.dial import Dial


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    dial: Dial
    parameters: int
    steps: int
    first: int  # the step that runs next: above 0 after a resume
    documents: int
    ids: int  # to train on
    held_out: tuple[str, ...]  # files of validation documents
    unit: str
    padding: float = 0.0  # share of the rows of an epoch that nothing fills


@dataclass(frozen=True)
class Progress:
    """After a step."""

    step: int  # steps done
    steps: int
    loss: float  # nats per id of this step's batch
    norm: float  # of the whole gradient, before clipping
    rate: float  # share of the full learning rate
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True)
class Score:
    """Held-out score; `error` is one standard error over windows, None where there is but one."""

    step: int
    bits_per_unit: float
    error: float | None
    unit: str
    nats_per_id: float
    ids: int  # scored

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.4f}"
        return f"{self.bits_per_unit:.4f}{error} bits per {self.unit}"


@dataclass(frozen=True)
class Sample:
    """What the model says at this step."""

    step: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint, whole and on disk."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Note:
    """Something the reader of the run should know."""

    text: str


Event = Started | Progress | Score | Sample | Saved | Note
Report = Callable[[Event], None]


def to_stderr(event: Event) -> None:
    """One line per record, progress every tenth step: what a run without a `report` prints."""
    if line := describe(event):
        print(line, file=sys.stderr, flush=True)


def describe(event: Event) -> str:
    """The record as a line for people; "" for most steps."""
    match event:
        case Started():
            shape = ", ".join(f"{name} {value}" for name, value in vars(event.dial).items())
            full = f"rows {1 - event.padding:.1%} full"
            return (
                f"{event.parameters:,} parameters: {shape}\n"
                f"{event.documents:,} documents, {event.ids:,} ids, {full}; "
                f"held out: {listed(event.held_out, 8)}; step {event.first} of {event.steps}"
            )
        case Progress():
            ends = event.step % 10 == 0 or event.step == event.steps
            return ends * (
                f"step {event.step}/{event.steps}  loss {event.loss:.4f}  norm {event.norm:.2f}  "
                f"rate {event.rate:.3f}  {event.tokens_per_s:,.0f} ids/s  {event.eta_s:,.0f} s left"
            )
        case Score():
            return f"step {event.step}: {event} on {event.ids:,} held-out ids"
        case Sample():
            return f"step {event.step}: {event.text!r}"
        case Saved():
            return f"saved {event.folder}"
        case Note():
            return event.text
