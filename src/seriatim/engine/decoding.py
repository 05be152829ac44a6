"""Propose, commit: how logits become a request's next ids.

Drafts are guesses of what follows. Each is compared with what the request would have sampled there
without it, by the same chain of penalties, masks and noise with the history so far; the first that
differs ends the matter. Speculation therefore changes no id, and nothing is ever rolled back.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from seriatim.engine.loops import looping
from seriatim.engine.request import Request
from seriatim.engine.sampler import draw
from seriatim.engine.sampling import Draw


class Computed(NamedTuple):
    """What one item of a step gave: logits [R, V], and the likeliest id of each row [R]."""

    logits: np.ndarray
    best: np.ndarray


class Bounds(NamedTuple):
    """Where every request of a model ends."""

    ends: frozenset[int]
    context: int


def commit(request: Request, drafts: Sequence[int], computed: Computed, bounds: Bounds) -> None:
    """Sample the next id, and one more after each draft that equals what was sampled.

    Args:
        request: all its ids are computed, and `drafts` after them.
        drafts: what was guessed to follow.
        computed: the last rows are those of the last id and of each draft.
        bounds: the model's.
    """
    first = len(computed.logits) - len(drafts) - 1
    request.usage.steps += 1
    request.usage.drafted += len(drafts)
    for row, draft in zip_longest(range(first, len(computed.logits)), drafts):
        drawn = sample(request, computed.logits[row], int(computed.best[row]), bounds)
        if request.done:  # its own processor has aborted it
            return
        if drawn.id == draft:
            request.guessed.add(request.generated)
        accept(request, drawn, bounds)
        if drawn.id != draft:
            return
        request.usage.accepted += 1
        if request.done:
            return
        request.computed += 1


def sample(request: Request, logits: np.ndarray, best: int, bounds: Bounds) -> Draw:
    """The id that follows all of the request's: it depends on nothing else."""
    options, done = request.options, request.generated
    early = done < options.min_tokens and not options.ignore_end
    answer = request.answer if request.guides else []
    return draw(
        logits,
        options.sampling,
        ids=request.ids,
        prompt=request.prompt,
        seed=options.seed,
        sample=request.sample,
        forbidden=(*bounds.ends, *request.ends) if early else (),
        masks=[m for guide in request.guides if (m := guide.mask(answer)) is not None],
        forced=options.forced_ids[done] if done < len(options.forced_ids) else None,
        top=options.logprobs,
        best=best,
    )


def accept(request: Request, drawn: Draw, bounds: Bounds) -> None:
    """Take one id; a stop wins over a full length (contracts.md, 15)."""
    request.usage.generated += 1
    ends = drawn.id in bounds.ends or drawn.id in request.ends
    if ends and not request.options.ignore_end:
        request.ending = drawn
        request.end(drawn.id)
        return
    request.draws.append(drawn)  # first: another thread reads the draws of the ids that it sees
    request.ids.append(drawn.id)
    if request.watch is not None:
        piece, met = request.watch.feed(drawn.id)
        request.pieces.append(piece)
        if met is not None:
            request.end(met)
            return
    options = request.options
    limit, longest = options.loop_limit, options.loop_length
    if any(guide.complete(request.answer) for guide in request.guides):
        request.end("complete")
    elif limit and looping(request.ids, request.prompt, times=limit, longest=longest):
        request.end("loop", "length")
    elif request.generated == options.max_tokens:
        request.end("max_tokens", "length")
    elif len(request.ids) == bounds.context:
        request.end("context", "length")
