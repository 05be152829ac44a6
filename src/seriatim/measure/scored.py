"""Kinds of task in which nothing is generated: texts, and choices among continuations."""

from collections.abc import Callable, Sequence
from functools import partial

from seriatim.api import Model
from seriatim.codecs._files import named
from seriatim.errors import RequestError
from seriatim.measure import fitting, score
from seriatim.measure.evaluation import Evaluation, Ready, Record, place, shares
from seriatim.measure.fitting import Prompt
from seriatim.measure.tasks import Choice, Task
from seriatim.requesting import codec_of
from seriatim.results import Score


def text(model: Model, task: Task) -> Ready:
    """Bits per unit of each file and, of several, of all: what `Model.score` gives."""
    codec, contents = codec_of(model, "a text"), []
    for path in task.items:
        with named(path):
            contents.append(codec.read(path))

    def work() -> list[Evaluation]:
        names, scores = [str(path) for path in task.items], []
        for name, raw in zip(names, contents, strict=True):
            with named(name):
                scores.append(model.score(raw))
        each = [_bits(name, [s], [name]) for name, s in zip(names, scores, strict=True)]
        return each if len(each) == 1 else [*each, _bits("all", scores, names)]

    return work


def _bits(name: str, scores: list[Score], names: list[str]) -> Evaluation:
    whole = score.Tally.of(scores)
    if whole.rate is None:
        raise RequestError(f"{name} has no {whole.unit} to score", expected="at least one")
    nats = zip(names, (s.nats for s in scores), strict=True)
    return Evaluation(
        name=name,
        measure=f"bits per {whole.unit}",
        unit=f"bits per {whole.unit}",
        value=whole.rate,
        error=whole.error,
        items=len(scores),
        how=f"{whole.units} {whole.unit}s, {whole.windows} windows, {whole.unscored} ids unscored",
        records=[Record(each, None, None, None, None, of_it) for each, of_it in nats],
        scores=scores,
    )


def choice(model: Model, task: Task, *, cut: bool = False) -> Ready:
    """How often the likeliest choice is the right one: by its nats, and by its nats per unit.

    Args:
        model: it scores each choice as `Model.score(choice, given=prompt)` does.
        task: of `Choice` items.
        cut: whether a prompt too long for the context loses its beginning.
    """
    codec_of(model, "a choice")
    prompts = []
    for item in task.items:
        with named(place(task, item)):
            room = max(len(model.encode(each)) for each in item.choices)
            prompts.append(fitting.prompt(model, item.prompt, room, cut=cut))
    return partial(_choices, model, task, prompts)


def _choices(model: Model, task: Task, prompts: Sequence[Prompt]) -> list[Evaluation]:
    scored = [
        [model.score(each, given=prompt.ids) for each in item.choices]
        for item, prompt in zip(task.items, prompts, strict=True)
    ]
    unit, shortened = scored[0][0].unit, sum(prompt.cut for prompt in prompts)
    ways: list[tuple[str, Callable[[Score], float]]] = [
        ("", lambda s: s.nats),
        (f" per {unit}", lambda s: s.nats / max(s.units or 0, 1)),  # a text of no unit has no share
    ]
    return [
        shares(
            task,
            f"choice{per}",
            [_chosen(*each, by) for each in zip(task.items, prompts, scored, strict=True)],
            f"the least nats{per}",
            cut=shortened,
        )
        for per, by in ways
    ]


def _chosen(
    item: Choice, prompt: Prompt, scores: Sequence[Score], by: Callable[[Score], float]
) -> Record:
    """The choice of the least cost; of equal ones the first."""
    costs, nats = [by(s) for s in scores], [s.nats for s in scores]
    best = costs.index(min(costs))
    return Record(item.place, prompt.shown, best, item.answer, best == item.answer, nats)
