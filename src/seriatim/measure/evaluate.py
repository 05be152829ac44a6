"""What a model does: bits per unit, exact match, infilling, choices and answers, with error bars.

    from seriatim.measure import evaluate, tasks
    report = evaluate.evaluate(model, tasks.read(Path("capitals.jsonl")))
    print(report.evaluations[0].value, report.evaluations[0].error)

What is generated for a task is one list of requests, which the engine computes together; no result
depends on that. Beside another model, and of two ways of one model, items are paired.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from math import fsum
from typing import Any

from seriatim import requesting
from seriatim.api import Model
from seriatim.codecs._files import named
from seriatim.errors import RequestError, did_you_mean
from seriatim.measure import fitting, score, statistics
from seriatim.measure.evaluation import Evaluation, Pair, Record, Report
from seriatim.measure.fitting import Prompt
from seriatim.measure.tasks import Choice, Exact, Gap, Problem, Task
from seriatim.requesting import NOTHING, Extras, codec_of
from seriatim.results import Result, Score
from seriatim.scoring import ratio_error
from seriatim.search.candidates import Vote

ANSWER_TOKENS = 512  # of a chain of thought, where no number is given
AGAIN = "\nQuestion:"  # where a model that goes on would ask itself the next one
SAME = "right if equal up to space at the end"


def evaluate(model: Model, task: Task, *, against: Model | None = None, **options: Any) -> Report:
    """What a model makes of a task, and what another makes of the very same items.

    Args:
        model: whose evaluations they are.
        task: from `tasks.read`, `tasks.lines` or `tasks.text`.
        against: another model, or the same one loaded otherwise.
        options: those of the kind of task: of `text`, `exact`, `infill`, `choice` or `answer`.

    Raises:
        RequestError: an option that this kind has not, what a model cannot do, or a prompt that is
            too long and may not be cut.

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
    run = KINDS[task.kind]
    first = run(model, task, **options)
    second = [] if against is None else run(against, task, **options)
    pairs = [_pair(model, a, b, (0, 1)) for a, b in zip(first, second, strict=False)]
    if task.kind == "infill":
        ways = enumerate([first, second] if second else [first])
        pairs += [_pair(model, filled, straight, (i, i)) for i, (filled, straight) in ways]
    return Report(task, first, second, pairs)


def _pair(model: Model, a: Evaluation, b: Evaluation, models: tuple[int, int]) -> Pair:
    if a.scores:
        codec = codec_of(model, "a text")
        return Pair(a, b, models, score.difference(a.scores, b.scores, codec))
    first, second = ([bool(record.right) for record in e.records] for e in (a, b))
    return Pair(a, b, models, statistics.paired(first, second))


# ---- kinds -------------------------------------------------------------------------------------


def text(model: Model, task: Task) -> list[Evaluation]:
    """Bits per unit of each file and, of several, of all: what `Model.score` gives."""
    codec = codec_of(model, "a text")
    contents = []
    for path in task.items:  # every file is checked before any work
        with named(path):
            contents.append(codec.read(path))
    scores = []
    for path, raw in zip(task.items, contents, strict=True):
        with named(path):
            scores.append(model.score(raw))
    names = [str(path) for path in task.items]
    found = [_bits(name, [s], [name]) for name, s in zip(names, scores, strict=True)]
    return found if len(found) == 1 else [*found, _bits("all", scores, names)]


def _bits(name: str, scores: list[Score], names: list[str]) -> Evaluation:
    whole = score.total(scores)
    if whole.bits_per_unit is None:
        raise RequestError(f"{name} has no {whole.unit} to score", expected="at least one")
    error = whole.error
    if error is None and len(scores) > 1:  # files too short to have an error are draws themselves
        error = ratio_error(*score.sums(scores))
    return Evaluation(
        name=name,
        measure=f"bits per {whole.unit}",
        unit=f"bits per {whole.unit}",
        value=whole.bits_per_unit,
        error=error,
        items=len(scores),
        how=f"{whole.units} {whole.unit}s in {whole.windows} windows",
        records=[
            Record(n, None, None, None, None, s.nats) for n, s in zip(names, scores, strict=True)
        ],
        scores=scores,
    )


def exact(
    model: Model,
    task: Task,
    *,
    stop: Sequence[str] | None = None,
    max_tokens: int | None = None,
    cut: bool = False,
) -> list[Evaluation]:
    """How often the greedy continuation of a prompt is the right one.

    Args:
        model: it generates.
        task: of `Exact` items.
        stop: strings that end an answer; default: a newline, where no right answer holds one.
        max_tokens: default: one more than the longest right answer has bytes.
        cut: whether a prompt too long for the context loses its beginning.
    """
    items: tuple[Exact, ...] = task.items
    prompts = []
    for item in items:
        with named(_place(task, item)):
            room = len(model.encode(item.answer))
            prompts.append(fitting.prompt(model, item.prompt, room, cut=cut))
    return [_continued(model, task, "exact match", prompts, _ends(items, stop, max_tokens))]


def infill(
    model: Model,
    task: Task,
    *,
    fim_order: str | None = None,
    stop: Sequence[str] | None = None,
    max_tokens: int | None = None,
    cut: bool = False,
) -> list[Evaluation]:
    """How often a gap is filled exactly, and how often the prefix alone is so continued.

    Args:
        model: it generates, and can fill gaps.
        task: of `Gap` items.
        fim_order: "psm" (default) or "spm".
        stop, max_tokens: as for `exact`, and the ids that end a gap.
        cut: whether, in a context too short, the sides lose what is farthest from the gap; always
            for the lines of files. Left to right the context holds the prefix alone: more of it.
    """
    items: tuple[Gap, ...] = task.items
    cut = cut or task.fitted
    rooms = [len(model.encode(item.answer)) for item in items]
    if task.fitted:  # one room for all, so that it says nothing of the answer
        rooms = [min(max(rooms), model.context // 2)] * len(items)
    gaps, prefixes = [], []
    for item, room in zip(items, rooms, strict=True):
        with named(_place(task, item)):
            gaps.append(fitting.gap(model, item, room, order=fim_order, cut=cut))
            prefixes.append(fitting.prompt(model, item.prefix, room, cut=cut))
    ends = _ends(items, stop, max_tokens)
    filled, extras = [prompt for prompt, _ in gaps], gaps[0][1]
    return [
        _continued(model, task, "infilling", filled, ends, extras),
        _continued(model, task, "left to right", prefixes, ends),
    ]


def choice(model: Model, task: Task, *, cut: bool = False) -> list[Evaluation]:
    """How often the likeliest choice is the right one: by its nats, and by its nats per unit.

    Args:
        model: it scores each choice as `Model.score(choice, given=prompt)` does.
        task: of `Choice` items.
        cut: whether a prompt too long for the context loses its beginning.
    """
    items: tuple[Choice, ...] = task.items
    unit = codec_of(model, "a choice").unit
    prompts = []
    for item in items:  # all are checked before any work
        with named(_place(task, item)):
            room = max(len(model.encode(text)) for text in item.choices)
            prompts.append(fitting.prompt(model, item.prompt, room, cut=cut))
    scored = [
        [model.score(text, given=prompt.ids) for text in item.choices]
        for item, prompt in zip(items, prompts, strict=True)
    ]
    shortened = sum(prompt.cut for prompt in prompts)
    raw = _choices(items, prompts, scored, lambda s: s.nats)
    mean = _choices(items, prompts, scored, lambda s: s.nats / max(s.units or 0, 1))
    return [
        _shares(task, "choice", raw, "the likeliest", cut=shortened),
        _shares(task, f"choice per {unit}", mean, f"the likeliest per {unit}", cut=shortened),
    ]


def _choices(
    items: Sequence[Choice],
    prompts: Sequence[Prompt],
    scored: Sequence[Sequence[Score]],
    by: Callable[[Score], float],
) -> list[Record]:
    """The choice of the least cost; of equal ones the first."""
    records = []
    for item, prompt, scores in zip(items, prompts, scored, strict=True):
        costs, nats = [by(s) for s in scores], [s.nats for s in scores]
        best = costs.index(min(costs))
        right = best == item.answer
        records.append(Record(item.place, prompt.shown, best, item.answer, right, nats))
    return records


def answer(
    model: Model,
    task: Task,
    *,
    votes: int | None = None,
    temperature: float | None = None,
    extract: str | None = None,
    seed: int = 0,
    stop: Sequence[str] | None = None,
    max_tokens: int = ANSWER_TOKENS,
    cut: bool = False,
) -> list[Evaluation]:
    """How often the answer that is read in a chain of thought is the right one.

    The prompt is "Question: ...", a newline, "Answer:". Numbers are compared as numbers.

    Args:
        model: it generates.
        task: of `Problem` items.
        votes: how many chains are drawn for a vote (`Model.vote`); default: one, greedily.
        temperature: default: 0, or 1 for a vote.
        extract: a regular expression for what is an answer; default: what follows the last ####,
            else the last number.
        seed: of the draws.
        stop: strings that end an answer; default: a next question.
        max_tokens: ids in an answer; a full context ends it too.
        cut: whether a prompt too long for the context loses its beginning.
    """
    items: tuple[Problem, ...] = task.items
    prompts = []
    for item in items:
        with named(_place(task, item)):
            asked = f"Question: {item.question}\nAnswer:"
            prompts.append(fitting.prompt(model, asked, 1, cut=cut))
    warmth = (0.0 if votes is None else 1.0) if temperature is None else temperature
    stops = [AGAIN] if stop is None else list(stop)
    found = model.vote(
        [prompt.ids for prompt in prompts],
        n=1 if votes is None else votes,
        extract=extract,
        stop=stops,
        max_tokens=max_tokens,
        temperature=warmth,
        seed=seed,
    )
    return [
        _shares(
            task,
            "answer" if votes is None else f"vote of {votes}",
            [_said(*each) for each in zip(items, prompts, found, strict=True)],
            f"{_warmth(warmth)}, until {_until(stops, max_tokens)}; right if equal as numbers",
            cut=sum(prompt.cut for prompt in prompts),
            unfinished=sum(_endless(c.result) for vote in found for c in vote.candidates),
        )
    ]


def _said(item: Problem, prompt: Prompt, vote: Vote) -> Record:
    """The answer, and the first text that gives it."""
    first = next(c for c in vote.candidates if c.answer == vote.answer)
    return Record(
        place=item.place,
        prompt=prompt.shown,
        given=vote.answer,
        expected=item.answer,
        right=vote.answer == item.answer,
        nats=_nats(first.result),
        text=first.result.text,
    )


Kind = Callable[..., list[Evaluation]]
KINDS: dict[str, Kind] = {k.__name__: k for k in (text, exact, infill, choice, answer)}
OPTIONS = {name: [*signature(run).parameters][2:] for name, run in KINDS.items()}


# ---- parts of them -----------------------------------------------------------------------------


def _ends(
    items: Sequence[Exact | Gap], stop: Sequence[str] | None, max_tokens: int | None
) -> dict[str, Any]:
    """What ends the answers: no answer that is right is cut short."""
    answers = [item.answer.rstrip() for item in items]
    if stop is None:
        stop = [] if any("\n" in a for a in answers) else ["\n"]
    longest = max(len(a.encode()) for a in answers)
    return {"stop": list(stop), "max_tokens": longest + 1 if max_tokens is None else max_tokens}


def _continued(
    model: Model,
    task: Task,
    measure: str,
    prompts: Sequence[Prompt],
    ends: dict[str, Any],
    extras: Extras = NOTHING,
) -> Evaluation:
    """What greedy continuations, all of them one list of requests, have to do with the answers."""
    how = {"temperature": 0, "seed": 0, "logprobs": True, "max_tokens": ends["max_tokens"]}
    ids = [prompt.ids for prompt in prompts]
    results = requesting.run(model, ids, 1, ends["stop"], how, extras)
    records = [
        Record(
            place=item.place,
            prompt=prompt.shown,
            given=result.text,
            expected=item.answer,
            right=result.text.rstrip() == item.answer.rstrip(),
            nats=_nats(result),
        )
        for item, prompt, result in zip(task.items, prompts, results, strict=True)
    ]
    return _shares(
        task,
        measure,
        records,
        f"greedy, until {_until(**ends)}; {SAME}",
        cut=sum(prompt.cut for prompt in prompts),
        unfinished=sum(map(_endless, results)),
    )


def _shares(
    task: Task, measure: str, records: list[Record], how: str, *, cut: int, unfinished: int = 0
) -> Evaluation:
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
        records=records,
    )


def _until(stop: Sequence[str], max_tokens: int) -> str:
    return ", ".join(["an end id", *map(repr, stop), f"{max_tokens} ids or a full context"])


def _warmth(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def _nats(result: Result) -> float:
    """Of the ids that were generated, the end id left out."""
    return -fsum(result.logprobs or ())


def _endless(result: Result) -> bool:
    return result.finish_reason == "length"


def _place(task: Task, item: Any) -> str:
    return item.place if task.fitted else f"{task.name} {item.place}"
