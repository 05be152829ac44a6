"""From logits to an id: a pure function of (logits, options, ids so far, position, sample).

`sampler_reference.py` defines every result; here C++ (csrc/sampler.h) finds the same bits without
looking at each id twice. Only where a processor acts do scores pass through Python.
"""

from collections.abc import Sequence

import numpy as np

from seriatim.engine import sampler_reference as reference
from seriatim.engine.sampling import Draw, Sampling, _native

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
        RequestError: no id is left, or a processor raised.
        NumericError: a processor returned something that is not finite or -inf.
    """
    if _SAMPLER is None:
        return reference.draw(
            logits, how, ids=ids, prompt=prompt, seed=seed, sample=sample, forbidden=forbidden,
            masks=masks, forced=forced, top=top,
        )  # fmt: skip
    id = best if how.easy and not forbidden and not masks else None
    if forced is not None:
        id = forced
    elif id is None:
        x = logits
        if how.processors:  # these see, and may change, every id
            x = reference.processed(logits.astype(np.float64), how, ids, prompt)
        id = _SAMPLER.pick(x, how.native, ids, prompt, seed, sample, forbidden, masks)
        if id < 0:
            raise reference.nothing_left(how, forbidden, masks)
    if top is None:
        return Draw(id)
    normaliser = float(log_sum(logits[None])[0])
    return Draw(id, float(logits[id]) - normaliser, likeliest(logits, top, normaliser))


def likeliest(logits: np.ndarray, count: int, normaliser: float) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest ids of a row [V] and their log-probabilities; equals by rising id.

    Args:
        logits: float32.
        count: how many.
        normaliser: the row's `log_sum`.
    """
    if count == 0:
        return ()
    if _SAMPLER is None:
        best = np.argsort(-logits.astype(np.float64), kind="stable")[:count].tolist()
    else:
        best = _SAMPLER.likeliest(logits, count)
    return tuple((id, float(logits[id]) - normaliser) for id in best)


def log_sum(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp along the last axis, from the exact integer sum: float64 [R] of [R, V].

    Args:
        logits: float32.
    """
    if _SAMPLER is None:
        return reference.log_sum(logits)
    return _SAMPLER.log_sum(np.ascontiguousarray(logits))
