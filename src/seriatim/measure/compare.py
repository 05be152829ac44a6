"""Two models on the same ids: how far the second's predictions are from the first's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from seriatim.api import Model
from seriatim.errors import RequestError
from seriatim.scoring import RUN, cut, ratio_error

ROWS = 1 << 21  # logits looked at together, in float64
DRAWN, LENGTH = 8, 256  # samples of the first model, and ids in each, where no text is given


@dataclass(frozen=True)
class Comparison:
    """Of B to A, over every position of some windows of ids.

    Attributes:
        positions: how many predictions were compared.
        kl: mean of KL(A || B) in nats; `kl_error` is one standard error of it, `kl_99` the 99th
            percentile, `kl_worst` the largest.
        same_top: share of positions where both give the same id the most.
        perplexity: of A and of B on the ids, with `perplexity_error` one standard error of each.
    """

    positions: int
    kl: float
    kl_error: float | None
    kl_99: float
    kl_worst: float
    same_top: float
    perplexity: tuple[float, float]
    perplexity_error: tuple[float | None, float | None]


def compare(a: Model, b: Model, windows: Iterable[Sequence[int]]) -> Comparison:
    """Compare the predictions of two models.

    Args:
        a: the reference.
        b: another with the same ids.
        windows: lists of ids, each within both contexts.

    Raises:
        RequestError: the models have different vocabularies, or there is nothing to compare.
    """
    if a.vocab_size != b.vocab_size:
        raise RequestError(
            f"the models have {a.vocab_size} and {b.vocab_size} ids", expected="the same ids"
        )
    parts = [_window(list(ids), a.logits(ids), b.logits(ids)) for ids in windows]
    if not parts:
        raise RequestError("there are no ids to compare on", expected="a text")
    kl, same = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    losses = [np.concatenate([part[i] for part in parts]) for i in (2, 3)]
    means = [exp(float(loss.mean())) for loss in losses]
    errors = [_error(loss) for loss in losses]
    return Comparison(
        positions=len(kl),
        kl=float(kl.mean()),
        kl_error=_error(kl),
        kl_99=float(np.quantile(kl, 0.99)),
        kl_worst=float(kl.max()),
        same_top=float(same.mean()),
        perplexity=(means[0], means[1]),
        perplexity_error=(_times(means[0], errors[0]), _times(means[1], errors[1])),
    )


def windows(model: Model, text: Any = None, *, length: int | None = None) -> list[list[int]]:
    """Windows of ids to compare on: the whole of a text, or else what the model itself draws.

    Args:
        model: whose codec and start ids are used.
        text: the codec's object, a `Path` to a file of it, or a list of ids.
        length: ids in a window, the start ids counted; default: a context.
    """
    if text is None:
        first = None if model.start else [0]  # whatever stands first, where nothing must
        drawn = model.generate(
            first, n=DRAWN, max_tokens=min(LENGTH, model.context) - 1, seed=0, ignore_end=True
        )
        return [[*drawn.prompt_ids, *sample.ids] for sample in drawn.samples]
    start = tuple(model.codec.start) if model.codec else tuple(model.start)
    ids = model.prompt_ids(text)
    bare = ids[len(start) :] if tuple(ids[: len(start)]) == start else ids
    return cut(bare, length or model.context, start)


def _window(ids: list[int], a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """KL and agreement at each position, and both losses of each id but the first."""
    step = max(ROWS // a.shape[1], 1)
    parts = [_rows(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step)]
    kl, same = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    chosen = np.array(ids[1:])
    losses = (
        np.concatenate([part[i] for part in parts])[:-1]
        - logits[np.arange(len(chosen)), chosen].astype(np.float64)
        for i, logits in ((2, a), (3, b))
    )
    return kl, same, *losses


def _rows(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """KL(A || B) and agreement, and the logarithm of each one's sum of exponentials."""
    p, q = a.astype(np.float64), b.astype(np.float64)
    sums = [x.max(-1) + np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) for x in (p, q)]
    p, q = p - sums[0][:, None], q - sums[1][:, None]
    with np.errstate(invalid="ignore"):
        kl = np.where(p > -np.inf, np.exp(p) * (p - q), 0).sum(-1)
    return np.maximum(kl, 0), p.argmax(-1) == q.argmax(-1), *sums


def _error(values: np.ndarray) -> float | None:
    """One standard error of a mean, over runs of 128 neighbours."""
    starts = range(0, len(values) // RUN * RUN, RUN)
    if len(starts) < 2:
        return None
    sums = np.array([values[i : i + RUN].sum() for i in starts])
    return ratio_error(sums, np.full(len(sums), float(RUN)))


def _times(mean: float, error: float | None) -> float | None:
    """exp carries an error of a mean log to one of its exponential."""
    return None if error is None else mean * error
