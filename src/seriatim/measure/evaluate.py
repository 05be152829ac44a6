"""What a model does: bits per unit, exact match, infilling, choices and answers, with error bars.

    from seriatim.measure import evaluate, tasks
    report = evaluate.evaluate(model, tasks.read(Path("capitals.jsonl")))
    print(report.evaluations[0].value, report.evaluations[0].error)

Beside another model, and of two ways of one model, the items are paired. A kind of task is a
function in `scored` or `generated`: it checks everything, and gives what does the work.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

from seriatim.api import Model
from seriatim.errors import RequestError, did_you_mean
from seriatim.measure import score, statistics
from seriatim.measure.evaluation import Evaluation, Pair, Ready, Report
from seriatim.measure.generated import answer, exact, infill
from seriatim.measure.scored import choice, text
from seriatim.measure.tasks import Task
from seriatim.requesting import codec_of

KINDS: dict[str, Callable[..., Ready]] = {
    k.__name__: k for k in (text, exact, infill, choice, answer)
}
OPTIONS = {name: [*signature(kind).parameters][2:] for name, kind in KINDS.items()}


def evaluate(model: Model, task: Task, *, against: Model | None = None, **options: Any) -> Report:
    """What a model makes of a task, and what another makes of the very same items.

    Args:
        model: whose evaluations they are.
        task: from `tasks.read`, `tasks.lines` or `tasks.text`.
        against: another model, or the same one loaded otherwise.
        options: those of the kind of task: `scored.text`, `scored.choice`, `generated.exact`,
            `generated.infill` or `generated.answer`.

    Raises:
        RequestError: before any work: an option that this kind has not, what a model cannot do, or
            a prompt that is too long and may not be cut.

    Example:
        >>> import seriatim
        >>> from seriatim.measure.tasks import Exact, Task
        >>> model = seriatim.load("tales", threads=1)
        >>> task = Task("one", "exact", (Exact("line 1", "Once upon a", " time"),))
        >>> report = evaluate(model, task, stop=[","])
        >>> report.evaluations[0].items, report.evaluations[0].unit
        (1, 'share')
    """
    for name in options:
        if name not in OPTIONS[task.kind]:
            fix = did_you_mean(name, OPTIONS[task.kind]) if OPTIONS[task.kind] else "leave it out"
            raise RequestError(f"{name} means nothing for {task.kind} tasks", fix=fix)
    models = [model] if against is None else [model, against]
    ready = [KINDS[task.kind](each, task, **options) for each in models]
    found = [work() for work in ready]
    others = found[1] if len(found) > 1 else []
    pairs = [_pair(model, a, b, (0, 1)) for a, b in zip(found[0], others, strict=bool(others))]
    if task.kind == "infill":
        pairs += [_pair(model, filled, plain, (i, i)) for i, (filled, plain) in enumerate(found)]
    return Report(task, found[0], others, pairs)


def _pair(model: Model, a: Evaluation, b: Evaluation, models: tuple[int, int]) -> Pair:
    if a.scores:
        codec = codec_of(model, "a text")
        return Pair(a, b, models, score.difference(a.scores, b.scores, codec))
    first, second = ([bool(record.right) for record in e.records] for e in (a, b))
    return Pair(a, b, models, statistics.paired(first, second))
