"""Each filter against its definition in exact arithmetic; then all of them together."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from seriatim.engine import sampler_reference as reference
from seriatim.engine.options import parse
from seriatim.engine.sampler import draw, log_sum
from seriatim.engine.sampler_reference import ONE, _pick, _weights, noise, survivors
from seriatim.engine.sampling import Sampling
from seriatim.errors import NumericError, RequestError
from seriatim.kernels.mathematics import exp

INF = float("inf")


# ---- definitions -------------------------------------------------------------------------------


def best_k(z: list[float], ids: list[int], k: int) -> list[int]:
    return sorted(sorted(ids, key=lambda i: (-z[i], i))[:k]) if k else ids


def nucleus(w: dict[int, int], top_p: float) -> list[int]:
    """The smallest set, by falling weight then rising id, that reaches top_p of the whole."""
    ranked = sorted(w, key=lambda i: (-w[i], i))
    goal, reached, kept = Fraction(top_p) * sum(w.values()), 0, []
    for i in ranked:
        if kept and reached >= goal:
            break
        reached += w[i]
        kept.append(i)
    return sorted(kept)


def likely(w: dict[int, int], min_p: float) -> list[int]:
    return [i for i in w if w[i] >= Fraction(min_p) * max(w.values())]


def weights(z: list[float], ids: list[int]) -> dict[int, int]:
    return dict(zip(ids, map(int, _weights(np.array([z[i] for i in ids]))), strict=True))


def left_by(z: list[float], how: Sampling) -> list[int]:
    ids = best_k(z, [i for i, x in enumerate(z) if x > -INF], how.top_k)
    if how.top_p < 1:
        ids = nucleus(weights(z, ids), how.top_p)
    return likely(weights(z, ids), how.min_p) if how.min_p else ids


few = st.sampled_from([-INF, -40.0, -3.0, -1.0, -1e-13, 0.0, 0.5, 2.0])  # many ties
logits = st.lists(st.one_of(few, st.floats(-30, 30)), min_size=1, max_size=24).filter(
    lambda x: max(x) > -INF
)
shares = st.one_of(st.floats(1e-300, 1), st.sampled_from([0.5, 0.9, 0.25, 1 - 2**-53, 1.0]))
temperatures = st.one_of(
    st.floats(0.05, 5), st.sampled_from([5e-324, 1e-300, 1e-9, 1e9, 1e300, 1.0])
)
samplings = st.builds(
    Sampling,
    top_k=st.integers(0, 26),
    top_p=shares,
    min_p=st.one_of(st.just(0.0), st.floats(0, 1), st.just(1.0)),
    temperature=temperatures,
)


def scaled(x: list[float], temperature: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (np.array(x) - max(x)) / temperature


def left(x: np.ndarray, how: Sampling) -> list[int]:
    return survivors(x, how)[0].tolist()


# ---- filters -----------------------------------------------------------------------------------


@given(logits, st.integers(0, 26))
def test_top_k_keeps_the_k_best_and_the_lowest_id_of_equals(x, k):
    z = scaled(x, 1.0)
    assert left(z, Sampling(top_k=k)) == left_by(z.tolist(), Sampling(top_k=k))


@given(logits, shares)
def test_top_p_keeps_the_smallest_set_that_reaches_it(x, p):
    z = scaled(x, 1.0)
    assert left(z, Sampling(top_p=p)) == left_by(z.tolist(), Sampling(top_p=p))


@given(logits, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_best(x, p):
    z = scaled(x, 1.0)
    assert left(z, Sampling(min_p=p)) == left_by(z.tolist(), Sampling(min_p=p))


@settings(max_examples=300)
@given(logits, samplings)
def test_all_filters_act_in_order_and_leave_at_least_one(x, how):
    kept = left(np.array(x), how)
    assert kept
    assert kept == left_by(scaled(x, how.temperature).tolist(), how)


def test_top_p_counts_exactly_where_doubles_cannot():
    """2^14 ids of weight 2^40 and four of weight 1: at 2^54 doubles are four apart."""
    z = np.array([0.0] * 2**14 + [-40 * np.log(2)] * 4)
    assert _weights(z[-4:]).tolist() == [1] * 4
    how = Sampling(top_p=1 - 2**-53)  # all but 2 + 2^-51 of 2^54 + 4
    assert left(z, how) == list(range(2**14 + 2))


def test_equal_weights_are_kept_by_rising_id():
    assert left(np.zeros(8), Sampling(top_p=0.5)) == [0, 1, 2, 3]
    assert left(np.zeros(8), Sampling(top_p=0.5 + 2**-50)) == [0, 1, 2, 3, 4]
    assert left(np.zeros(8), Sampling(top_k=3)) == [0, 1, 2]


# ---- the id ------------------------------------------------------------------------------------


def slow_choice(x: list[float], how: Sampling, position: int, seed: int) -> int:
    """The highest score of all that the filters leave, none skipped."""
    z = scaled(x, how.temperature)
    ids = np.array(left_by(z.tolist(), how))
    scores = z[ids] + noise(ids, position=position, seed=seed)
    return int(ids[scores.argmax()])


@settings(max_examples=300)
@given(logits, samplings, st.integers(0, 50), st.integers(0, 2**64 - 1))
def test_leaving_out_what_cannot_win_never_changes_the_id(x, how, position, seed):
    banned = [i for i, value in enumerate(x) if value == -INF]
    finite = np.array([0.0 if value == -INF else value for value in x], np.float32)
    x = [-INF if i in banned else float(value) for i, value in enumerate(finite)]
    how = Sampling(**{**vars(how), "banned_ids": tuple(banned)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = draw(finite, how, ids=range(position), prompt=0, seed=seed)
    assert seen.id == slow_choice(x, how, position, seed)


@given(logits)
def test_greedy_takes_the_best_and_the_lowest_id_of_equals(x):
    x = np.nan_to_num(np.array(x, np.float32), neginf=-50)
    seen = draw(x, Sampling(temperature=0), ids=[], prompt=0, seed=0)
    assert seen.id == x.tolist().index(x.max())


def test_the_least_noise_of_the_best_can_be_overtaken_from_just_within_reach(monkeypatch):
    extremes = np.array([0.5, 2**32 - 0.5]) / 2**32
    monkeypatch.setattr(
        "seriatim.engine.sampler_reference._uniform", lambda ids, **_: extremes[ids]
    )
    for gap, best in ((25.9, 1), (26.1, 0)):
        z = np.array([0.0, -gap])
        assert _pick(z, Sampling(), position=0, seed=0, sample=0) == best


def test_the_fast_way_to_the_highest_score_is_the_exact_one():
    """numpy's log only chooses who is compared, and its exp only where rounding is sure."""
    rng = np.random.default_rng(0)
    for position in range(20):
        z = rng.normal(0, 1 + position % 3, 4000)
        z -= z.max()
        scores = z + noise(np.arange(4000), position=position, seed=1)
        assert _pick(z, Sampling(), position=position, seed=1, sample=0) == scores.argmax()
    z = rng.uniform(-30, 0, 200_000)
    assert (_weights(z) == np.rint(exp(z) * ONE).astype(np.uint64)).all()


def test_ties_of_scores_go_to_the_lowest_id(monkeypatch):
    monkeypatch.setattr(
        "seriatim.engine.sampler_reference._uniform", lambda ids, **_: np.full(len(ids), 0.5)
    )
    assert reference.draw(np.ones(5, np.float32), Sampling(), ids=[], prompt=0, seed=0).id == 0


@given(logits, st.sampled_from([5e-324, 1e-300, 1e-30]))
def test_a_tiny_temperature_is_as_good_as_greedy(x, temperature):
    x = np.nan_to_num(np.array(x, np.float32), neginf=-50)
    seen = draw(x, Sampling(temperature=temperature), ids=[1], prompt=0, seed=3)
    assert x[seen.id] == x.max()


def test_a_huge_temperature_forgets_the_logits():
    x = np.array([30, -30, 0, 5], np.float32)
    ids = {
        draw(x, Sampling(temperature=1e300), ids=range(i), prompt=0, seed=1).id for i in range(40)
    }
    assert ids == {0, 1, 2, 3}


def test_a_forced_id_is_taken_with_its_real_log_probability():
    x = np.array([0, 10, 0], np.float32)
    seen = draw(x, Sampling(banned_ids=(2,), temperature=0), ids=[], prompt=0, seed=0, forced=2)
    assert seen.id == 2
    assert seen.logprob == pytest.approx(-10.0000908)


# ---- log-probabilities -------------------------------------------------------------------------


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=300), st.integers(0, 5))
def test_log_probabilities_are_the_models_own(x, top):
    """Before temperature, penalties and filters; within 1e-9 of an extended-precision softmax."""
    x = np.array(x, np.float32)
    wide = x.astype(np.longdouble)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    how = Sampling(temperature=0.3, top_k=2, logit_bias=((0, 4.0),), presence_penalty=1.0)
    seen = draw(x, how, ids=[0, 0], prompt=1, seed=0, top=top)
    assert abs(seen.logprob - expected[seen.id]) < 1e-9
    assert [i for i, _ in seen.top] == sorted(range(len(x)), key=lambda i: (-x[i], i))[:top]
    assert all(abs(p - expected[i]) < 1e-9 for i, p in seen.top)
    assert abs(log_sum(x[None])[0] - float(wide.max() - expected.max())) < 1e-9


def test_log_sum_of_a_row_does_not_depend_on_the_others():
    rows = np.random.default_rng(0).normal(0, 9, (5, 501)).astype(np.float32)
    assert [log_sum(row[None])[0] for row in rows] == log_sum(rows).tolist()
    shuffled = rows[:, np.random.default_rng(1).permutation(501)]
    assert log_sum(shuffled).tolist() == log_sum(rows).tolist(), "the sum is exact: no order"


@given(st.floats(-60, 0))
def test_weights_are_exp_in_units_of_2_to_the_minus_40(z):
    assert abs(int(_weights(np.array([z]))[0]) - np.exp(np.longdouble(z)) * ONE) < 0.501


# ---- penalties, masks, processors --------------------------------------------------------------


def penalised(x: list[float], how: Sampling, ids: list[int], prompt: int) -> list[float]:
    """Repetition over all ids before, presence and frequency over new ones, then the bias."""
    x, new = list(x), ids[prompt:]
    for i in set(ids):
        by = how.repetition_penalty
        x[i] = x[i] / by if x[i] > 0 else x[i] * by
    for i in set(new):
        x[i] -= how.presence_penalty + how.frequency_penalty * new.count(i)
    for i, bias in how.logit_bias:
        x[i] += bias
    return x


@given(
    x=st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6),
    ids=st.lists(st.integers(0, 5), max_size=12),
    prompt=st.integers(0, 12),
    repetition=st.sampled_from([1.0, 0.5, 1.3, 1e-6, 1e6]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.25, -0.5, 3.0]),
    bias=st.dictionaries(st.integers(0, 5), st.floats(-100, 100), max_size=3),
)
def test_penalties_and_biases_are_what_they_are_defined_to_be(
    x, ids, prompt, repetition, presence, frequency, bias
):
    prompt = min(prompt, len(ids))
    how = Sampling(repetition, presence, frequency, logit_bias=tuple(bias.items()), temperature=0)
    expected = penalised(x, how, ids, prompt)
    first, second = sorted(expected)[-1], sorted(expected)[-2]
    assume(first == second or first - second > 1e-9 * abs(first))
    seen = draw(np.array(x, np.float32), how, ids=ids, prompt=prompt, seed=0)
    assert seen.id == expected.index(first)


@given(
    allowed=st.one_of(st.none(), st.sets(st.integers(0, 5), min_size=1)),
    banned=st.sets(st.integers(0, 5)),
    forbidden=st.sets(st.integers(0, 5)),
    temperature=st.sampled_from([0.0, 1.0, 50.0]),
)
def test_only_ids_that_are_allowed_and_not_banned_come(allowed, banned, forbidden, temperature):
    left = (set(range(6)) if allowed is None else allowed) - banned - forbidden
    ids = None if allowed is None else tuple(allowed)
    how = Sampling(allowed_ids=ids, banned_ids=tuple(banned), temperature=temperature)

    def one(seed: int) -> int:
        facts = dict(ids=[], prompt=0, seed=seed, forbidden=tuple(forbidden))
        return draw(np.arange(6, dtype=np.float32), how, **facts).id

    if left:
        assert all(one(seed) in left for seed in range(5))
    else:
        with pytest.raises(RequestError, match="leave no id"):
            one(0)


def test_processors_see_the_ids_and_what_the_ones_before_them_left():
    def seen(ids, x):
        assert ids == (4, 2)
        assert x.dtype == np.float32
        x[:] = -np.inf  # its own copy
        x[3] = 1.0
        return x

    def lifts(ids, x):
        assert x[3] == 1.0
        x[1] = 2.0
        return x.tolist()

    logits = np.zeros(5, np.float32)
    how = Sampling(processors=(seen, lifts), temperature=0)
    assert draw(logits, how, ids=[4, 2], prompt=1, seed=0).id == 1
    assert not logits.any()


@pytest.mark.parametrize(
    "bad",
    [
        lambda ids, x: x[:-1],
        lambda ids, x: x[None],
        lambda ids, x: None,
        lambda ids, x: x * np.nan,
        lambda ids, x: x + np.inf,
    ],
)
def test_what_a_processor_returns_is_checked(bad):
    with pytest.raises(NumericError, match="processor"):
        draw(np.zeros(5, np.float32), Sampling(processors=(bad,)), ids=[], prompt=0, seed=0)


# ---- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("temperature", -0.1, "[0, inf)"),
        ("temperature", float("nan"), "[0, inf)"),
        ("temperature", INF, "finite"),
        ("temperature", "hot", "[0, inf)"),
        ("temperature", True, "[0, inf)"),
        ("temperature", 10**400, "[0, inf)"),
        ("temperature", np.array([1.0, 2.0]), "[0, inf)"),
        ("temperature", None, "[0, inf)"),
        ("top_p", 0, "(0, 1]"),
        ("top_p", 1.0001, "(0, 1]"),
        ("top_p", -1, "(0, 1]"),
        ("top_k", -2, "0 or more"),
        ("top_k", 1.5, "0 or more"),
        ("min_p", 2, "[0, 1]"),
        ("repetition_penalty", 0, "[1e-06, 1e+06]"),
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", -1, "1 or more"),
        ("max_tokens", 1.5, "1 or more"),
        ("max_tokens", "10", "1 or more"),
        ("max_tokens", True, "1 or more"),
        ("min_tokens", -1, "0 or more"),
        ("seed", -1, f"0 to {2**64 - 1}"),
        ("seed", 2**64, f"0 to {2**64 - 1}"),
        ("seed", 1.0, f"0 to {2**64 - 1}"),
        ("logit_bias", {6: 1.0}, "0 to 5"),
        ("logit_bias", {"1": 1.0}, "0 to 5"),
        ("logit_bias", {1: float("nan")}, "[-1e+06, 1e+06]"),
        ("logit_bias", [1], "mapping"),
        ("allowed_ids", [], "allow at least one"),
        ("banned_ids", [-1], "0 to 5"),
        ("banned_ids", 3, "list of ids"),
        ("banned_ids", [True], "0 to 5"),
        ("banned_ids", [np.array([1, 2])], "0 to 5"),
        ("forced_ids", [2.0], "0 to 5"),
        ("logprobs", 21, "0 to 20"),
        ("logprobs", -1, "0 to 20"),
        ("ignore_end", "yes", "True or False"),
        ("processors", [3], "functions"),
        ("priority", 0.5, "whole number"),
        ("tenant", 5, "a string"),
        ("temprature", 1.0, "did you mean temperature?"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(option, value, expected):
    with pytest.raises(RequestError) as caught:
        parse({option: value}, 6)
    assert option in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_that_contradict_each_other_are_refused_together():
    for given_options in (
        dict(min_tokens=5, max_tokens=4),
        dict(allowed_ids=[1, 2], banned_ids=[2, 1]),
        dict(forced_ids=[1, 2, 3], max_tokens=2),
    ):
        with pytest.raises(RequestError):
            parse(given_options, 6)


@example(1)
@given(st.integers(0, 2**64 - 1))
def test_numbers_of_numpy_are_numbers(seed):
    parsed = parse(
        dict(seed=np.uint64(seed), temperature=np.float32(0.5), banned_ids=np.array([1, 2])), 6
    )
    assert parsed.seed == seed
    assert parsed.sampling.banned_ids == (1, 2)
