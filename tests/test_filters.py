"""Typical, DRY, XTC, dynamic temperature and the order of filters against other implementations:
published cases of llama.cpp, the classes of transformers, and each definition in exact arithmetic.
"""

import itertools
from dataclasses import replace
from fractions import Fraction
from math import ceil, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim.engine.options import parse
from seriatim.engine.sampler import draw
from seriatim.engine.sampler_reference import _weights, coin, dry, penalised, survivors
from seriatim.engine.sampling import FILTERS, Sampling
from seriatim.errors import RequestError

INF = float("inf")
FOUR = [0.1, 0.2, 0.3, 0.4]


def shares_of(x: np.ndarray, how: Sampling, **facts) -> dict[int, float]:
    """The probability of each id that is left."""
    ids, z = survivors(x, how, **facts)
    p = np.exp(z) / np.exp(z).sum()
    return dict(zip(ids.tolist(), p.tolist(), strict=True))


def log_of(p: list[float]) -> np.ndarray:
    return np.log(np.array(p))


# ---- llama.cpp, tests/test-sampling.cpp (MIT): inputs and expected probabilities ---------------


@pytest.mark.parametrize(
    "how, expected",
    [
        (dict(temperature=1.0), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
        (dict(temperature=0.0), {3: 1.0}),
        (dict(top_k=1), {3: 1.0}),
        (dict(top_k=3), {1: 0.22222, 2: 0.33333, 3: 0.44444}),
        (dict(top_k=4), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
        (dict(top_p=0.699), {2: 0.428571, 3: 0.571429}),  # 0.7 there, of float32
        (dict(top_p=0.8), {1: 0.22222, 2: 0.33333, 3: 0.44444}),
        (dict(min_p=0.24), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
        (dict(min_p=0.26), {1: 0.2 / 0.9, 2: 0.3 / 0.9, 3: 0.4 / 0.9}),
        (dict(min_p=0.49), {1: 0.2 / 0.9, 2: 0.3 / 0.9, 3: 0.4 / 0.9}),
        (dict(min_p=0.51), {2: 0.3 / 0.7, 3: 0.4 / 0.7}),
        (dict(min_p=0.74), {2: 0.3 / 0.7, 3: 0.4 / 0.7}),
        (dict(min_p=0.76), {3: 1.0}),
        (dict(min_p=1.00), {3: 1.0}),
    ],
)
def test_temperature_top_k_top_p_and_min_p_are_those_of_llama_cpp(how, expected):
    assert shares_of(log_of(FOUR), Sampling(**how)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "threshold, left",
    [(0.09, [3]), (0.19, [2, 3]), (0.29, [1, 2, 3]), (0.39, [0, 1, 2, 3]), (0.6, [0, 1, 2, 3])],
)
def test_xtc_is_that_of_llama_cpp(threshold, left):
    how = Sampling(xtc_probability=1.0, xtc_threshold=threshold)
    assert list(shares_of(log_of([0.4, 0.3, 0.2, 0.1]), how)) == left


@pytest.mark.parametrize(
    "p, left", [([0.97, 0.01, 0.01, 0.01], [0]), ([0.4, 0.2, 0.2, 0.2], [1, 2, 3])]
)
def test_typical_is_that_of_llama_cpp(p, left):
    assert list(shares_of(log_of(p), Sampling(typical_p=0.5))) == left


@pytest.mark.parametrize(
    "ids, how, expected",
    [
        ([0], (50.0, 0, 0), [0, 0.25, 0.25, 0.25, 0.25]),
        ([0, 1, 2], (50.0, 0, 0), [0, 0, 0, 0.5, 0.5]),
        ([0, 1, 2, 0, 0], (50.0, 0, 0), [0, 0, 0, 0.5, 0.5]),
        ([0], (1.0, 5.0, 5.0), [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ([0, 1, 2], (1.0, 5.0, 5.0), [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ([0, 1, 2, 0, 0], (1.0, 5.0, 5.0), [0.0, 0.000023, 0.000023, 0.499977, 0.499977]),
    ],
)
def test_penalties_are_those_of_llama_cpp(ids, how, expected):
    x = penalised(log_of([0.2] * 5), Sampling(*how), ids, prompt=0)
    assert list(shares_of(x, Sampling()).values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "size, ids, multiplier, allowed, breakers, expected",
    [
        (4, [0, 1], 1.0, 2, (), [0.25] * 4),
        (4, [0, 1, 2, 0, 1], 1.0, 2, (), [0.296923, 0.296923, 0.109232, 0.296923]),
        (5, [0, 1, 3, 4, 0, 1], 1.0, 2, (3,), [0.2] * 5),
        (5, [0, 1, 2, 0, 1], 2.0, 2, (), [0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
        (5, [0, 1, 2, 3, 4, 0, 1], 1.0, 4, (), [0.2] * 5),
    ],
)
def test_dry_is_that_of_llama_cpp(size, ids, multiplier, allowed, breakers, expected):
    how = Sampling(
        dry_multiplier=multiplier, dry_base=1.1, dry_allowed_length=allowed, dry_breakers=breakers
    )
    x = log_of([1 / size] * size)
    for id, penalty in dry(ids, how).items():
        x[id] -= penalty
    assert list(shares_of(x, Sampling()).values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "how, expected",
    [
        (dict(temperature=1.0), [0.1, 0.2, 0.3, 0.4]),
        # Entropy 1.27985 of at most 1.38629: 0.4 + 1.2 * 0.92322^2 = 1.42280.
        (
            dict(temperature=1.0, dynatemp_range=0.6, dynatemp_exponent=2.0),
            [p / sum(q ** (1 / 1.4228) for q in FOUR) for p in (q ** (1 / 1.4228) for q in FOUR)],
        ),
    ],
)
def test_dynamic_temperature_follows_the_entropy(how, expected):
    seen = list(shares_of(log_of(FOUR), Sampling(**how)).values())
    assert seen == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("order", [p for n in (1, 2, 3) for p in itertools.permutations("kpm", n)])
def test_queues_of_filters_leave_what_those_of_llama_cpp_leave(order):
    """Logits log(id) of 10,000 ids; each filter told in whole numbers, as its test does."""
    size, k, p, m = 10_000, 100, 0.8, 0.1
    names = {"k": "top_k", "p": "top_p", "m": "min_p"}
    values = {"k": k, "p": p, "m": m}
    first, last = 0, size - 1
    for name in order:
        if name == "k":
            first = max(first, size - k)
        elif name == "m":
            first = max(first, ceil(Fraction(m) * last))
        else:
            goal, reached = Fraction(p) * sum(range(first, size)), 0
            first = next(i for i in range(last, -1, -1) if (reached := reached + i) >= goal)
    with np.errstate(divide="ignore"):
        x = np.log(np.arange(size, dtype=np.float64))
    how = {names[name]: values[name] for name in order}
    left = survivors(x, Sampling(**how, filters=tuple(names[name] for name in order)))[0]
    assert left.tolist() == list(range(first, size))


# ---- transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "warper, how",
    [
        (lambda t: t.TypicalLogitsWarper(0.3), dict(typical_p=0.3)),
        (lambda t: t.TypicalLogitsWarper(0.9), dict(typical_p=0.9)),
        (lambda t: t.TopPLogitsWarper(0.7), dict(top_p=0.7)),
        (lambda t: t.TopKLogitsWarper(9), dict(top_k=9)),
        (lambda t: t.MinPLogitsWarper(0.05), dict(min_p=0.05)),
        (lambda t: t.TemperatureLogitsWarper(0.6), dict(temperature=0.6)),
    ],
)
def test_each_filter_leaves_what_transformers_leaves(warper, how):
    torch = pytest.importorskip("torch")
    process = warper(pytest.importorskip("transformers.generation.logits_process"))
    for seed in range(20):
        x = np.random.default_rng(seed).normal(0, 2, 300)
        theirs = process(None, torch.from_numpy(x)[None])[0].softmax(-1).numpy()
        ours = shares_of(x, Sampling(**how))
        assert list(ours) == np.flatnonzero(theirs).tolist()
        assert list(ours.values()) == pytest.approx(theirs[theirs > 0].tolist(), rel=1e-6)


# ---- definitions in exact arithmetic -----------------------------------------------------------

logits = st.lists(
    st.one_of(st.floats(-20, 20), st.sampled_from([0.0, 0.0, 1.0, -3.0, -INF])),
    min_size=1,
    max_size=24,
).filter(lambda x: max(x) > -INF)
shares = st.one_of(st.floats(1e-9, 1), st.sampled_from([0.5, 0.9, 1 - 2**-53]))


def whole(x: list[float]) -> dict[int, int]:
    """The integer weight of each id that is left."""
    z = np.array(x) - max(x)
    return {i: int(w) for i, w in enumerate(_weights(z)) if x[i] > -INF}


@given(logits, shares.filter(lambda p: p < 1))
def test_typical_keeps_the_smallest_set_nearest_to_the_entropy(x, p):
    w = {i: v for i, v in whole(x).items() if v}
    total, top = sum(w.values()), max(x)
    surprise = {i: log(total / 2**40) - (x[i] - top) for i in w}
    entropy = sum(Fraction(w[i], total) * Fraction(surprise[i]) for i in w)
    far = {i: abs(Fraction(surprise[i]) - entropy) for i in w}
    kept = survivors(np.array(x), Sampling(typical_p=p))[0].tolist()
    mass = sum(w[i] for i in kept)
    slack = Fraction(1, 10**9)  # distances are rounded
    assert mass >= Fraction(p) * total
    assert all(far[i] <= far[j] + slack for i in kept for j in set(w) - set(kept))
    farthest = max(kept, key=lambda i: far[i])
    near = [w[i] for i in kept if far[i] > far[farthest] - slack]
    assert mass - max(near) < Fraction(p) * total


@given(logits, st.floats(0, 1))
def test_xtc_leaves_the_least_likely_of_those_above_the_threshold(x, threshold):
    w = whole(x)
    above = [i for i in w if w[i] and w[i] >= Fraction(threshold) * sum(w.values())]
    above.sort(key=lambda i: (-w[i], i))
    how = Sampling(xtc_probability=1.0, xtc_threshold=threshold)
    assert survivors(np.array(x), how)[0].tolist() == sorted(set(w) - set(above[:-1]))


@given(
    ids=st.lists(st.integers(0, 3), max_size=40),
    allowed=st.integers(1, 4),
    last=st.integers(0, 30),
    breakers=st.sets(st.integers(0, 3), max_size=2),
)
def test_dry_looks_for_the_longest_repetition_that_an_id_would_continue(
    ids, allowed, last, breakers
):
    """Every earlier place and every length, one by one."""
    past = ids[-last:] if last else ids
    longest: dict[int, int] = {}
    for end in range(len(past)):
        for length in range(1, end + 1):
            tail = past[len(past) - length :]
            if past[end - length : end] == tail and not breakers & set(tail):
                longest[past[end]] = max(longest.get(past[end], 0), length)
    how = Sampling(
        dry_multiplier=0.8, dry_allowed_length=allowed, dry_range=last, dry_breakers=(*breakers,)
    )
    expected = {
        id: 0.8 * 1.75 ** (length - allowed)
        for id, length in longest.items()
        if length >= allowed and id not in breakers
    }
    assert dry(ids, how) == pytest.approx(expected)


def test_dry_never_hides_an_id_however_long_the_repetition():
    x, loop = np.zeros(4, np.float32), [0, 1] * 3000
    how = Sampling(dry_multiplier=1e6, dry_base=1e6, allowed_ids=(0,), temperature=0)
    assert draw(x, how, ids=loop, prompt=0, seed=0).id == 0


@given(logits, st.floats(0.1, 2), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_dynamic_temperature_is_that_of_the_entropy(x, temperature, share, exponent):
    how = Sampling(
        temperature=temperature, dynatemp_range=share * temperature, dynatemp_exponent=exponent
    )
    _, z = survivors(np.array(x), how)
    left = np.array([v for v in x if v > -INF])
    if len(left) < 2 or len(z) < 2:
        return
    p = np.exp(left - left.max()) / np.exp(left - left.max()).sum()
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum() / log(len(left))
    if entropy < 1e-6:  # 40 bits of a weight tell no more
        return
    low, high = temperature * (1 - share), temperature * (1 + share)
    expected = low + (high - low) * min(entropy, 1.0) ** exponent
    assert z * expected == pytest.approx(left - left.max(), rel=1e-4, abs=1e-9)


# ---- XTC's coin --------------------------------------------------------------------------------


def test_the_coin_depends_on_the_place_alone_and_falls_as_often_as_asked():
    x = log_of([0.4, 0.3, 0.2, 0.1]).astype(np.float32)
    how = Sampling(xtc_probability=0.3, xtc_threshold=0.15)
    coins = [coin(position=i, seed=5, sample=2) for i in range(4000)]
    assert abs(np.mean(np.array(coins) < 0.3) - 0.3) < 0.03
    assert len({coin(position=i, seed=s, sample=n) for i, s, n in np.ndindex(3, 3, 3)}) == 27
    for i, value in enumerate(coins[:60]):
        drawn = draw(x, how, ids=[0] * i, prompt=0, seed=5, sample=2).id
        same = Sampling(banned_ids=(0, 1)) if value < 0.3 else Sampling()
        expected = draw(x, same, ids=[0] * i, prompt=0, seed=5, sample=2).id
        assert drawn == expected, "the noise of ids is the same with and without XTC"


# ---- distributions -----------------------------------------------------------------------------

EIGHT = np.array([1.5, 0.0, -2.0, 1.5, 0.3, -0.7, 2.2, -1.0], np.float32)


def expected_shares(how: Sampling) -> np.ndarray:
    """Exact, a mixture of both sides of the coin."""
    p = np.zeros(len(EIGHT))
    certain = {f: replace(how, xtc_probability=f) for f in (0.0, 1.0)}
    for share, side in ((how.xtc_probability, 1.0), (1 - how.xtc_probability, 0.0)):
        for id, value in shares_of(EIGHT.astype(float), certain[side]).items():
            p[id] += share * value
    return p


@pytest.mark.parametrize(
    "how",
    [
        dict(typical_p=0.6),
        dict(xtc_probability=0.5, xtc_threshold=0.15),
        dict(temperature=1.2, dynatemp_range=0.8, dynatemp_exponent=2.0),
        dict(temperature=2.0, min_p=0.2, filters=("min_p", "temperature")),
        dict(xtc_probability=0.4, xtc_threshold=0.1, top_p=0.9, filters=("xtc", "top_p")),
    ],
)
@pytest.mark.parametrize("varies", ["seed", "sample", "position"])
def test_draws_are_distributed_as_the_filters_say(how, varies):
    draws, how = 3000, Sampling(**how)
    expected, counts = expected_shares(how) * draws, np.zeros(len(EIGHT))
    for i in range(draws):
        facts = dict(ids=range(3), seed=11, sample=0)
        facts |= dict(ids=range(i)) if varies == "position" else {varies: i}
        counts[draw(EIGHT, how, prompt=0, top=None, **facts).id] += 1
    some = expected > 0
    assert not counts[~some].any()
    squared = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert squared < 30, "chi-square of at most 7 degrees: 1 in 10,000"


# ---- the order ---------------------------------------------------------------------------------


def test_the_order_decides_what_is_left():
    """Temperature 2 flattens: before top-p more ids are needed, after it the same few."""
    x = EIGHT.astype(float)
    first = survivors(x, Sampling(temperature=2.0, top_p=0.7))[0]
    last = survivors(x, Sampling(temperature=2.0, top_p=0.7, filters=("top_p", "temperature")))[0]
    assert len(last) < len(first)
    assert last.tolist() == survivors(x, Sampling(top_p=0.7))[0].tolist()


def test_a_temperature_that_is_not_listed_comes_first():
    how = dict(temperature=2.0, top_p=0.7, min_p=0.2)
    listed = Sampling(**how, filters=("temperature", "min_p", "top_p"))
    assert Sampling(**how, filters=("min_p", "top_p")).order == listed.order


def test_temperature_0_takes_the_best_of_what_the_filters_before_it_leave():
    x = log_of([0.4, 0.3, 0.2, 0.1]).astype(np.float32)
    how = dict(temperature=0, xtc_probability=1.0, xtc_threshold=0.15)
    facts = dict(ids=[], prompt=0, seed=1)
    assert draw(x, Sampling(**how), **facts).id == 0, "greedy first: XTC finds one id alone"
    assert draw(x, Sampling(**how, filters=("xtc", "temperature")), **facts).id == 2


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(filters=["top_k", "tip_p"]), ["filters[1]", "did you mean"]),
        (dict(filters=["top_k", "top_k"]), ["twice"]),
        (dict(filters="top_k"), ["list of temperature"]),
        (dict(filters=[5]), ["filters[0]"]),
        (dict(filters=[["top_k"]]), ["filters[0]"]),
        (dict(filters=None), ["list of temperature"]),
        (dict(filters=["top_k"], top_p=0.5), ["top_p is on", "add it"]),
        (dict(filters=[], xtc_probability=0.1), ["xtc is on", "(none)"]),
        (dict(filters=["temperature"], typical_p=0.9), ["typical_p is on"]),
        (dict(temperature=0.5, dynatemp_range=0.6), ["dynatemp_range <= temperature"]),
        (dict(dynatemp_range=-1), ["[0, inf)"]),
        (dict(dynatemp_exponent=INF), ["[0, 1e+06]"]),
        (dict(typical_p=0), ["(0, 1]"]),
        (dict(xtc_probability=1.1), ["[0, 1]"]),
        (dict(xtc_threshold=-0.1), ["[0, 1]"]),
        (dict(dry_multiplier=-1), ["[0, 1e+06]"]),
        (dict(dry_base=0.5), ["[1, 1e+06]"]),
        (dict(dry_allowed_length=0), ["1 to"]),
        (dict(dry_range=-1), ["0 to"]),
        (dict(dry_breakers=[6]), ["dry_breakers[0]", "0 to 5"]),
        (dict(dry_breakers="ab"), ["list of ids"]),
        (dict(banned_ids=[0, 1, 2, 3, 4, 5, 5]), ["banned_ids leave no id"]),
        (dict(loop_limit=1), ["0 (off), or 2 or more"]),
        (dict(loop_limit=-1), ["0 or more"]),
        (dict(loop_limit=True), ["0 or more"]),
        (dict(loop_length=0), ["1 to 4096"]),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(options, words):
    with pytest.raises(RequestError) as caught:
        parse(options, 6)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_filter_may_stand_anywhere():
    for order in itertools.islice(itertools.permutations(FILTERS), 0, None, 60):
        parsed = parse(dict(filters=list(order), top_k=3, temperature=0.5), 6).sampling
        assert parsed.order == tuple(n for n in order if n in ("top_k", "temperature"))


# ---- ids that nothing leaves -------------------------------------------------------------------


def test_what_leaves_no_id_is_named():
    x, none = np.zeros(6, np.float32), [np.zeros(1, np.uint32)]
    hides = lambda ids, x: np.full(6, -np.inf)  # noqa: E731
    cases = [
        (Sampling(), dict(masks=none), "the constraint leave"),
        (Sampling(banned_ids=(1,)), dict(masks=none), "banned_ids, the constraint leave"),
        (Sampling(allowed_ids=(2,)), dict(forbidden=(2,)), "allowed_ids, min_tokens"),
        (Sampling(processors=(hides,), top_k=2), {}, "processors leave no id"),
    ]
    for how, facts, words in cases:
        with pytest.raises(RequestError, match="no id to choose") as caught:
            draw(x, how, ids=[0], prompt=0, seed=0, **facts)
        assert words in str(caught.value)


@settings(max_examples=60)
@given(logits, st.integers(0, 2**32), st.integers(0, 300))
def test_the_probability_of_a_draw_is_never_one_that_a_filter_took_away(x, seed, position):
    how = Sampling(typical_p=0.8, top_p=0.9, min_p=0.1, xtc_probability=0.5, xtc_threshold=0.2)
    x = np.array([max(v, -50.0) for v in x], np.float32)
    left = survivors(x.astype(float), how, position=position, seed=seed)[0]
    assert draw(x, how, ids=range(position), prompt=0, seed=seed).id in left
