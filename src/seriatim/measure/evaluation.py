"""What an evaluation gives: values with their errors, an account of each item, differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seriatim.measure import statistics
from seriatim.measure.statistics import Difference
from seriatim.measure.tasks import Task
from seriatim.results import Score


@dataclass(frozen=True)
class Record:
    """What became of one item.

    Attributes:
        place: where it stands in its file; of `text`, the file.
        prompt: what was asked, after any cut; of a gap, both sides.
        given: the model's answer; of a choice, its index.
        expected: the right one.
        right: whether they are equal; None where nothing can be.
        nats: negative log-likelihood of what was generated or scored; of a choice, of each.
        text: where an answer is read in a text, that text.
    """

    place: str
    prompt: Any
    given: Any
    expected: Any
    right: bool | None
    nats: float | list[float]
    text: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One measure of one model on one task.

    Attributes:
        name: of the task; of `text`, of the file, or "all".
        measure: "bits per byte", "exact match", "infilling", "left to right", "choice", "choice per
            byte", "answer" or "vote of 16".
        unit: of the value: "bits per byte", or "share" of the items that are right.
        value: the measure; `error` is one standard error, None for too little to tell.
        items: how many it rests on.
        how: how answers were made and judged.
        cut: how many prompts were cut to the context.
        unfinished: how many answers were ended by `max_tokens` or a full context.
        records: one for each item.
        scores: of `text`, one for each file.
    """

    name: str
    measure: str
    unit: str
    value: float
    error: float | None
    items: int
    how: str
    cut: int = 0
    unfinished: int = 0
    records: list[Record] = field(default_factory=list, repr=False)
    scores: list[Score] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Pair:
    """Two evaluations of the same items, and the first's value less the second's.

    Attributes:
        models: the model of each: 0, or 1 for the one it is held against.
    """

    first: Evaluation
    second: Evaluation
    models: tuple[int, int]
    difference: Difference


@dataclass(frozen=True)
class Report:
    """All of a task: evaluations of the model, those of the other one, and differences."""

    task: Task
    evaluations: list[Evaluation]
    others: list[Evaluation]
    pairs: list[Pair]


Ready = Callable[[], list[Evaluation]]  # all is checked: what is left is the work


def shares(
    task: Task,
    measure: str,
    records: Sequence[Record],
    how: str,
    *,
    cut: int,
    unfinished: int = 0,
) -> Evaluation:
    """How many of the records are right."""
    value, error = statistics.share([bool(record.right) for record in records])
    return Evaluation(
        name=task.name,
        measure=measure,
        unit="share",
        value=value,
        error=error,
        items=len(records),
        how=how,
        cut=cut,
        unfinished=unfinished,
        records=list(records),
    )


def place(task: Task, item: Any) -> str:
    """Where an item stands, file and all."""
    return item.place if task.fitted else f"{task.name} {item.place}"
