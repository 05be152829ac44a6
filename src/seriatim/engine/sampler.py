"""From logits to an id: a pure function of (logits, options, ids so far, position, sample).

`sampler_reference.py` defines every result; here C++ (csrc/sampler.h) finds the same bits without
looking at each id twice. Only ids that penalties, biases or masks touch pass through Python.
"""

from collections.abc import Sequence

import numpy as np

from seriatim.engine import sampler_reference as reference
from seriatim.engine.sampling import Draw, Sampling

try:
    from seriatim import _native
except ImportError:  # not built: the definition computes
    _native = None

_SAMPLER = _native.Sampler() if _native else None


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
    best: int | None = None,
) -> Draw:
    """Sample the id at position `len(ids)`.

    Args:
        logits: float32 [vocabulary], finite, contiguous.
        how: penalties, filters, temperature.
        ids: everything before the position.
        prompt: how many of them were given.
        seed: 64 bits.
        sample: which of `n`.
        forbidden: ids that cannot come here (end ids before `min_tokens`).
        masks: each of them must allow an id: uint32 words, bit i % 32 of word i // 32 for id i.
        forced: the id to take, with its real log-probability.
        top: how many of the likeliest ids to report; None: no log-probabilities at all.
        best: the first id with the largest logit, where it is known.

    Raises:
        RequestError: no id is left.
        NumericError: a processor returned something that is not finite or -inf.
    """
    if _SAMPLER is None:
        return reference.draw(
            logits, how, ids=ids, prompt=prompt, seed=seed, sample=sample, forbidden=forbidden,
            masks=masks, forced=forced, top=top,
        )  # fmt: skip
    how = reference.guided(how, masks, len(logits))
    untouched = how.plain and how.allowed_ids is None and not (how.banned_ids or forbidden)
    id = best if forced is None and how.temperature == 0 and untouched else forced
    if id is None:
        scores, replaced = (logits, {}) if how.plain else _scores(logits, how, ids, prompt)
        if how.banned_ids or forbidden:
            replaced |= dict.fromkeys((*how.banned_ids, *forbidden), -np.inf)
        id = _SAMPLER.pick(
            scores,
            list(replaced),
            list(replaced.values()),
            how.allowed_ids,
            temperature=how.temperature,
            top_k=min(how.top_k, len(logits)),  # an int64 there
            top_p=how.top_p,
            min_p=how.min_p,
            seed=seed,
            position=len(ids),
            sample=sample,
        )
        if id < 0:
            raise reference.nothing_left()
    if top is None:
        return Draw(id)
    normaliser = float(log_sum(logits[None])[0])
    listed = ((i, float(logits[i]) - normaliser) for i in _SAMPLER.likeliest(logits, top))
    return Draw(id, float(logits[id]) - normaliser, tuple(listed))


def log_sum(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp along the last axis, from the exact integer sum: float64 [R] of [R, V].

    Args:
        logits: float32.
    """
    if _SAMPLER is None:
        return reference.log_sum(logits)
    return _SAMPLER.log_sum(np.ascontiguousarray(logits))


def _scores(
    logits: np.ndarray, how: Sampling, ids: Sequence[int], prompt: int
) -> tuple[np.ndarray, dict[int, float]]:
    """A row of logits, and what stands for some of its ids: the definition, on those alone."""
    if how.processors:  # these see, and may change, every id
        return reference.processed(logits.astype(np.float64), how, ids, prompt), {}
    first = 0 if how.repetition_penalty != 1.0 else prompt
    past, biased = ids[first:], [id for id, _ in how.logit_bias]
    touched, place = np.unique(np.array([*past, *biased], np.int64), return_inverse=True)
    x = logits[touched].astype(np.float64)
    x = reference.penalised(x, how, place[: len(past)], max(0, prompt - first))
    for at, (_, bias) in zip(place[len(past) :], how.logit_bias, strict=True):
        x[at] += bias
    return logits, dict(zip(touched.tolist(), x.tolist(), strict=True))
