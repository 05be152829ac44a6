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
    groups, own = np.unique(ids >> 2, return_inverse=True)
    counters = np.zeros((len(groups), 4), np.uint64)
    counters[:, 0], counters[:, 1], counters[:, 2] = groups, position, sample
    words = philox(counters, seed)[own, ids & 3]
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
    x = _penalised(logits.astype(np.float64), how, ids, prompt)
    x = _masked(x, how, forbidden)
    facts = {"position": len(ids), "seed": how["seed"], "sample": sample}
    coin = _coin(**facts) if "xtc_probability" in how else 1.0
    kept, z, sure = survivors(x, how, close, coin=coin)
    kept, z = kept[z > -REACH], z[z > -REACH]
    if len(kept) == 1:
        return Choice(int(kept[0]), sure)
    scores = z + gumbel(kept, **facts)
    temperature = how.get("temperature", 1.0) - how.get("dynatemp_range", 0.0)
    return Choice(int(kept[scores.argmax()]), sure and _lead(scores) * temperature > close)


def _lead(scores: np.ndarray) -> float:
    """How far the best is above the second."""
    return float(np.diff(np.sort(scores)[-2:])[0]) if len(scores) > 1 else np.inf


def survivors(
    x: np.ndarray, how: Mapping[str, Any], close: float = CLOSE, *, coin: float = 1.0
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Ids that the filters leave, ascending, their scaled scores, and whether that is certain.

    Scores are relative to the best. `coin` in (0, 1) is XTC's.
    """
    ids = np.flatnonzero(x > -np.inf)
    ids = ids[np.argsort(-x[ids], kind="stable")]  # falling, equals by rising id
    z, sure = x[ids], True
    order = how.get("filters", tuple(FILTERS))
    for name in order if "temperature" in order else ("temperature", *order):
        if name == "temperature":
            best = len(z) > 1 and not how.get("temperature", 1.0)
            sure = sure and (not best or close <= CLOSE or z[0] - z[1] > close)
            z = (z - z[0]) / _temperature(z - z[0], how) if not best else z - z[0]
            ids, z = (ids[:1], z[:1]) if best else (ids, z)
        elif name in how or (name == "xtc" and coin < how.get("xtc_probability", 0.0)):
            kept, certain = FILTERS[name](z - z[0], how, close)
            ids, z, sure = ids[kept], z[kept], sure and certain
    rising = np.argsort(ids)
    return ids[rising], (z - z[0])[rising], bool(sure)


def _temperature(z: np.ndarray, how: Mapping[str, Any]) -> float:
    """T - range + 2 range (entropy / log n)^exponent (llama.cpp, pull request 4972)."""
    middle, reach = how.get("temperature", 1.0), how.get("dynatemp_range", 0.0)
    if len(z) < 2 or not reach:
        return middle
    p = np.exp(z) / np.exp(z).sum()
    entropy = -float((p[p > 0] * np.log(p[p > 0])).sum())
    return (
        middle - reach + 2 * reach * (entropy / np.log(len(z))) ** how.get("dynatemp_exponent", 1.0)
    )


# Each takes falling scores, the best 0: the places it keeps, and whether they are certain.
Kept = tuple[Any, bool]


def _top_k(z: np.ndarray, how: Mapping[str, Any], close: float) -> Kept:
    return slice(how["top_k"] or None), True


def _typical_p(z: np.ndarray, how: Mapping[str, Any], close: float) -> Kept:
    """By the distance of -log p from the entropy (arXiv:2202.00666) until the share is reached."""
    logp = log_softmax(z)
    far = abs(-logp + (np.exp(logp) * logp).sum())
    order = np.argsort(far, kind="stable")
    kept, sure = _until(np.exp(logp[order]), how["typical_p"], close)
    edge = far[order[kept.stop - 1 : kept.stop + 1]]
    return np.sort(order[kept]), sure and (len(edge) < 2 or edge[1] - edge[0] > close)


def _top_p(z: np.ndarray, how: Mapping[str, Any], close: float) -> Kept:
    """The likeliest until the share is reached (arXiv:1904.09751)."""
    return _until(np.exp(z), how["top_p"], close)


def _until(weight: np.ndarray, goal: float, close: float) -> tuple[slice, bool]:
    share = np.cumsum(weight) / weight.sum()
    return slice(int((share < goal).sum()) + 1), goal == 1 or bool(
        (abs(share - goal) > close).all()
    )


def _min_p(z: np.ndarray, how: Mapping[str, Any], close: float) -> Kept:
    """At least a share of the best (arXiv:2407.01082)."""
    share = np.exp(z)
    return share >= how["min_p"], not how["min_p"] or bool(
        (abs(share - how["min_p"]) > close).all()
    )


def _xtc(z: np.ndarray, how: Mapping[str, Any], close: float) -> Kept:
    """Of those that reach the threshold the last, and all others (text-generation-webui, 6335)."""
    share, goal = np.exp(log_softmax(z)), how.get("xtc_threshold", 0.1)
    first = max(0, int((share >= goal).sum()) - 1)
    return slice(first, None), bool((abs(share - goal) > close).all())


FILTERS = {  # in the order of the definition
    "temperature": None, "top_k": _top_k, "typical_p": _typical_p, "top_p": _top_p,
    "min_p": _min_p, "xtc": _xtc,
}  # fmt: skip


def _coin(*, position: int, seed: int, sample: int) -> float:
    """XTC's number: word 0 of counter (0, position, sample, 1), which no id's noise uses."""
    word = int(philox(np.array([[0, position, sample, 1]], np.uint64), seed)[0, 0])
    return (word + 0.5) * 2.0**-32


def probabilities(logits: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """What an id's chance is after temperature and filters: float64 [vocabulary]."""
    kept, z, _ = survivors(logits.astype(np.float64), how)
    chance = np.zeros(len(logits))
    chance[kept] = np.exp(z)
    return chance / chance.sum()


def _penalised(
    x: np.ndarray, how: Mapping[str, Any], ids: Sequence[int], prompt: int
) -> np.ndarray:
    """Id by id: repetition over all ids, presence and frequency over the new ones, DRY, bias."""
    x, by = x.copy(), how.get("repetition_penalty", 1.0)
    for id in set(ids) if by != 1 else ():
        x[id] = x[id] / by if x[id] > 0 else x[id] * by
    for id, count in Counter(ids[prompt:]).items():
        x[id] -= how.get("presence_penalty", 0.0) + how.get("frequency_penalty", 0.0) * count
    for id, length in _repeated(ids, how).items() if how.get("dry_multiplier") else ():
        power = how.get("dry_base", 1.75) ** (length - how.get("dry_allowed_length", 2))
        x[id] -= how["dry_multiplier"] * power
    for id, bias in how.get("logit_bias", {}).items():
        x[id] += bias
    return x


def _repeated(ids: Sequence[int], how: Mapping[str, Any]) -> dict[int, int]:
    """DRY: of each id that came before, how many ids before it are the last ones now; too few: not.

    Compared one by one, back to a breaker or the range (text-generation-webui, 5677).
    """
    past, breakers = list(ids)[-how.get("dry_range", 0) :], how.get("dry_breakers", ())
    longest: dict[int, int] = {}
    for place, id in enumerate(past):
        n = 0
        while n < place and past[place - 1 - n] == past[-1 - n] and past[-1 - n] not in breakers:
            n += 1
        if n >= how.get("dry_allowed_length", 2) and id not in breakers:
            longest[id] = max(n, longest.get(id, 0))
    return longest


def _masked(x: np.ndarray, how: Mapping[str, Any], forbidden: Sequence[int]) -> np.ndarray:
    if how.get("allowed_ids") is not None:
        hidden = np.full_like(x, -np.inf)
        hidden[list(how["allowed_ids"])] = 0
        x = x + hidden
    x[[*how.get("banned_ids", ()), *forbidden]] = -np.inf
    return x
