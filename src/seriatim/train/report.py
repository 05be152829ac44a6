"""What a training run tells its caller while it goes: frozen records, passed to `report`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seriatim.files.regular import listed
from seriatim.train.dial import Dial, Tuning


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    dial: Dial | Tuning
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
    out_of: int = 0  # held-out ids there are, where only some are scored

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.4f}"
        return f"{self.bits_per_unit:.4f}{error} bits per {self.unit}"

    @property
    def basis(self) -> str:
        """What the score rests on: "8,192 of 65,536 held-out ids".

        Example:
            >>> Score(9, 1.8, None, "byte", 1.2, ids=8192, out_of=65536).basis
            '8,192 of 65,536 held-out ids'
        """
        whole = f" of {self.out_of:,}" if self.out_of > self.ids else ""
        return f"{self.ids:,}{whole} held-out ids"

    @property
    def sentence(self) -> str:
        """The score, what its error is, and what it rests on.

        Example:
            >>> Score(9, 1.8, 0.02, "byte", 1.2, ids=8192).sentence
            '1.8000 ± 0.0200 bits per byte (± one standard error) on 8,192 held-out ids'
        """
        error = "of one window: no standard error" if self.error is None else "± one standard error"
        return f"{self} ({error}) on {self.basis}"


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


@dataclass(frozen=True)
class Forecast:
    """What the steps to come should take, said before the first of them."""

    flops: float
    seconds: float
    bytes: int  # peak memory
    tokens: int  # ids to train on in those steps

    def __str__(self) -> str:
        return f"{duration(self.seconds)} and {amount(self.bytes)} of memory"


@dataclass(frozen=True)
class Measured:
    """What they took, said after the last."""

    seconds: float
    bytes: int  # peak memory
    tokens: int  # ids trained on in those seconds
    forecast: Forecast | None = None

    def __str__(self) -> str:
        return f"{duration(self.seconds)} and {amount(self.bytes)} of memory"


Event = Started | Forecast | Progress | Score | Sample | Saved | Note | Measured
Report = Callable[[Event], None]


def to_stderr(event: Event) -> None:
    """One line per record, progress every tenth step: what a run without a `report` prints."""
    if line := describe(event):
        print(line, file=sys.stderr, flush=True)


def describe(event: Event) -> str:
    """The record in printable lines for people; "" for most steps."""
    return printable(_described(event))


def printable(text: str) -> str:
    """Text without what would move a cursor or ring a bell; lines stay lines, tabs tabs.

    Example:
        >>> printable("a\\x1b[2J\\nb")
        'a\\\\x1b[2J\\nb'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def indented(text: str) -> str:
    """Text as a code block of Markdown, so that nothing in it is taken for markup.

    Example:
        >>> indented("*a*\\nb")
        '    *a*\\n    b'
    """
    lines = printable(text.replace("\r\n", "\n")).split("\n")
    return "\n".join(f"    {line}".rstrip() for line in lines)


def counted(number: int, thing: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "record"), counted(1200, "record")
        ('1 record', '1,200 records')
    """
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(3.25), duration(500), duration(9000)
        ('3.2 s', '8.3 min', '2.5 h')
    """
    for name, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"


def amount(size: float) -> str:
    """A number of bytes for people.

    Example:
        >>> amount(812), amount(25_300_000)
        ('812 bytes', '25.3 MB')
    """
    for name, unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"


def _described(event: Event) -> str:
    match event:
        case Started():
            shape = ", ".join(f"{name} {value}" for name, value in vars(event.dial).items())
            full = f"rows {1 - event.padding:.1%} full"
            return (
                f"{event.parameters:,} parameters: {shape}\n"
                f"{counted(event.documents, 'document')}, {event.ids:,} ids, {full}; "
                f"held out: {listed(event.held_out, 8)}; step {event.first} of {event.steps}"
            )
        case Progress():
            ends = event.step % 10 == 0 or event.step == event.steps
            return ends * (
                f"step {event.step}/{event.steps}  loss {event.loss:.4f}  norm {event.norm:.2f}  "
                f"rate {event.rate:.3f}  {event.tokens_per_s:,.0f} ids/s  {event.eta_s:,.0f} s left"
            )
        case Score():
            nats = f"{event.nats_per_id:.4f} nats per id"
            return f"step {event.step}: {event} ({nats}) on {event.basis}"
        case Sample():
            return f"step {event.step}: {event.text!r}"
        case Saved():
            return f"saved {event.folder}"
        case Forecast():
            return f"to come: {event.tokens:,} ids, {event.flops:.2e} operations, {event}"
        case Measured():
            foreseen = f"; foreseen were {event.forecast}" if event.forecast else ""
            return f"took {event}{foreseen}"
        case Note():
            return event.text
