"""Law 2: noise is a pure function of (seed, sample, position, id), and it samples softmax."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim.engine.sampler import draw
from seriatim.engine.sampler_reference import REACH, noise, survivors
from seriatim.engine.sampling import Sampling
from seriatim.kernels.mathematics import exp, log, philox

PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0_A4093822
ONES = [0xFFFFFFFF] * 4, 2**64 - 1


# ---- the generator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (*ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, words):
    """Random123 1.14, tests/kat_vectors: philox4x32, 10 rounds."""
    seen = philox(np.array([counter], np.uint32), key)[0]
    assert " ".join(f"{word:08x}" for word in seen) == words


def one_word(id: int, position: int, sample: int, seed: int) -> int:
    """contracts.md, 10: counter (id >> 2, position, sample, 0), word id & 3, in plain integers."""
    c, k = [id >> 2, position, sample, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k[0], b % 2**32, a >> 32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[id & 3]


words32, words64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=9), words32, words32, words64)
def test_noise_is_keyed_by_id_position_sample_and_seed_alone(ids, position, sample, seed):
    """Whichever other ids are asked for beside it."""
    seen = noise(np.array(sorted(ids)), position=position, sample=sample, seed=seed)
    for id, value in zip(sorted(ids), seen, strict=True):
        u = (one_word(id, position, sample, seed) + 0.5) / 2**32
        assert value == -log(-log(np.array([u])))[0]
        assert value == pytest.approx(-math.log(-math.log(u)), rel=1e-12, abs=1e-15)


def test_noise_cannot_leave_the_range_that_reach_relies_on(monkeypatch):
    """The least and the greatest word: no candidate below REACH can overtake the best."""
    extremes = np.array([[0, 2**32 - 1, 0, 0]], np.uint32)
    monkeypatch.setattr("seriatim.engine.sampler_reference.philox", lambda counter, key: extremes)
    low, high = noise(np.array([0, 1]), position=0, seed=0)
    assert -3.2 < low < -3.1
    assert 22.8 < high < 23.0
    assert high - low < REACH


# ---- exp and log -------------------------------------------------------------------------------


def ulps(seen: float, exact: Decimal) -> Decimal:
    return abs(Decimal(seen) - exact) / Decimal(math.ulp(seen))


@settings(max_examples=300)
@given(st.one_of(st.floats(-700, 700), st.floats(-45, 0), st.floats(-1e-8, 1e-8)))
def test_exp_is_within_one_unit_of_the_last_place(x):
    with localcontext() as context:
        context.prec = 60
        assert ulps(float(exp(np.array([x]))[0]), Decimal(x).exp()) < 1


@settings(max_examples=300)
@given(st.one_of(st.floats(2.3e-308, 1.7e308), st.floats(0.5, 2.0), st.floats(1e-10, 30)))
def test_log_is_within_one_unit_of_the_last_place(x):
    with localcontext() as context:
        context.prec = 60
        seen, exact = float(log(np.array([x]))[0]), Decimal(x).ln()
        assert seen == exact == 0 or ulps(seen, exact) < 1


def test_exp_and_log_at_their_edges():
    assert exp(np.array([0.0, -700.0001, -np.inf])).tolist() == [1.0, 0.0, 0.0]
    assert log(np.array([1.0]))[0] == 0.0


def test_exp_and_log_do_not_depend_on_what_stands_beside_them():
    """Vectorised and alone, at any place of an array: the same bits."""
    x = np.random.default_rng(0).uniform(-40, 0, 1001)
    for f, values in ((exp, x), (log, -x)):
        alone = np.array([f(values[i : i + 1])[0] for i in range(len(values))])
        assert alone.tobytes() == f(values).tobytes() == f(values[::-1])[::-1].tobytes()


# ---- what is sampled ---------------------------------------------------------------------------


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


CRITICAL = {1: 10.83, 2: 13.82, 4: 18.47, 7: 24.32}  # 0.1 % points, by degrees of freedom
LOGITS = np.array([1.5, 0.0, -2.0, 1.5, 0.3, -0.7, 2.2, -1.0], np.float32)


@pytest.mark.parametrize(
    "how, varies",
    [
        (Sampling(), "position"),
        (Sampling(), "seed"),
        (Sampling(), "sample"),
        (Sampling(temperature=0.5), "position"),
        (Sampling(top_k=5), "seed"),
        (Sampling(top_p=0.7, temperature=1.5), "sample"),
        (Sampling(min_p=0.3), "position"),
    ],
)
def test_samples_are_distributed_as_the_filtered_softmax(how, varies):
    draws = 2000
    counts = np.zeros(len(LOGITS))
    for i in range(draws):
        facts = dict(ids=[0] * 3, seed=11, sample=0)
        facts |= dict(ids=range(i)) if varies == "position" else {varies: i}
        counts[draw(LOGITS, how, prompt=0, top=None, **facts).id] += 1
    z = (LOGITS.astype(float) - LOGITS.max()) / how.temperature
    kept = survivors(LOGITS.astype(float), how)[0]
    share = np.exp(z[kept]) / np.exp(z[kept]).sum()
    assert counts.sum() == counts[kept].sum() == draws
    assert chi_square(counts[kept], share * draws) < CRITICAL[len(kept) - 1]


def test_neighbouring_positions_are_independent():
    """Pairs of draws at positions p and p + 1 against the product of the two."""
    logits = np.zeros(2, np.float32)
    ids = [draw(logits, Sampling(), ids=range(i), prompt=0, seed=5).id for i in range(2000)]
    pairs = np.bincount([2 * a + b for a, b in zip(ids[::2], ids[1::2], strict=True)], minlength=4)
    assert chi_square(pairs, np.full(4, 250.0)) < 16.27  # 3 degrees of freedom


# ---- the law, on models ------------------------------------------------------------------------

kinds = pytest.mark.parametrize("kind", small.KINDS)
PROMPT = [5, 17, 44, 9, 80, 3, 21]


@kinds
def test_going_on_from_prompt_and_ids_goes_on_with_the_same_stream(kind):
    model = small.shared(kind)
    how = dict(seed=99, ignore_end=True, logprobs=True)
    whole = model.generate(PROMPT, max_tokens=14, **how)
    for cut in (1, 6, 13):
        rest = model.generate([*PROMPT, *whole.ids[:cut]], max_tokens=14 - cut, **how)
        assert rest.ids == whole.ids[cut:]
        assert rest.logprobs == whole.logprobs[cut:]


@kinds
def test_the_first_of_n_samples_is_the_only_one_of_one(kind):
    model = small.shared(kind)
    one = model.generate(PROMPT, max_tokens=12, seed=4)
    many = model.generate(PROMPT, max_tokens=12, seed=4, n=4)
    assert many.ids == many.samples[0].ids == one.ids == one.samples[0].ids
    assert len({tuple(s.ids) for s in many.samples}) > 1
    assert {s.seed for s in many.samples} == {4}


@kinds
def test_equal_prompts_of_a_list_are_equal_and_other_seeds_are_not(kind):
    model = small.shared(kind)
    a, b = model.generate([PROMPT, PROMPT], max_tokens=12, seed=4)
    assert a.ids == b.ids
    others = {tuple(model.generate(PROMPT, max_tokens=12, seed=s).ids) for s in range(4)}
    assert len(others) > 1


@kinds
def test_a_drawn_seed_is_returned_and_gives_the_same_again(kind):
    model = small.shared(kind)
    a, b = model.generate([PROMPT, PROMPT], max_tokens=12)
    assert a.seed != b.seed
    assert 0 <= a.seed < 2**64
    assert model.generate(PROMPT, max_tokens=12, seed=a.seed).ids == a.ids
    many = model.generate(PROMPT, max_tokens=12, n=3)
    again = model.generate(PROMPT, max_tokens=12, n=3, seed=many.seed)
    assert [s.ids for s in many.samples] == [s.ids for s in again.samples]


def test_the_whole_64_bits_of_a_seed_count():
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1]
    ids = np.arange(64)
    assert len({noise(ids, position=3, seed=seed).tobytes() for seed in seeds}) == len(seeds)
