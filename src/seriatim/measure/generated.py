"""Kinds of task in which the model writes: exact match, infilling, answers of chains of thought.

What is generated for a task is one list of requests, which the engine computes together; no result
depends on that.
"""

from collections.abc import Sequence
from functools import partial
from math import fsum
from typing import Any

from seriatim import requesting
from seriatim.api import Model
from seriatim.codecs._files import named
from seriatim.engine.options import whole
from seriatim.errors import RequestError
from seriatim.measure import fitting
from seriatim.measure.evaluation import Evaluation, Ready, Record, place, shares
from seriatim.measure.fitting import Prompt
from seriatim.measure.tasks import Exact, Gap, Problem, Task
from seriatim.requesting import NOTHING, Extras
from seriatim.results import Result
from seriatim.search.candidates import Vote

ANSWER_TOKENS = 512  # of a chain of thought, where no number is given
AGAIN = "\nQuestion:"  # where a model that goes on would ask itself the next one
SAME = "right if equal up to space at the end"


def exact(
    model: Model,
    task: Task,
    *,
    stop: Sequence[str] | None = None,
    max_tokens: int | None = None,
    cut: bool = False,
) -> Ready:
    """How often the greedy continuation of a prompt is the right one.

    Args:
        model: it generates.
        task: of `Exact` items.
        stop: strings that end an answer; default: a newline, where no right answer holds one.
        max_tokens: default: one more than the longest right answer has bytes.
        cut: whether a prompt too long for the context loses its beginning.
    """
    prompts = []
    for item in task.items:
        with named(place(task, item)):
            room = len(model.encode(item.answer))
            prompts.append(fitting.prompt(model, item.prompt, room, cut=cut))
    ends = _ends(task.items, stop, max_tokens)
    return lambda: [_continued(model, task, "exact match", prompts, ends)]


def infill(
    model: Model,
    task: Task,
    *,
    fim_order: str | None = None,
    stop: Sequence[str] | None = None,
    max_tokens: int | None = None,
    cut: bool = False,
) -> Ready:
    """How often a gap is filled exactly, and how often the prefix alone is so continued.

    Args:
        model: it generates, and can fill gaps.
        task: of `Gap` items.
        fim_order: "psm" or "spm"; default: the model's.
        stop, max_tokens: as for `exact`, and the ids that end a gap.
        cut: whether, in a context too short, the sides lose what is farthest from the gap; always
            for the lines of files. Left to right the context holds the prefix alone: more of it.
    """
    cut = cut or task.fitted
    rooms = [len(model.encode(item.answer)) for item in task.items]
    if task.fitted:  # one room for all, so that it says nothing of the answer
        rooms = [min(max(rooms), model.context // 2)] * len(rooms)
    gaps, prefixes, extras = [], [], NOTHING
    for item, room in zip(task.items, rooms, strict=True):
        with named(place(task, item)):
            prompt, extras = fitting.gap(model, item, room, order=fim_order, cut=cut)
            gaps.append(prompt)
            prefixes.append(fitting.prompt(model, item.prefix, room, cut=cut))
    ends = _ends(task.items, stop, max_tokens)
    return lambda: [
        _continued(model, task, "infilling", gaps, ends, extras),
        _continued(model, task, "left to right", prefixes, ends),
    ]


def answer(
    model: Model,
    task: Task,
    *,
    shots: int = 0,
    votes: int | None = None,
    temperature: float | None = None,
    extract: str | None = None,
    seed: int = 0,
    stop: Sequence[str] | None = None,
    max_tokens: int = ANSWER_TOKENS,
    cut: bool = False,
) -> Ready:
    """How often the answer that is read in a chain of thought is the right one.

    The prompt is "Question: ...", a newline, "Answer:". Numbers are compared as numbers.

    Args:
        model: it generates.
        task: of `Problem` items.
        shots: how many of the first stand solved before each of the others, and are not asked.
        votes: how many chains are drawn for a vote (`Model.vote`); default: one, greedily.
        temperature: default: 0, or 1 for a vote.
        extract: a regular expression for what is an answer; default: what follows the last ####,
            else the last number.
        seed: of the draws.
        stop: strings that end an answer; default: a next question.
        max_tokens: ids in an answer; a full context ends it too.
        cut: whether a prompt too long for the context loses its beginning.
    """
    if whole("shots", shots, 0) >= len(task.items):
        seen = f"shots is {shots} and {task.name} has {len(task.items)} items"
        raise RequestError(seen, expected="at least one left to ask")
    items: Sequence[Problem] = task.items[shots:]
    solved = "".join(f"{_asked(p)} {p.solution}\n\n" for p in task.items[:shots])
    prompts = []
    for item in items:
        with named(place(task, item)):
            prompts.append(fitting.prompt(model, solved + _asked(item), 1, cut=cut))
    how = {
        "n": 1 if votes is None else votes,
        "extract": extract,
        "stop": [AGAIN] if stop is None else list(stop),
        "max_tokens": max_tokens,
        "temperature": (0 if votes is None else 1) if temperature is None else temperature,
        "seed": seed,
    }
    measure = "answer" if votes is None else f"vote of {votes}"
    return partial(_answered, model, task, measure, items, prompts, how)


def _asked(problem: Problem) -> str:
    return f"Question: {problem.question}\nAnswer:"


def _answered(
    model: Model,
    task: Task,
    measure: str,
    items: Sequence[Problem],
    prompts: Sequence[Prompt],
    how: dict[str, Any],
) -> list[Evaluation]:
    votes = model.vote([prompt.ids for prompt in prompts], **how)
    records = [_said(*each) for each in zip(items, prompts, votes, strict=True)]
    warmth = f"temperature {how['temperature']:g}" if how["temperature"] else "greedy"
    ends = f"until {_until(how['stop'], how['max_tokens'])}"
    return [
        shares(
            task,
            measure,
            records,
            f"{warmth}, {ends}; right if equal as numbers",
            cut=sum(prompt.cut for prompt in prompts),
            unfinished=sum(_endless(c.result) for vote in votes for c in vote.candidates),
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
    """Greedy continuations beside the right answers."""
    options = {"temperature": 0, "seed": 0, "logprobs": True, "max_tokens": ends["max_tokens"]}
    ids = [prompt.ids for prompt in prompts]
    results = requesting.run(model, ids, 1, ends["stop"], options, extras)
    return shares(
        task,
        measure,
        [_judged(*each) for each in zip(task.items, prompts, results, strict=True)],
        f"greedy, until {_until(**ends)}; {SAME}",
        cut=sum(prompt.cut for prompt in prompts),
        unfinished=sum(map(_endless, results)),
    )


def _judged(item: Exact | Gap, prompt: Prompt, result: Result) -> Record:
    same = result.text.rstrip() == item.answer.rstrip()
    return Record(item.place, prompt.shown, result.text, item.answer, same, _nats(result))


def _until(stop: Sequence[str], max_tokens: int) -> str:
    return ", ".join(["an end id", *map(repr, stop), f"{max_tokens} ids or a full context"])


def _nats(result: Result) -> float:
    """Of the ids that were generated, the end id left out."""
    return -fsum(result.logprobs or ())


def _endless(result: Result) -> bool:
    return result.finish_reason == "length"
