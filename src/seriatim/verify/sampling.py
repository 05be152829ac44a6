"""Law 2, and what sampling means: each id against the definition, shares against probabilities.

The ids of every request that ran alone are computed again by `definition.py` from logits of one
scoring pass, which is another way through the engine than the one that drew them.
"""

from math import sqrt
from typing import Any

import numpy as np

from seriatim.engine import sampler
from seriatim.engine.sampling import Sampling
from seriatim.verify import definition
from seriatim.verify.lab import SAMPLINGS, SEED, Case, Lab
from seriatim.verify.report import Broken, Check, Seen

LOGPROB = 1e-6  # the engine's normaliser is a sum of integers, ours of floats
RARE = 5.2  # standard normal quantile of 1e-7: how seldom a right sampler fails one test
NEARLY = 2.326  # of 0.99: how surely a fault of the stated size is seen
MANY = 4_096  # ids of which shares are counted; `noise` and `filters` draw from all
SHARES = 16  # into which the vocabulary is cut: about equally likely


def noise(lab: Lab) -> Seen:
    """Ids of requests alone, of n samples and in company, by the definition's filters and noise."""
    cases = list(_drawn(lab))
    drawn = [(case, lab.alone(case)) for case in cases]
    equal, unsure = 0, 0
    for case, outcome in drawn:
        sure = _as_defined(lab, case, outcome.ids)
        equal, unsure = equal + sure, unsure + len(outcome.ids) - sure
    lab.company(cases, "in company")
    _many(lab)
    wrong = _blind(lab, drawn)
    power = f"{equal} ids; {unsure} too close to tell. Seen apart: {wrong}"
    return Seen(equal, power)


def _drawn(lab: Lab) -> list[Case]:
    """Every sampling; seeds with a high half; samples; ids that forbid, force, favour others."""
    most = 24 if lab.small else 6
    cases = [
        lab.case(name, 9 + 7 * i, most=most, stem=60 + i, sample=sample)
        for i, name in enumerate(SAMPLINGS)
        for sample in ((0, 3) if i < 2 and lab.small else (i,))
    ]
    few = sorted(set(lab.ids(6, stem=70)))
    history = {"allowed_ids": few, "frequency_penalty": 1.5, "presence_penalty": 0.5}
    more: dict[str, dict[str, Any]] = {
        "few ids that tire": history,
        "few ids, all seen": {"allowed_ids": few, "repetition_penalty": 4.0},
        "banned and favoured": {"banned_ids": few[:2], "logit_bias": {few[-1]: 2.5}},
        "forced, then free": {"forced_ids": lab.ids(5, stem=71)},
        "no repetition": {
            "allowed_ids": few[:3],
            "dry_multiplier": 1.5,
            "dry_allowed_length": 1,
            "dry_breakers": few[:1],
            "temperature": 1.5,
        },
        "no late repetition": {
            "allowed_ids": few[:3],
            "dry_multiplier": 0.8,
            "dry_allowed_length": 1,
            "dry_range": 9,
            "temperature": 1.5,
        },
        "no likely ids": {
            "typical_p": 0.8,
            "xtc_probability": 0.6,
            "xtc_threshold": 0.03,
            "dynatemp_range": 0.5,
            "filters": ("typical_p", "xtc", "temperature"),
        },
    }
    return cases + [
        lab.case("plain", 20 + i, most=most, stem=80 + i, options=how)
        for i, how in enumerate(more.values())
    ]


def _as_defined(lab: Lab, case: Case, ids: list[int]) -> int:
    """How many of the ids are certain by the definition, and equal to it."""
    prompt = len(case.ids)
    whole = [*case.ids, *ids]
    logits = lab.logits(whole)
    sure = 0
    for place in range(prompt, len(whole)):
        close = definition.CLOSE if lab.exact else lab.close
        choice = _choice(case, logits, whole, place, close=close)
        if choice.sure and choice.id != whole[place]:
            raise Broken(
                f"position {place}, by the definition", request=str(case),
                seed=case.options["seed"], sample=case.sample,
                expected=f"id {choice.id}", seen=f"id {whole[place]}",
            )  # fmt: skip
        sure += choice.sure
    return sure


def _choice(
    case: Case, logits: np.ndarray, whole: list[int], place: int, **other: Any
) -> definition.Choice:
    how = {**case.options, **other.pop("options", {})}
    facts = {"prompt": len(case.ids), "sample": case.sample, **other}
    return definition.choose(logits[place - 1], how, ids=whole[:place], **facts)


def _many(lab: Lab) -> None:
    """`n` samples are requests with samples 0 to n - 1, and differ."""
    how = {"max_tokens": 6, "seed": SEED, "ignore_end": True, "temperature": 3.0}
    ids = lab.ids(12, stem=90)
    got = [list(r.ids) for r in lab.private().generate(list(ids), n=4, **how).samples]
    for sample, seen in enumerate(got):
        _as_defined(lab, Case(f"sample {sample} of n = 4", ids, how, sample=sample), seen)


def _blind(lab: Lab, drawn: list[Any]) -> str:
    """How many of the ids would be others if the definition were slightly wrong: what is seen."""
    faults: dict[str, Any] = {
        "another row's noise": lambda case: {"sample": case.sample + 1},
        "32-bit seeds": lambda case: {"options": {"seed": SEED & 0xFFFFFFFF}},
        "history one id short": None,
    }
    count = dict.fromkeys(faults, 0)
    for case, outcome in drawn[:: 1 if lab.small else 5]:
        whole = [*case.ids, *outcome.ids]
        logits = lab.logits(whole)
        for place in range(len(case.ids), len(whole)):
            right = _choice(case, logits, whole, place).id
            for name, change in faults.items():
                if change is not None:
                    other = _choice(case, logits, whole, place, **change(case)).id
                else:
                    other = _short(case, logits, whole, place)
                count[name] += other != right
    return ", ".join(f"{name} {n}" for name, n in count.items())


def _short(case: Case, logits: np.ndarray, whole: list[int], place: int) -> int:
    """What penalties that miss the latest id would choose."""
    ids = [*whole[: place - 1], -1]  # the same position, another last id
    row = np.append(logits[place - 1], 0)
    banned = [*case.options.get("banned_ids", ()), len(row) - 1]
    how = {**case.options, "banned_ids": banned}
    return definition.choose(row, how, ids=ids, prompt=len(case.ids), sample=case.sample).id


# ---- filters, one draw at a time ---------------------------------------------------------------

FILTERS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.5},
    {"temperature": 3.0},
    *({"temperature": 2.0, "top_k": k} for k in (1, 2, 3, 7)),
    *({"temperature": 2.0, "top_p": p} for p in (0.05, 0.3, 0.6, 0.95)),
    *({"temperature": 2.0, "min_p": p} for p in (0.9, 0.5, 0.1)),
    {"temperature": 1.5, "top_k": 8, "top_p": 0.7, "min_p": 0.2},
    *({"temperature": 2.0, "typical_p": p} for p in (0.2, 0.9)),
    *({"temperature": 0.7, "xtc_probability": 0.5, "xtc_threshold": t} for t in (0.01, 0.04, 0.1)),
    {"temperature": 1.0, "dynatemp_range": 0.9, "dynatemp_exponent": 3.0},
    {"temperature": 3.0, "min_p": 0.3, "top_k": 4, "filters": ("min_p", "temperature", "top_k")},
    {"temperature": 3.0, "top_p": 0.5, "typical_p": 0.7, "dynatemp_range": 2.0,
     "filters": ("top_p", "typical_p", "temperature")},
    {"temperature": 0, "xtc_probability": 0.5, "filters": ("xtc", "temperature")},
]  # fmt: skip


def filters(lab: Lab) -> Seen:
    """Draws at places of the model's own logits, where a filter's edge is often the one drawn."""
    logits = _rows(lab)
    each = 400 if lab.thorough else 100 if lab.model.vocab_size < 10_000 else 20
    equal, edges = 0, 0
    for number, how in enumerate(FILTERS):
        sampling = Sampling(**how)
        for i in range(each):
            row, seed = logits[i % len(logits)], SEED + 1_000 * number + i
            choice = definition.choose(row, {**how, "seed": seed}, ids=range(i + 5), prompt=i + 5)
            seen = _draw(row, sampling, position=i + 5, seed=seed)
            if choice.sure and seen != choice.id:
                raise Broken(
                    f"a draw at position {i + 5}", options=how, seed=seed, logits=i % len(logits),
                    expected=f"id {choice.id}", seen=f"id {seen}",
                )  # fmt: skip
            equal += choice.sure
            edges += choice.id == _last(row, how)
    return Seen(equal, f"{equal:,} draws, {edges} of them the last id that a filter leaves")


def _rows(lab: Lab) -> np.ndarray:
    """Logits at a few places, and one row that is nearly flat."""
    logits = lab.logits(lab.ids(8, stem=91))
    return np.ascontiguousarray(np.concatenate([logits[2:], logits[-1:] * np.float32(0.1)]))


def _draw(row: np.ndarray, how: Sampling, *, position: int, seed: int, sample: int = 0) -> int:
    ids = range(position)
    return sampler.draw(row, how, ids=ids, prompt=position, seed=seed, sample=sample, top=None).id


def _last(row: np.ndarray, how: dict[str, Any]) -> int:
    """The least likely id that the filters leave."""
    if not how.get("temperature"):
        return -1
    kept, z, _ = definition.survivors(row.astype(np.float64), how)
    return int(kept[z.argmin()]) if len(kept) < len(row) else -1


# ---- shares ------------------------------------------------------------------------------------


def distribution(lab: Lab) -> Seen:
    """Chi-square of many draws, over seeds, samples and positions, against probabilities."""
    row = _rows(lab)[0, :MANY].copy()
    count = 60_000 if lab.thorough else 6_000
    worst, smallest, draws = 0.0, 1.0, 0
    for how in ({"temperature": 1.0}, {"temperature": 1.7, "top_p": 0.9}):
        chance = definition.probabilities(row, how)
        share = _shares(chance)
        for what in ("seed", "sample", "position"):
            seen = _tally(row, how, what, count, share)
            expected = np.bincount(share, chance) * count
            statistic, limit = _chi_square(seen, expected)
            if statistic > limit:
                raise Broken(
                    f"shares of {count:,} draws, one {what} each", options=how,
                    expected=f"chi-square up to {limit:.1f}", seen=f"{statistic:.1f}",
                    shares=[f"{s / count:.4f} for {e / count:.4f}" for s, e in zip(seen, expected,
                                                                               strict=True)],
                )  # fmt: skip
            worst, draws = max(worst, statistic / limit), draws + count
            smallest = min(smallest, _seen_from(len(expected), count, limit))
    return Seen(
        draws,
        f"a total variation of {100 * smallest:.1f} % in one of 6 tests with 99 %; a right sampler "
        f"fails in 1 of 10^6 runs; worst at {worst:.2f} of its limit",
    )


def _shares(chance: np.ndarray) -> np.ndarray:
    """Which of some about equally likely shares each id belongs to."""
    order = np.argsort(-chance, kind="stable")
    middle = np.cumsum(chance[order]) - chance[order] / 2
    share = np.zeros(len(chance), np.int64)
    share[order] = np.minimum(middle * SHARES, SHARES - 1).astype(np.int64)
    return np.unique(share, return_inverse=True)[1]


def _tally(
    row: np.ndarray, how: dict[str, Any], what: str, count: int, share: np.ndarray
) -> np.ndarray:
    """How often each share was drawn; one of seed, sample and position counts up."""
    at = {"seed": SEED, "sample": 1, "position": 7}
    sampling = Sampling(**how)  # made once: its form for C++ takes longer than a draw
    ids = [_draw(row, sampling, **{**at, what: at[what] + i}) for i in range(count)]
    return np.bincount(share[ids], minlength=share.max() + 1)


def _chi_square(seen: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Pearson's statistic and what it exceeds once in 10^7 (Wilson and Hilferty 1931)."""
    likely = expected > 0
    if seen[~likely].any():
        return float("inf"), 0.0
    seen, expected = seen[likely], expected[likely]
    free = max(len(seen) - 1, 1)
    part = 2 / (9 * free)
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return statistic, free * (1 - part + RARE * sqrt(part)) ** 3


def _seen_from(shares: int, count: int, limit: float) -> float:
    """The total variation that is seen with 99 %.

    A difference d has a noncentrality of at least count (2 d)^2; noncentral chi-square is taken as
    normal, its mean f + l, its variance 2 (f + 2 l).
    """
    free, far = max(shares - 1, 1), limit
    for _ in range(50):  # the fixed point of: mean - 2.326 deviations = limit
        far = limit - free + NEARLY * sqrt(2 * (free + 2 * far))
    return sqrt(far / count) / 2


# ---- log-probabilities -------------------------------------------------------------------------


def logprobs(lab: Lab) -> Seen:
    """What `generate` reports, what `score` says of the same ids, and log-softmax of the logits."""
    equal = 0
    for case in _drawn(lab)[:: 2 if lab.small else 4]:
        outcome = lab.alone(case)
        ids, after = list(case.ids), outcome.ids
        own = lab.private()
        scored = own.score(after, given=ids).logprobs
        exact = definition.log_softmax(lab.logits([*ids, *after]))
        for i, (said, other) in enumerate(zip(outcome.logprobs, scored, strict=True)):
            place = len(ids) + i
            own_value = float(exact[place - 1, after[i]])
            near = abs(said - own_value) <= LOGPROB + lab.close * max(1.0, abs(said))
            if (said != other and lab.exact) or not near:
                raise Broken(
                    f"log-probability at position {place}", request=str(case),
                    expected=f"{own_value!r}, and that score says the same",
                    seen=f"{said!r}; score {other!r}",
                )  # fmt: skip
            _likeliest(lab, case, place, outcome.top[i], exact[place - 1])
            equal += 4
        equal += _prompt(lab, ids)
    equal += _beyond(lab)
    return Seen(equal, f"any bit between generate and score; {LOGPROB:g} of log-softmax in float64")


def _likeliest(lab: Lab, case: Case, place: int, top: Any, exact: np.ndarray) -> None:
    """The alternatives are the likeliest ids, with their own log-probabilities."""
    limit = LOGPROB + lab.close
    best = np.sort(exact)[::-1][: len(top)]
    if any(
        abs(p - exact[id]) > limit or abs(p - b) > limit
        for (id, p), b in zip(top, best, strict=True)
    ):
        raise Broken(
            f"likeliest ids at position {place}", request=str(case),
            expected=[(int(i), float(exact[i])) for i in np.argsort(-exact)[: len(top)]],
            seen=list(top),
        )  # fmt: skip


def _prompt(lab: Lab, ids: list[int]) -> int:
    """Log-probabilities of a prompt."""
    if len(ids) < 2:
        return 0
    said = lab.private().generate(ids, max_tokens=1, seed=0, prompt_logprobs=True).prompt_logprobs
    exact = definition.log_softmax(lab.logits(ids))
    for i, value in enumerate(said[1:], 1):
        own = float(exact[i - 1, ids[i]])
        if not abs(value - own) <= LOGPROB + lab.close * max(1.0, abs(own)):
            raise Broken(f"prompt_logprobs[{i}] of {len(ids)} ids", expected=own, seen=value)
    return len(ids) - 1


def _beyond(lab: Lab) -> int:
    """More ids than a context: the first window whole, then the second half of each next."""
    size = min(32, lab.model.context // 2 * 2)
    ids = list(lab.ids(2 * size + 7, stem=92))
    if lab.model.start:
        ids[0] = (lab.model.start[0] + 1) % lab.model.vocab_size  # else it leads each window
    ends = [size, *range(size + size // 2, len(ids), size // 2), len(ids)]
    expected: list[float] = []
    for end in ends:
        window, first = ids[end - size : end], len(expected) + 1 - (end - size)
        rows = definition.log_softmax(lab.logits(window))
        expected += [float(rows[i - 1, window[i]]) for i in range(first, size)]
    score = lab.private(context=size).score(ids)
    for i, (own, said) in enumerate(zip(expected, score.logprobs, strict=True), 1):
        if not abs(said - own) <= LOGPROB + lab.close * max(1.0, abs(own)):
            raise Broken(f"score: id {i} of {len(ids)} in a context of {size}", expected=own,
                         seen=said)  # fmt: skip
    if not abs(score.nats + sum(expected)) <= len(ids) * (LOGPROB + lab.close) * 10:
        raise Broken("score: nats", expected=-sum(expected), seen=score.nats)
    return len(expected) + 1


HELP = "do not rely on seeds here, and report this with the table"
CHECKS = [
    Check("noise", "each sampled id and the definition: Philox of (seed, sample, position, id), "
          "filters and penalties written a second time", HELP, noise),
    Check("filters", "draws at a filter's edge and the definition", HELP, filters),
    Check("distribution", "shares of many draws and exact probabilities", HELP, distribution),
    Check("log-probabilities", "generate, score and log-softmax in float64",
          "report this with the table; take them from model.logits meanwhile", logprobs),
]  # fmt: skip
