"""`trace`: each sampled id looked at, for pages that show what a model does. Our own field."""

from collections.abc import Mapping
from typing import Any

from seriatim.engine.request import Request
from seriatim.serve import openai
from seriatim.serve.fields import Given
from seriatim.serve.spelling import Spelling


def options(given: Given, logprobs: int | None) -> Mapping[str, Any]:
    """What `generate` is asked for, so that both a trace and so many alternatives can be told."""
    counts = [count for count in (given.get("trace"), logprobs) if count is not None]
    return {"logprobs": max(counts) or True} if counts else {}


def trace(
    given: Given, request: Request, begin: int, end: int, spelling: Spelling
) -> dict[str, Any]:
    """The ids that were sampled from one place to another; nothing unless asked for.

    `bytes` are what an id stands for, null where it stands for none; joined, they are the text.
    """
    if (count := given.get("trace")) is None:
        return {}
    rows = [
        _id(draw.id, draw.logprob, spelling)
        | {"accepted": place in request.guessed}
        | {"top": [_id(id, logprob, spelling) for id, logprob in draw.top[:count]]}
        for place, draw in enumerate(request.draws[begin:end], begin)
    ]
    return {"trace": rows}


def _id(id: int, logprob: float | None, spelling: Spelling) -> dict[str, Any]:
    data = spelling.data(id)
    said = {"id": id, "text": spelling.text(id), "bytes": None if data is None else list(data)}
    return said | {"logprob": openai.number(logprob)}
