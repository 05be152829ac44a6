"""The sampler's definition once more, from its papers: what the engine's is held against.

Deliberately no import of the engine or of `kernels.mathematics`: numpy's logarithm, Philox in
Python's integers of 64 bits, filters by float sums. Where such a sum lies too close to its limit
to tell, or two scores too close to each other, it says so instead of deciding.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CLOSE = 2e-7  # relative: 128 k of the engine's integer weights are together off by 6e-8
REACH = 26.2  # noise is at least -log(33 log 2) = -3.14 and at most 33 log 2 = 22.9
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Choice(NamedTuple):
    """The id to be sampled, and whether it is certain."""

    id: int
    sure: bool


def philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 (Salmon and others, SC11, section 3.3): uint64 [N, 4] words below 2^32."""
    c = [column.astype(np.uint64) for column in np.asarray(counters).T]
    k = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        first, second = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]
        c = [
            (second >> HALF) ^ c[1] ^ np.uint64(k[0]),
            second & LOW,
            (first >> HALF) ^ c[3] ^ np.uint64(k[1]),
            first & LOW,
        ]
        k = [(k[0] + WEYL[0]) & 0xFFFFFFFF, (k[1] + WEYL[1]) & 0xFFFFFFFF]
    return np.stack(c, 1)


def gumbel(ids: np.ndarray, *, position: int, seed: int, sample: int) -> np.ndarray:
    """Noise of each id: its word of counter (id / 4, position, sample, 0) (contracts.md, 10)."""
    counters = np.zeros((len(ids), 4), np.uint64)
    counters[:, 0], counters[:, 1], counters[:, 2] = ids >> 2, position, sample
    words = philox(counters, seed)[np.arange(len(ids)), ids & 3]
    return -np.log(-np.log((words.astype(np.float64) + 0.5) * 2.0**-32))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, along the last axis."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def choose(
    logits: np.ndarray,
    how: Mapping[str, Any],
    *,
    ids: Sequence[int],
    prompt: int,
    sample: int = 0,
    forbidden: Sequence[int] = (),
    close: float = CLOSE,
) -> Choice:
    """The id at position `len(ids)`.

    Args:
        logits: [vocabulary].
        how: options of a request, by their names, with its seed.
        ids: what comes before, of which `prompt` were given.
        sample: which of n.
        forbidden: ids that may not come here.
        close: how far the logits may be off.
    """
    done = len(ids) - prompt
    if done < len(how.get("forced_ids", ())):
        return Choice(how["forced_ids"][done], True)
    x = _masked(_penalised(logits.astype(np.float64), how, ids, prompt), how, forbidden)
    temperature = how.get("temperature", 1.0)
    if temperature == 0:  # the lowest id of equals
        return Choice(int(x.argmax()), close <= CLOSE or _lead(x) > close)
    z = (x - x.max()) / temperature
    kept, sure = survivors(z, how, close)
    kept = kept[z[kept] > -REACH]
    scores = z[kept] + gumbel(kept, position=len(ids), seed=how["seed"], sample=sample)
    return Choice(int(kept[scores.argmax()]), bool(sure and _lead(scores) > close / temperature))


def _lead(scores: np.ndarray) -> float:
    """How far the best is above the second."""
    return float(np.diff(np.sort(scores)[-2:])[0]) if len(scores) > 1 else np.inf


def survivors(
    z: np.ndarray, how: Mapping[str, Any], close: float = CLOSE
) -> tuple[np.ndarray, bool]:
    """Ids that the filters leave, ascending, and whether that is certain; z has maximum 0."""
    ids = np.flatnonzero(z > -np.inf)
    order = ids[np.lexsort((ids, -z[ids]))]  # falling, equals by rising id
    if how.get("top_k", 0):
        order = order[: how["top_k"]]
    sure, weight = True, np.exp(z[order])
    if how.get("top_p", 1.0) < 1:
        share = np.cumsum(weight) / weight.sum()
        sure = bool((abs(share - how["top_p"]) > close).all())
        order = order[: int((share < how["top_p"]).sum()) + 1]
    if how.get("min_p", 0.0):
        share = np.exp(z[order] - z[order[0]])
        sure = sure and bool((abs(share - how["min_p"]) > close).all())
        order = order[share >= how["min_p"]]
    return np.sort(order), sure


def probabilities(logits: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """What an id's chance is after temperature and filters: float64 [vocabulary]."""
    z = (logits.astype(np.float64) - logits.max()) / how.get("temperature", 1.0)
    kept, _ = survivors(z, how)
    chance = np.zeros(len(z))
    chance[kept] = np.exp(z[kept])
    return chance / chance.sum()


def _penalised(
    x: np.ndarray, how: Mapping[str, Any], ids: Sequence[int], prompt: int
) -> np.ndarray:
    """Id by id: repetition over all ids, presence and frequency over the new ones, then bias."""
    x, by = x.copy(), how.get("repetition_penalty", 1.0)
    for id in set(ids) if by != 1 else ():
        x[id] = x[id] / by if x[id] > 0 else x[id] * by
    for id, count in Counter(ids[prompt:]).items():
        x[id] -= how.get("presence_penalty", 0.0) + how.get("frequency_penalty", 0.0) * count
    for id, bias in how.get("logit_bias", {}).items():
        x[id] += bias
    return x


def _masked(x: np.ndarray, how: Mapping[str, Any], forbidden: Sequence[int]) -> np.ndarray:
    if how.get("allowed_ids") is not None:
        hidden = np.full_like(x, -np.inf)
        hidden[list(how["allowed_ids"])] = 0
        x = x + hidden
    x[[*how.get("banned_ids", ()), *forbidden]] = -np.inf
    return x
