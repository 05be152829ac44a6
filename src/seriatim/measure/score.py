"""Scores put together."""

from collections.abc import Sequence
from math import log, sqrt

from seriatim.errors import RequestError
from seriatim.results import Score


def total(scores: Sequence[Score]) -> Score:
    """One score of several sequences, as if their units stood in one; errors add in quadrature.

    Raises:
        RequestError: no scores, or scores in different units.
    """
    if len({score.unit for score in scores}) != 1:
        raise RequestError(
            f"{len(scores)} scores in units {sorted({str(s.unit) for s in scores})}",
            expected="at least one, all in one unit",
        )
    nats = sum(score.nats for score in scores)
    units = sum(score.units or 0 for score in scores)
    errors = [(score.error, score.units or 0) for score in scores]
    known = [(error * count) ** 2 for error, count in errors if error is not None]
    return Score(
        ids=[id for score in scores for id in score.ids],
        logprobs=[x for score in scores for x in score.logprobs],
        nats=nats,
        units=units,
        unit=scores[0].unit,
        bits_per_unit=nats / log(2) / units if units else None,
        error=sqrt(sum(known)) / units if units and len(known) == len(scores) else None,
        unscored=sum(score.unscored for score in scores),
        windows=sum(score.windows for score in scores),
    )
