"""The definition of what `sampler.draw` does, slow and clear: its C++ form equals it to the bit.

No generator state exists. The noise of an id at a position is Philox of (seed, sample, position,
id); the id with the highest scaled logit plus Gumbel noise wins, which samples softmax exactly
(Gumbel-max). Filter weights are integers, so sums are exact and no order of addition matters
(contracts.md, 10 to 13). It also computes where the extension was not built.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from math import ceil

import numpy as np

from seriatim.engine.sampling import Draw, Sampling
from seriatim.errors import NumericError, RequestError
from seriatim.kernels.mathematics import exp, log, philox

ONE = 2.0**40  # the integer weight of the best id
REACH = 26.2  # noise spans [-3.2, 23]: a score further below the best cannot win


def draw(
    logits: np.ndarray,
    how: Sampling,
    *,
    ids: Sequence[int],
    prompt: int,
    seed: int,
    sample: int = 0,
    forbidden: Sequence[int] = (),
    masks: Sequence[np.ndarray] = (),
    forced: int | None = None,
    top: int | None = 0,
) -> Draw:
    """Sample the id at position `len(ids)`: arguments and errors of `sampler.draw`."""
    own = logits.astype(np.float64)
    if forced is None:
        how = guided(how, masks, len(own))
        scores = _masked(processed(own, how, ids, prompt), how, forbidden)
        id = _pick(scores, how, position=len(ids), seed=seed, sample=sample)
    else:
        id = forced
    if top is None:
        return Draw(id)
    normaliser = log_sum(logits[None])[0]
    best = np.argsort(-own, kind="stable")[:top] if top else ()
    listed = tuple((int(i), float(own[i] - normaliser)) for i in best)
    return Draw(id, float(own[id] - normaliser), listed)


def log_sum(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp along the last axis, from the exact integer sum: float64 [R] of [R, V].

    Row by row, so that what is between stays in the processor's cache.
    """
    return np.array([_log_sum(row.astype(np.float64)) for row in logits])


def _log_sum(row: np.ndarray) -> float:
    top = row.max()
    total = _weights(row - top).sum(dtype=np.uint64)
    return float(top + log(np.array(total / ONE)))


def noise(ids: np.ndarray, *, position: int, seed: int, sample: int = 0) -> np.ndarray:
    """Gumbel noise of each id: -log(-log u), u = (word + 0.5) / 2^32 (float64 [ids]).

    The definition: sampling computes it only for the ids that `_highest` cannot rule out.
    """
    return _gumbel(_uniform(ids, position=position, seed=seed, sample=sample))


def _gumbel(u: np.ndarray) -> np.ndarray:
    return -log(-log(u))


def _uniform(ids: np.ndarray, *, position: int, seed: int, sample: int) -> np.ndarray:
    """One number in (0, 1) for each id; four neighbours share a counter."""
    groups = ids >> 2
    new = np.ones(len(ids), bool)
    new[1:] = groups[1:] != groups[:-1]
    counter = np.zeros((np.count_nonzero(new), 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2] = groups[new], position, sample
    words = philox(counter, seed)[np.cumsum(new) - 1, ids & 3]
    return (words + 0.5) / 2.0**32


def _weights(z: np.ndarray) -> np.ndarray:
    """round(exp(z) * 2^40) as uint64: 128 k of them still sum below 2^57, exactly.

    By numpy's exp, which is 10 times faster and off by less than 2^-10 here; where that could round
    the other way, by ours.
    """
    rough = np.exp(z) * ONE
    weights = np.rint(rough)
    unsure = np.abs(rough - weights) > 0.5 - 2**-8
    weights[unsure] = np.rint(exp(z[unsure]) * ONE)
    return weights.astype(np.uint64)


def processed(x: np.ndarray, how: Sampling, ids: Sequence[int], prompt: int) -> np.ndarray:
    """Float64 scores after penalties, biases and processors, in this order.

    Raises:
        NumericError: a processor returned something that is not finite or -inf.
    """
    x = penalised(x, how, ids, prompt)
    for id, bias in how.logit_bias:
        x[id] += bias
    for processor in how.processors:
        shape = x.shape
        x = np.array(processor(tuple(ids), x.astype(np.float32)), dtype=np.float64)
        if x.shape != shape or np.isnan(x).any() or (x == np.inf).any():
            raise NumericError(
                f"the processor {getattr(processor, '__name__', processor)!r} returned a value "
                "that is NaN or infinite, or an array of another shape",
                expected="one number or -inf for each id",
            )
    return x


def penalised(
    x: np.ndarray, how: Sampling, ids: Sequence[int] | np.ndarray, prompt: int
) -> np.ndarray:
    """Repetition over all ids (CTRL, arXiv:1909.05858); presence and frequency over new ones."""
    x = x.copy()
    if how.repetition_penalty != 1.0 and len(ids):
        seen = np.unique(np.asarray(ids))
        by = how.repetition_penalty
        x[seen] = np.where(x[seen] > 0, x[seen] / by, x[seen] * by)
    if (how.presence_penalty or how.frequency_penalty) and len(ids) > prompt:
        seen, count = np.unique(np.asarray(ids[prompt:]), return_counts=True)
        x[seen] -= how.presence_penalty + how.frequency_penalty * count
    return x


def _masked(x: np.ndarray, how: Sampling, forbidden: Sequence[int]) -> np.ndarray:
    if how.allowed_ids is not None:
        hidden = np.ones(len(x), bool)
        hidden[list(how.allowed_ids)] = False
        x = np.where(hidden, -np.inf, x)
    x[list(how.banned_ids) + list(forbidden)] = -np.inf
    if x.max() == -np.inf:
        raise nothing_left()
    return x


def guided(how: Sampling, masks: Sequence[np.ndarray], size: int) -> Sampling:
    """The same sampling, of ids that every mask (uint32 words of bits) allows as well."""
    if not masks:
        return how
    words = reduce(np.bitwise_and, masks).astype("<u4", copy=False)
    allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")[:size])
    if how.allowed_ids is not None:
        allowed = np.intersect1d(allowed, how.allowed_ids)
    return replace(how, allowed_ids=tuple(allowed.tolist()))


def nothing_left() -> RequestError:
    return RequestError(
        "the allowed and banned ids leave no id to choose", fix="allow at least one"
    )


def _pick(x: np.ndarray, how: Sampling, *, position: int, seed: int, sample: int) -> int:
    if how.temperature == 0:
        return int(x.argmax())  # the first of equals: the lowest id
    with np.errstate(over="ignore"):  # a tiny temperature: -inf is right, and as good as greedy
        z = (x - x.max()) / how.temperature
    ids = filtered(z, how)
    ids = ids[z[ids] > -REACH]
    return _highest(z[ids], ids, _uniform(ids, position=position, seed=seed, sample=sample))


def _highest(z: np.ndarray, ids: np.ndarray, u: np.ndarray) -> int:
    """The id with the highest z + noise; by numpy's log down to those within its error."""
    rough = z - np.log(-np.log(u))
    near = rough > rough.max() - 1e-9
    return int(ids[near][(z[near] + _gumbel(u[near])).argmax()])


def filtered(z: np.ndarray, how: Sampling) -> np.ndarray:
    """Ids, ascending, that top-k, top-p and min-p leave; `z` is scaled, its maximum 0."""
    ids = np.flatnonzero(z > -np.inf)
    if 0 < how.top_k < len(ids):
        ids = np.sort(_ranked(z, ids)[: how.top_k])
    if how.top_p == 1.0 and how.min_p == 0.0:
        return ids
    weights = _weights(z[ids])
    if how.top_p < 1.0:
        order = np.lexsort((ids, -weights.astype(np.int64)))
        reached = np.cumsum(weights[order])
        goal = ceil(Fraction(how.top_p) * int(reached[-1]))
        last = np.searchsorted(reached, np.uint64(goal))  # a plain int would compare as floats
        kept = np.sort(order[: int(last) + 1])
        ids, weights = ids[kept], weights[kept]
    return ids[weights >= ceil(Fraction(how.min_p) * int(weights.max()))]


def _ranked(z: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Ids by falling score, equals by rising id."""
    return ids[np.argsort(-z[ids], kind="stable")]
