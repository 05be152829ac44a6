"""The definition of what `sampler.draw` does, slow and clear: its C++ form equals it to the bit.

No generator state exists. The noise of an id at a position is Philox of (seed, sample, position,
id); the id with the highest scaled logit plus Gumbel noise wins, which samples softmax exactly
(Gumbel-max). Filter weights are integers, so sums are exact and no order of addition matters
(contracts.md, 10 to 13). It also computes where the extension was not built.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np

from seriatim.engine.sampling import Draw, Processor, Sampling
from seriatim.errors import NumericError, RequestError, SeriatimError
from seriatim.kernels.mathematics import exp, log, philox

ONE = 2.0**40  # the integer weight of the best id
REACH = 26.2  # noise spans [-3.2, 23]: a score further below the best cannot win
DRY_POWER = 88.0  # exp of it is the greatest power of DRY's base


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
        scores = _masked(processed(own, how, ids, prompt), how, forbidden, masks)
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
        RequestError: a processor raised.
        NumericError: it returned something that is not finite or -inf, or not one for each id.
    """
    x = penalised(x, how, ids, prompt)
    for id, penalty in dry(ids, how).items():
        x[id] -= penalty
    for id, bias in how.logit_bias:
        x[id] += bias
    for processor in how.processors:
        x = _after(processor, ids, x)
    return x


def _after(processor: Processor, ids: Sequence[int], x: np.ndarray) -> np.ndarray:
    name = getattr(processor, "__name__", processor)
    try:
        given = np.asarray(processor(tuple(ids), x.astype(np.float32)))
    except SeriatimError:
        raise
    except Exception as error:
        raise RequestError(
            f"the processor {name!r} raised {type(error).__name__}: {error}"
        ) from error
    if fault := _fault(given, len(x)):
        raise NumericError(
            f"the processor {name!r} returned {fault}",
            expected=f"{len(x)} numbers, each finite or -inf",
        )
    return given.astype(np.float64)  # its own copy


def _fault(given: np.ndarray, size: int) -> str | None:
    """What is wrong with a processor's result."""
    if given.dtype.kind not in "fiu":
        return f"values of type {given.dtype}"
    if given.shape != (size,):
        return f"an array of another shape, {list(given.shape)}"
    wrong = np.count_nonzero(~(given < np.inf))
    return f"{wrong} values that are NaN or infinite" if wrong else None


def penalised(x: np.ndarray, how: Sampling, ids: Sequence[int], prompt: int) -> np.ndarray:
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


def dry(ids: Sequence[int], how: Sampling) -> dict[int, float]:
    """What is taken from ids that would continue a repetition of what stands at the end ("don't
    repeat yourself"): multiplier * base^(length - allowed length).

    The length is how many ids before an earlier occurrence of the id equal the last ones, counted
    back to the last breaker at most; of several the longest. Breakers themselves go free.

    Source: p-e-w, github.com/oobabooga/text-generation-webui/pull/5677; the limit of the power is
    llama.cpp's: where float32 would overflow.
    """
    if not how.dry_multiplier:
        return {}
    steepness = float(log(np.array(how.dry_base)))
    return {
        id: how.dry_multiplier * _power((length - how.dry_allowed_length) * steepness)
        for id, length in _repetitions(ids, how).items()
        if id not in how.dry_breakers
    }


def _power(exponent: float) -> float:
    return float(exp(np.array(min(exponent, DRY_POWER))))


def _repetitions(ids: Sequence[int], how: Sampling) -> dict[int, int]:
    """Of each id that would continue a repetition the longest such length."""
    past = np.asarray(ids[len(ids) - how.dry_range if 0 < how.dry_range < len(ids) else 0 :])
    breaks = np.flatnonzero(np.isin(past, how.dry_breakers))
    most = len(past) - 1 - breaks[-1] if len(breaks) else len(past)
    ends, longest = np.arange(len(past)), {}  # what stands before past[end] is compared
    for length in range(1, most + 1):
        ends = ends[ends >= length]
        ends = ends[past[ends - length] == past[-length]]
        if not len(ends):
            break
        if length >= how.dry_allowed_length:
            longest |= dict.fromkeys(past[ends].tolist(), length)
    return longest


def unpacked(words: np.ndarray) -> np.ndarray:
    """bool [id] of a mask in words of 32 bits; the lowest bit of the first is id 0."""
    bits = np.unpackbits(words.astype("<u4", copy=False).view(np.uint8), bitorder="little")
    return bits.astype(bool)


def _masked(
    x: np.ndarray, how: Sampling, forbidden: Sequence[int], masks: Sequence[np.ndarray]
) -> np.ndarray:
    """-inf for what cannot come: not allowed, banned, forbidden here or hidden by a mask."""
    hidden = np.zeros(len(x), bool)
    if how.allowed_ids is not None:
        hidden[:] = True
        hidden[list(how.allowed_ids)] = False
    hidden[list(how.banned_ids) + list(forbidden)] = True
    for words in masks:
        hidden |= ~unpacked(words)[: len(x)]
    x = np.where(hidden, -np.inf, x)
    if x.max() == -np.inf:
        raise nothing_left(how, forbidden, masks)
    return x


def nothing_left(
    how: Sampling, forbidden: Sequence[int], masks: Sequence[np.ndarray]
) -> RequestError:
    """What together leaves no id."""
    reasons = {
        "allowed_ids": how.allowed_ids is not None,
        "banned_ids": how.banned_ids,
        "processors": how.processors,
        "min_tokens (no end id yet)": forbidden,
        "the constraint": len(masks),
    }
    names = [name for name, holds in reasons.items() if holds] or ["the logits"]
    return RequestError(f"{', '.join(names)} leave no id to choose", fix="allow at least one")


# ---- filters -----------------------------------------------------------------------------------


def _pick(x: np.ndarray, how: Sampling, *, position: int, seed: int, sample: int) -> int:
    ids, z = survivors(x, how, position=position, seed=seed, sample=sample)
    near = z > z.max() - REACH
    ids, z = ids[near], z[near]
    return _highest(z, ids, _uniform(ids, position=position, seed=seed, sample=sample))


def _highest(z: np.ndarray, ids: np.ndarray, u: np.ndarray) -> int:
    """The id with the highest z + noise; by numpy's log down to those within its error."""
    rough = z - np.log(-np.log(u))
    near = rough > rough.max() - 1e-9
    return int(ids[near][(z[near] + _gumbel(u[near])).argmax()])


def survivors(
    x: np.ndarray, how: Sampling, *, position: int = 0, seed: int = 0, sample: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, that the filters leave in their order, and their scaled scores z."""
    ids = np.flatnonzero(x > -np.inf)
    z = x[ids] - x.max()
    for name in how.order:
        if (
            name == "xtc"
            and coin(position=position, seed=seed, sample=sample) >= how.xtc_probability
        ):
            continue
        if name == "temperature":
            ids, z = _scaled(ids, z, how)
        else:
            kept = _KEPT[name](z, how)
            ids, z = ids[kept], z[kept]
    return ids, z


def _scaled(ids: np.ndarray, z: np.ndarray, how: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """By the temperature; at 0 the best alone is left, the lowest id of equals."""
    temperature = _temperature(z, how)
    if temperature == 0:
        return ids[[z.argmax()]], np.zeros(1)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf is right, and as good as greedy
        return ids, (z - z.max()) / temperature


def _temperature(z: np.ndarray, how: Sampling) -> float:
    """Dynamic: between T - range and T + range by the share of the greatest entropy there could be.

    Source: kalomaze, github.com/ggml-org/llama.cpp/pull/4972.
    """
    if how.dynatemp_range == 0 or len(z) == 1:
        return how.temperature
    total, mean = _moments(z, _weights(z))
    entropy = float(log(np.array(total / ONE))) + mean
    share = entropy / float(log(np.array(float(len(z)))))
    low, high = how.temperature - how.dynatemp_range, how.temperature + how.dynatemp_range
    if share <= 0:
        return low
    power = float(exp(np.array(how.dynatemp_exponent * float(log(np.array(share))))))
    return low + (high - low) * power


def _moments(z: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Sum of the weights, and their mean of -z: of exact integers."""
    some = weights > 0
    lost = np.rint(weights[some].astype(np.float64) * -z[some]).astype(np.uint64)
    total = float(weights.sum(dtype=np.uint64))
    return total, float(lost.sum(dtype=np.uint64)) / total


def coin(*, position: int, seed: int, sample: int) -> float:
    """XTC's number in (0, 1): counter word 3, which is 0 for the noise of ids, is 1."""
    counter = np.array([[0, position, sample, 1]], np.uint32)
    return (float(philox(counter, seed)[0, 0]) + 0.5) / 2.0**32


def _top_k(z: np.ndarray, how: Sampling) -> np.ndarray:
    """Places of the k best, the lowest ids of equals."""
    return np.sort(np.argsort(-z, kind="stable")[: how.top_k])


def _top_p(z: np.ndarray, how: Sampling) -> np.ndarray:
    """The smallest set by falling weight that reaches its share (arXiv:1904.09751)."""
    weights = _weights(z)
    return _reaching(np.argsort(-weights.astype(np.int64), kind="stable"), weights, how.top_p)


def _typical_p(z: np.ndarray, how: Sampling) -> np.ndarray:
    """The smallest set by how far -log p is from the entropy (arXiv:2202.00666).

    Both differ by the same constant from -z and from its mean. Ids of weight 0 never stay.
    """
    weights = _weights(z)
    _, mean = _moments(z, weights)
    order = np.argsort(np.abs(z + mean), kind="stable")
    return _reaching(order[weights[order] > 0], weights, how.typical_p)


def _reaching(order: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """The first places of `order` whose weights reach a share of all, ascending."""
    reached = np.cumsum(weights[order])
    goal = ceil(Fraction(share) * int(reached[-1]))
    last = np.searchsorted(reached, np.uint64(goal))  # a plain int would compare as floats
    return np.sort(order[: int(last) + 1])


def _min_p(z: np.ndarray, how: Sampling) -> np.ndarray:
    """What weighs at least a share of the best (arXiv:2407.01082)."""
    weights = _weights(z)
    return np.flatnonzero(weights >= ceil(Fraction(how.min_p) * int(weights.max())))


def _xtc(z: np.ndarray, how: Sampling) -> np.ndarray:
    """Leaves of the ids that reach the threshold only the least likely, the highest id of equals.

    Source: p-e-w, github.com/oobabooga/text-generation-webui/pull/6335.
    """
    weights = _weights(z)
    goal = max(1, ceil(Fraction(how.xtc_threshold) * int(weights.sum(dtype=np.uint64))))
    order = np.argsort(-weights.astype(np.int64), kind="stable")
    return np.sort(order[max(0, np.count_nonzero(weights >= goal) - 1) :])


_KEPT = {"top_k": _top_k, "typical_p": _typical_p, "top_p": _top_p, "min_p": _min_p, "xtc": _xtc}
