"""One sequence on its way through the engine: its ids, how many are computed, and how it ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import numpy as np

from seriatim.engine.cache import Block
from seriatim.engine.options import Options
from seriatim.engine.sampling import Draw
from seriatim.kernels.ops import BLOCK

Rows = Callable[[int, np.ndarray], None]  # (position of the first row, logits [R, V])


class Guide(Protocol):
    """Which ids may come next: a pure function of the ids generated so far, whatever it keeps."""

    def mask(self, ids: Sequence[int], /) -> np.ndarray | None:
        """uint32 words: bit i % 32 of word i // 32 says whether id i may follow; None: any may."""
        ...

    def complete(self, ids: Sequence[int], /) -> bool:
        """Whether `ids` is whole and nothing can follow: the request ends there."""
        ...


class Speculator(Protocol):
    """Guesses which ids come next. It decides how fast they come, and never which.

    A class that inherits from it needs `propose` alone.
    """

    def propose(
        self, asked: Sequence[tuple["Request", int]], tokens: int, /
    ) -> Sequence[Sequence[int]]:
        """For each request what may follow its `ids`, or nothing.

        Args:
            asked: each with the most ids that are of use; what is more is left out.
            tokens: how many the step computes without drafts.
        """
        ...

    def ran(self, tokens: int, seconds: float, /) -> None:
        """The step that followed `propose` computed so many tokens in so much time."""

    def release(self, request: "Request", /) -> None:
        """The request has ended: nothing more is asked for it."""


class Watch(Protocol):
    """Text the engine does not see: told each id, it says whether a stop string is complete."""

    def feed(self, id: int, /) -> tuple[str, str | None]: ...


@dataclass
class Usage:
    """Counts of ids, and milliseconds by phase: waiting, reading the prompt, generating."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    steps: int = 0  # in which they were generated
    drafted: int = 0
    accepted: int = 0
    saved_ms: float = 0.0  # by guesses: estimated, from what a step without them takes
    missed: str = ""  # why not more of the prompt was cached
    undrafted: str = ""  # why its speculator was switched off
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def gain(self) -> float:
        """Ids per step: 1 without speculation."""
        return self.generated / self.steps if self.steps else 1.0


def _nobody() -> None:
    """Waits for it."""


@dataclass(eq=False)
class Request:
    """One sequence. `ids` grows; each step some of them are computed until `computed` catches up.

    Attributes:
        prompt: how many ids were given.
        ids: the prompt and what was sampled, the end id excluded.
        draws: one per sampled id, with log-probabilities; `ending` is the end id's.
        guessed: the places in `draws` of drafts that held.
        rows_from: the first position whose logits `rows` is given.
        guides: all of them must allow an id.
        ends: ids that end it beside the model's own.
        speculator: guesses what follows; None: nothing does.
        stop: the end id or stop string met, "complete" (nothing can follow by a guide),
            "loop", "max_tokens", "context" or "abort"; None while it runs.
        reason: "stop", "length" or "abort": a stop string may read "context" too.
        error: why it failed, if it did.
    """

    number: int  # arrival order
    ids: list[int]
    options: Options
    sample: int = 0
    watch: Watch | None = None
    rows: Rows | None = None  # is given the logits of the prompt's positions
    rows_from: int = 0
    guides: tuple[Guide, ...] = ()
    speculator: Speculator | None = None
    ends: frozenset[int] = frozenset()
    home: object = None  # the scheduler of the engine that took it
    wake: Callable[[], object] = _nobody  # told after each step of a thread that moved it
    computed: int = 0
    started: bool = False  # it has run once, whether or not it does now
    blocks: list[Block] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    guessed: set[int] = field(default_factory=set)
    pieces: list[str] = field(default_factory=list)  # what `watch` released, in order
    ending: Draw | None = None
    stop: int | str | None = None
    reason: str = "stop"
    error: Exception | None = None
    usage: Usage = field(default_factory=Usage)
    prompt: int = field(init=False)
    since: float = field(default_factory=perf_counter)

    def __post_init__(self) -> None:
        self.prompt = self.usage.prompt = len(self.ids)

    @property
    def done(self) -> bool:
        return self.stop is not None or self.error is not None

    @property
    def pending(self) -> int:
        """How many ids are not yet computed."""
        return len(self.ids) - self.computed

    @property
    def is_plain(self) -> bool:
        """Whether it needs one more id computed, of which it has the block, and no more logits."""
        count = self.computed
        return (
            len(self.ids) - count == 1
            and count < BLOCK * len(self.blocks)
            and (self.rows is None or count >= self.prompt)
        )

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt

    @property
    def reads_prompt(self) -> bool:
        """Whether the next step still needs the logits of prompt positions."""
        return self.rows is not None and self.computed < self.prompt

    @property
    def unread(self) -> int:
        """How many ids come before the first whose logits `rows` is given."""
        return max(0, self.rows_from - self.computed)

    @property
    def answer(self) -> list[int]:
        """The ids that were sampled."""
        return self.ids[self.prompt :]

    @property
    def urgency(self) -> tuple[int, int]:
        """Sorts the most urgent first: priority, then arrival."""
        return (-self.options.priority, self.number)

    def release(self) -> None:
        """Nothing more is asked of its speculator."""
        speculator, self.speculator = self.speculator, None
        if speculator is not None:
            try:
                speculator.release(self)
            except Exception as error:  # its fault, not the request's
                self.usage.undrafted = f"{type(error).__name__}: {error}"

    def end(self, stop: int | str, reason: str = "stop") -> None:
        """Nothing more comes; who holds its blocks gives them back."""
        self.stop, self.reason = stop, reason

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = perf_counter()
        vars(self.usage)[f"{phase}_ms"] += 1000 * (now - self.since)
        self.since = now
