"""The C++ sampler against its definition, to the bit, on every instruction set that runs here."""

from dataclasses import replace
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seriatim.engine import sampler
from seriatim.engine import sampler_reference as reference
from seriatim.engine.sampling import FILTERS, Sampling
from seriatim.errors import RequestError
from seriatim.kernels.mathematics import exp, log, philox

_native = pytest.importorskip("seriatim._native", reason="the extension is not built")
SAMPLERS = {isa: _native.Sampler(isa) for isa in _native.Sampler.isas()}


def outcome(draw, *args, **facts) -> str:
    try:
        return repr(draw(*args, **facts))  # tells NaN and -0.0 apart
    except RequestError as error:
        return str(error)


def check(logits: np.ndarray, how: Sampling, **facts) -> None:
    """Every instruction set draws what the definition draws: id, log-probability, list."""
    facts = dict(ids=[0], prompt=0, seed=0) | facts
    with np.errstate(all="ignore"):
        expected = outcome(reference.draw, logits, how, **facts)
    for isa, native in SAMPLERS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "_SAMPLER", native)
            assert outcome(sampler.draw, logits, how, **facts) == expected, isa


# ---- rows of logits ----------------------------------------------------------------------------

EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 1.0, 1 + 2**-23, -28.4, -26.2, -1e30]


def row(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = {
        "flat": lambda: np.zeros(size),
        "few values": lambda: rng.integers(-3, 3, size) * 0.5,
        "narrow": lambda: rng.normal(0, 0.01, size),
        "usual": lambda: rng.normal(0, 3, size),
        "wide": lambda: rng.normal(0, 30, size),
        "huge": lambda: rng.normal(0, 1, size) * 10.0 ** rng.integers(-40, 38, size),
        "extremes": lambda: rng.choice(EXTREMES, size),
        "neighbours": lambda: np.float32(7) - rng.integers(0, 4, size) * np.float32(2**-22),
        "subnormal": lambda: rng.integers(0, 50, size) * 1e-45,
        "rising": lambda: np.linspace(-40, 0, size),
        "masked": lambda: np.where(rng.random(size) < 0.9, -np.inf, rng.normal(0, 3, size)),
        "one left": lambda: np.where(np.arange(size) == seed % size, 1.0, -np.inf),
    }
    return np.asarray(made[kind](), np.float32)


KINDS = ["flat", "few values", "narrow", "usual", "wide", "huge", "extremes", "neighbours",
         "subnormal", "rising", "masked", "one left"]  # fmt: skip
rows = st.builds(
    row,
    st.sampled_from(KINDS),
    st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 1000, 4097, 5000])),
    st.integers(0, 2**32),
)
shares = st.one_of(
    st.floats(0, 1, exclude_min=True),
    st.sampled_from([5e-324, 1e-300, 2**-41, 0.1, 0.5, 0.9, 1 - 2**-53, 1.0]),
)
temperatures = st.one_of(
    st.floats(0.05, 5),
    st.sampled_from([0.0, 1.0, 1.0, 5e-324, 1e-300, 1e-40, 1e-9, 1e9, 1e300, 1.7e308]),
)
orders = st.permutations(FILTERS).map(tuple)


@st.composite
def samplings(draw) -> Sampling:
    """Any filters in any order, most often few of them."""

    def some(off, on):
        return draw(st.one_of(st.just(off), st.just(off), on))

    temperature = draw(temperatures)
    share = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))
    return Sampling(
        temperature=temperature,
        dynatemp_range=share * temperature if temperature < 1e9 else 0.0,
        dynatemp_exponent=draw(st.sampled_from([1.0, 0.0, 0.5, 3.0, 1e6])),
        top_k=some(0, st.one_of(st.integers(0, 60), st.sampled_from([1, 5000, 2**40]))),
        typical_p=some(1.0, shares),
        top_p=some(1.0, shares),
        min_p=some(0.0, shares),
        xtc_probability=draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
        xtc_threshold=draw(st.sampled_from([0.1, 0.0, 0.3, 0.6, 1e-9, 1e-300])),
        filters=draw(st.one_of(st.just(FILTERS), orders)),
    )


filters = samplings()
words32, words64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@settings(max_examples=400)
@given(rows, filters, words64, words32, st.integers(0, 9))
def test_every_filter_temperature_and_noise_draws_the_defined_id(logits, how, seed, sample, length):
    check(logits, how, ids=[0] * length, seed=seed, sample=sample, top=None)


alone = st.one_of(
    st.builds(dict, typical_p=shares),
    st.builds(dict, top_p=shares),
    st.builds(dict, min_p=shares),
    st.builds(
        dict,
        xtc_probability=st.just(1.0),
        xtc_threshold=st.one_of(st.floats(0, 0.5), st.floats(1e-13, 1e-6), st.just(0.0)),
    ),
)


@settings(max_examples=200)
@given(rows, alone, st.sampled_from([1.0, 0.3, 2.5, 1e-9]), words64)
def test_one_filter_of_a_whole_vocabulary_draws_the_defined_id(logits, how, temperature, seed):
    """These look at few of the ids where that suffices."""
    check(logits, Sampling(temperature=temperature, **how), seed=seed, top=None)


def masks(size: int) -> st.SearchStrategy[np.ndarray]:
    """Words of bits: random ones, dense, sparse or with whole runs of ids left out."""

    def words(kind: str, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        bits = rng.integers(0, 2**32, -(-size // 32), dtype=np.uint32)
        more = rng.integers(0, 2**32, len(bits), dtype=np.uint32)
        runs = np.where(rng.random(len(bits)) < 0.5, 0, bits).astype(np.uint32)
        return {"even": bits, "dense": bits | more, "sparse": bits & more, "runs": runs}[kind]

    return st.builds(words, st.sampled_from(["even", "dense", "sparse", "runs"]), words32)


@settings(max_examples=250)
@given(rows, filters, st.data())
def test_penalties_biases_and_masks_draw_the_defined_id(logits, how, data):
    ids = st.integers(0, len(logits) - 1)
    some = st.lists(ids, max_size=30)
    penalty = st.sampled_from([0.0, 0.0, 0.7, -1.5, 1e6])
    how = replace(
        how,
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3, 0.5, 1e-6, 1e6])),
        presence_penalty=data.draw(penalty),
        frequency_penalty=data.draw(penalty),
        logit_bias=tuple(data.draw(st.dictionaries(ids, st.floats(-1e6, 1e6), max_size=5)).items()),
        banned_ids=tuple(data.draw(some)),
        allowed_ids=data.draw(st.one_of(st.none(), some.map(tuple))),
        dry_multiplier=data.draw(penalty.map(abs)),
        dry_base=data.draw(st.sampled_from([1.0, 1.75, 2.0, 1e6])),
        dry_allowed_length=data.draw(st.integers(1, 4)),
        dry_range=data.draw(st.integers(0, 20)),
        dry_breakers=tuple(data.draw(st.lists(ids, max_size=3))),
    )
    past = data.draw(st.one_of(some, st.lists(st.sampled_from([0, 1 % len(logits)]), max_size=40)))
    facts = dict(ids=past, forbidden=tuple(data.draw(some)), top=None)
    facts["masks"] = data.draw(st.lists(masks(len(logits)), max_size=2))
    check(logits, how, prompt=data.draw(st.integers(0, len(facts["ids"]))), **facts)


@settings(max_examples=80)
@given(rows, filters, st.integers(0, 20), st.booleans())
def test_log_probabilities_and_the_likeliest_are_the_defined_ones(logits, how, top, forced):
    check(logits, how, forced=len(logits) // 2 if forced else None, top=top)


def test_what_a_processor_leaves_is_drawn_from_in_double_precision():
    """Two scores that differ by less than a float32 can tell."""
    close = [1.0, 1.0 + 2**-40, 0.5]
    for how in (Sampling(temperature=0), Sampling(top_k=1), Sampling(temperature=1e-300)):
        how = replace(how, processors=(lambda ids, x: np.array(close),))
        check(np.zeros(3, np.float32), how)
        assert sampler.draw(np.zeros(3, np.float32), how, ids=[], prompt=0, seed=0).id == 1
    for kind in KINDS:
        edits = Sampling(processors=(lambda ids, x: x / 3,), top_k=7, top_p=0.9, banned_ids=(0,))
        check(row(kind, 200, 3), edits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_of_128k_is_drawn_from_as_defined(kind):
    logits = row(kind, 128_256, 5)
    for how in (
        Sampling(),
        Sampling(temperature=0.8, top_k=50, top_p=0.95),
        Sampling(temperature=1.3, top_p=0.9, min_p=0.01),
        Sampling(temperature=0.8, typical_p=0.7),
        Sampling(temperature=0.8, xtc_probability=1.0),
        Sampling(temperature=0.8, dynatemp_range=0.7, min_p=0.05),
        Sampling(temperature=1.5, min_p=0.05, top_p=0.9, filters=("min_p", "top_p", "temperature")),
    ):
        check(logits, how, seed=8, top=5)


def test_penalties_over_half_of_a_vocabulary():
    ids = list(range(0, 4000, 2)) * 2
    check(
        row("usual", 4000, 1),
        Sampling(1.2, 0.3, 0.4, top_p=0.9, dry_multiplier=1.0),
        ids=ids,
        prompt=900,
    )


@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(0, 2**32))
def test_log_sum_of_rows_is_the_defined_one(sizes, seed):
    for size in sizes:
        logits = np.stack([row(kind, size, seed) for kind in KINDS])
        logits = logits[logits.max(axis=1) > -np.inf]
        with np.errstate(all="ignore"):
            expected = reference.log_sum(logits)
        for isa, native in SAMPLERS.items():
            assert native.log_sum(logits).tobytes() == expected.tobytes(), isa


def test_a_callers_flush_to_zero_changes_nothing():
    """And the caller's mode is given back."""
    logits, tiny = row("subnormal", 300, 1), np.float32(1e-45)
    how = Sampling(temperature=1e-45, top_k=20, top_p=0.9)
    expected = [sampler.draw(logits, how, ids=[0], prompt=0, seed=s).id for s in range(20)]
    _native.set_flush_to_zero(True)
    try:
        seen = [
            sampler.draw(logits, how, ids=[0], prompt=0, seed=s, top=None).id for s in range(20)
        ]
        flushed = np.array([tiny]) * np.float32(1)
    finally:
        _native.set_flush_to_zero(False)
    assert seen == expected
    assert flushed[0] == 0


# ---- maths -------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.one_of(st.floats(-750, 700), st.floats(-45, 0), st.floats(-1e-8, 1e-8))))
def test_exp_has_the_bits_of_its_definition(x):
    x = np.array([*x, -np.inf, 0.0, 700.0])
    assert _native.exp(x).tobytes() == exp(x).tobytes()


@settings(max_examples=200)
@given(st.lists(st.one_of(st.floats(2.3e-308, 1.7e308), st.floats(0.5, 2.0), st.floats(1e-10, 30))))
def test_log_has_the_bits_of_its_definition(x):
    x = np.array([*x, 1.0, 2.0**-33, 0.70710678118654752440])
    assert _native.log(x).tobytes() == log(x).tobytes()


@example(0, 0, 0, 0)
@example(2**24 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1)
@given(st.integers(0, 2**24), words64, words32, words32)
def test_words_are_those_of_philox(run, seed, position, sample):
    counter = np.zeros((16, 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2] = 16 * run + np.arange(16), position, sample
    expected = philox(counter, seed).ravel().tolist()
    for isa, native in SAMPLERS.items():
        assert native.words(run, seed, position, sample) == expected, isa


def test_weights_are_rounded_as_exp_rounds_them_also_where_it_is_close():
    """Random z, and those whose weight lies next to the middle between two integers."""
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 2 ** rng.integers(1, 40, 20_000)) + 0.5
    near = np.log(halves / reference.ONE)
    steps = rng.integers(-3, 4, len(near))
    z = np.concatenate([rng.uniform(-30, 0, 20_000), rng.uniform(-0.01, 0, 5000),
                        near + steps * np.spacing(near), [0.0, -800.0, -np.inf]])  # fmt: skip
    z = np.minimum(z, 0.0)
    expected = np.rint(exp(z) * reference.ONE).astype(np.uint64).tolist()
    for isa, native in SAMPLERS.items():
        assert native.weights(z) == expected, isa


@given(shares, st.integers(0, 200))
def test_a_share_of_the_whole_is_counted_exactly(share, more):
    """Equal weights: the number kept is the ceiling of the share times their count."""
    logits, size = np.zeros(200 + more, np.float32), 200 + more
    kept = ceil(Fraction(share) * size)
    how = Sampling(top_p=share)
    for seed in range(3):
        assert sampler.draw(logits, how, ids=[], prompt=0, seed=seed).id < kept
    check(logits, how)


# ---- hostile arguments -------------------------------------------------------------------------


def pick(logits=(1.0, 2.0, 3.0), *, ids=(0,), seed=0, sample=0, forbidden=(), masks=(), **how):
    masks = [np.array(words, np.uint32) for words in masks]
    facts = (list(ids), 0, seed, sample, list(forbidden), masks)
    return _native.Sampler().pick(np.array(logits, np.float32), chain(**how), *facts)


def chain(**how):
    """As `Sampling.native` makes it, but for what nobody has checked."""
    plain = dict(
        repetition=1.0, presence=0.0, frequency=0.0, dry=(0.0, 1.75, 2, 0), breakers=[],
        biased=[], biases=[], allowed=None, banned=[], temperature=(1.0, 0.0, 1.0), top_k=0,
        shares=(1.0, 1.0, 0.0), xtc=(0.0, 0.1), order=[0, 1, 2, 3, 4, 5],
    )  # fmt: skip
    return _native.Chain(**plain | how)


NAN = float("nan")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(biased=[3], biases=[0.0]),
        dict(biased=[-1], biases=[0.0]),
        dict(biased=[2**62], biases=[0.0]),
        dict(biased=[1], biases=[]),
        dict(biased=[0], biases=[np.inf]),
        dict(allowed=[3]),
        dict(allowed=[-1]),
        dict(banned=[3]),
        dict(forbidden=[-1]),
        dict(forbidden=[3]),
        dict(masks=[[]]),
        dict(logits=[]),
        dict(logits=[1.0, np.inf]),
        dict(ids=[3], repetition=1.1),
        dict(ids=[-1], presence=1.0),
        dict(ids=[2**62], dry=(1.0, 1.75, 2, 0)),
        dict(repetition=0.0),
        dict(presence=NAN),
        dict(frequency=np.inf),
        dict(dry=(-1.0, 1.75, 2, 0)),
        dict(dry=(1.0, NAN, 2, 0)),
        dict(dry=(1.0, 1.75, 0, 0)),
        dict(dry=(1.0, 1.75, 2, -1)),
        dict(temperature=(-1.0, 0.0, 1.0)),
        dict(temperature=(NAN, 0.0, 1.0)),
        dict(temperature=(np.inf, 0.0, 1.0)),
        dict(temperature=(1.0, 1.5, 1.0)),
        dict(temperature=(1.0, 0.5, NAN)),
        dict(top_k=-1),
        dict(shares=(0.0, 1.0, 0.0)),
        dict(shares=(1.0, 0.0, 0.0)),
        dict(shares=(1.0, NAN, 0.0)),
        dict(shares=(1.0, 1.5, 0.0)),
        dict(shares=(1.0, 1.0, -0.5)),
        dict(shares=(1.0, 1.0, NAN)),
        dict(xtc=(NAN, 0.1)),
        dict(xtc=(0.5, 2.0)),
        dict(order=[]),
        dict(order=[0, 0]),
        dict(order=[0, 6]),
        dict(order=[0, -1]),
    ],
)
def test_what_cannot_be_honoured_is_a_value_error(wrong):
    with pytest.raises(ValueError, match=r"\w"):
        pick(**wrong)


@pytest.mark.parametrize(
    "wrong", [dict(seed=-1), dict(seed=2**64), dict(sample=2**32), dict(sample=-1)]
)
def test_numbers_that_noise_has_no_room_for_are_refused(wrong):
    with pytest.raises(TypeError):
        pick(**wrong)


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(temperature=(0.0, 0.0, 1.0)),
        dict(temperature=(1.0, 1.0, 1.0)),
        dict(top_k=1, order=[0, 1]),
        dict(shares=(0.5, 0.5, 0.1), xtc=(1.0, 0.1)),
        dict(shares=(0.5, 0.5, 0.1), xtc=(1.0, 0.1), order=[5, 4, 3, 2, 1, 0]),
    ],
)
def test_nan_does_not_crash_and_nothing_left_is_minus_one(how):
    order = how.pop("order", [0])
    for bad in ([np.nan] * 3, [np.nan, 1.0, np.nan], [1.0, np.nan] * 70):
        pick(bad, order=order, **how)
        pick(bad, masks=[[1] * 5], repetition=1.5, order=order, **how)
    assert pick([-np.inf] * 100, order=order, **how) == -1
    assert pick(allowed=[], order=order, **how) == pick(masks=[[0]], order=order, **how) == -1
    assert pick(banned=[0, 1], forbidden=[2], order=order, **how) == -1
    native = _native.Sampler()
    native.log_sum(np.full((2, 70), np.nan, np.float32))
    native.likeliest(np.full(70, np.nan, np.float32), 3)


def test_rows_of_another_type_or_layout_are_refused_and_not_copied():
    native = _native.Sampler()
    for wrong in (np.zeros(3, int), np.zeros((3, 3), np.float32), np.zeros(9, np.float32)[::3]):
        with pytest.raises(TypeError):
            native.pick(wrong, chain(), [], 0, 0, 0, [], [])
    with pytest.raises(ValueError, match="isa"):
        _native.Sampler("abacus")


def test_without_the_extension_the_definition_draws(monkeypatch):
    logits = row("usual", 100, 0)
    seen = sampler.draw(logits, Sampling(), ids=[0], prompt=0, seed=1, top=2)
    monkeypatch.setattr(sampler, "_SAMPLER", None)
    assert sampler.draw(logits, Sampling(), ids=[0], prompt=0, seed=1, top=2) == seen
    assert sampler.log_sum(logits[None]) == reference.log_sum(logits[None])
