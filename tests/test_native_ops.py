"""Each native op against the reference, the same to the bit in every instruction set."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_runs import (
    BF16,
    DTYPES,
    F16,
    F32,
    check_op,
    everywhere,
    indices,
    make,
    misaligned,
    native,
    native_run,
    normal,
    on,
    one_sequence,
    product,
    reference_run,
    weight_torch,
)

from seriatim.kernels.native import isas
from seriatim.kernels.ops import ACTIVATIONS, FUSED, LAYOUTS, OPS, Batch
from seriatim.kernels.record import ENUMS

sizes = st.integers(1, 70)
few = st.integers(1, 12)


# ---- the table ---------------------------------------------------------------------------------


def test_op_codes_are_the_tables():
    assert native.op_codes() == {op.name: op.code for op in (OPS | FUSED).values()}


def test_word_lists_are_the_tables():
    assert native.tables() == {name: list(words) for name, words in ENUMS.items()}


def test_best_instruction_set_comes_first_and_plain_is_always_there():
    assert isas()[-1] == "plain"
    assert make(*on(normal(0, 1, 1), lambda ops, x, w: x)).isa == isas()[0]


# ---- products ----------------------------------------------------------------------------------


@given(tokens=few, inner=sizes, outer=sizes, dtype=st.sampled_from(DTYPES), bias=st.booleans())
@example(tokens=1, inner=16, outer=1, dtype=BF16, bias=False)
@example(tokens=45, inner=1039, outer=55, dtype=BF16, bias=True)
@example(tokens=37, inner=2048, outer=50, dtype=F32, bias=False)
@example(tokens=33, inner=2050, outer=7, dtype=F16, bias=True)
@settings(max_examples=40, deadline=None)
def test_linear_is_the_reference(tokens, inner, outer, dtype, bias):
    x, w = normal(1, tokens, inner), misaligned(normal(2, outer, inner, dtype=dtype))
    weights = {"w": w} | ({"b": misaligned(normal(3, outer, dtype=dtype))} if bias else {})
    forward, named = on(x, product)
    named |= weights
    batch = one_sequence(tokens)
    expected = reference_run(forward, {n: weight_torch(a) for n, a in named.items()}, batch)
    actual = everywhere(forward, named, batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6 * inner**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [1, 31, 64, 1100])
def test_a_product_does_not_depend_on_company(dtype, inner):
    x, w = normal(4, 70, inner), normal(5, 53, inner, dtype=dtype)
    forward, weights = on(x, product)
    weights["w"] = w
    runtime = make(forward, weights, threads=2)
    whole = runtime.step(one_sequence(70)).copy()
    for begin, end in [(0, 1), (3, 5), (5, 8), (10, 14), (20, 29), (30, 70)]:
        ids = indices(range(begin, end))
        batch = Batch(ids, ids, np.zeros_like(ids), indices([[0, 0]]), ids[:0])
        np.testing.assert_array_equal(runtime.step(batch), whole[begin:end])


def fused_dot(x, w):
    """The law in numpy: sixteen lanes, ascending, fused (exact in float64 here), then the tree."""
    lanes = np.zeros(16, np.float32)
    for k in range(0, len(x), 16):
        a, b = (
            np.pad(v[k : k + 16], (0, max(0, k + 16 - len(v)))).astype(np.float64) for v in (x, w)
        )
        lanes = (a * b + lanes).astype(np.float32)
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


@pytest.mark.parametrize("inner", [5, 16, 100])
def test_the_order_of_a_product_is_the_contracts(inner):
    x = normal(6, 3, inner, dtype=BF16).astype(np.float32)  # short values: float64 is exact
    w = normal(7, 9, inner, dtype=BF16)
    expected = [[fused_dot(a, b.astype(np.float32)) for b in w] for a in x]
    forward, weights = on(x, product)
    actual = everywhere(forward, weights | {"w": w}, one_sequence(3))
    np.testing.assert_array_equal(actual, np.array(expected, np.float32))


def test_f16_is_expanded_exactly():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    table = every[np.isfinite(every)].reshape(-1, 64)
    forward, weights = on(table, lambda ops, x, w: x)
    actual = everywhere(forward, weights, one_sequence(len(table)))
    np.testing.assert_array_equal(actual, table.astype(np.float32))


def test_bf16_products_round_their_inputs_to_nearest_even():
    bits = np.concatenate([np.arange(2**16) * 65537 % 2**31, [0x7F7FFFFF, 0x7F800000, 1, 0x8000]])
    x = bits.astype(np.uint32).view(np.float32)
    x = x[np.isfinite(x)].reshape(-1, 1)
    forward, weights = on(x, product)
    actual = everywhere(forward, weights | {"w": np.ones((1, 1), BF16)}, one_sequence(len(x)))
    np.testing.assert_array_equal(actual, x.astype(BF16).astype(np.float32))


@pytest.mark.parametrize("odd, last", [(2.0**22 + 1, -149), (2.0**23 + 1, -23)])
def test_fused_multiply_add_rounds_once(odd, last):
    """c, odd in its last bit, plus a hair less than half of that bit: rounded twice it goes up."""
    c = odd * 2.0**last
    x, w = np.zeros((2, 1, 17), np.float32)
    x[0, 0], w[0, 0] = c * 2.0**63, 2.0**-63
    x[0, 16], w[0, 16] = 2.0 ** (last // 2) * (1 + 2**-18), 2.0 ** (last // 2) * (1 - 2**-18)
    forward, weights = on(x, product)
    assert everywhere(forward, weights | {"w": w}, one_sequence(1)) == np.float32(c)


# ---- the other ops -----------------------------------------------------------------------------


@given(tokens=few, heads=st.integers(1, 4), channels=sizes, kind=st.sampled_from(["rms", "layer"]),
       weight=st.sampled_from([None, *DTYPES]), bias=st.booleans())  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_norm_is_the_reference(tokens, heads, channels, kind, weight, bias):
    more = {} if weight is None else {"w": normal(1, channels, dtype=weight)}
    more |= {"b": normal(2, channels, dtype=BF16)} if bias else {}

    def norm(ops, x, w):
        return ops.norm(x, w.get("w"), w.get("b"), kind=kind, eps=0.1, heads=heads)

    check_op(norm, normal(3, tokens, heads * channels) + 2, 3e-6, **more)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_reference(activation):
    x = np.concatenate([np.linspace(-30, 30, 4003), normal(1, 500, scale=1e-3), [0, 100, -100]])
    x = x.astype(np.float32).reshape(1, -1)
    check_op(lambda ops, x, w: ops.activate(x, activation=activation), x, 4e-7)
    gated = check_gate(activation)
    check_op(gated, x[:, :1000], 1e-6, y=normal(2, 1, 1000))


def check_gate(activation):
    return lambda ops, x, w: ops.gate(x, ops.embed(w["y"], source="ids"), activation=activation)


@pytest.mark.parametrize("name, op", {
    "add": lambda ops, x, w: ops.add(x, ops.scale(x, factor=-0.3)),
    "scale": lambda ops, x, w: ops.scale(x, factor=3.7),
    "softcap": lambda ops, x, w: ops.softcap(x, cap=30.0),
    "rows": lambda ops, x, w: ops.rows(x),
}.items())  # fmt: skip
@pytest.mark.parametrize("width", [1, 17, 300])
def test_small_ops_are_the_reference(name, op, width):
    check_op(op, normal(1, 7, width, scale=20), 1e-6)


def test_not_a_number_is_never_lost():
    x = np.full((1, 3), np.nan, np.float32)
    for activation in ACTIVATIONS:
        forward, weights = on(x, lambda ops, x, w, a=activation: ops.activate(x, activation=a))
        assert np.isnan(everywhere(forward, weights, one_sequence(1))).all()
    forward, weights = on(x, product)
    w = np.ones((2, 3), BF16)
    assert np.isnan(everywhere(forward, weights | {"w": w}, one_sequence(1))).all()


def silu(x):
    forward, weights = on(x.reshape(1, -1), lambda ops, x, w: ops.activate(x, activation="silu"))
    return native_run(forward, weights, one_sequence(1))[0]


def test_exp_reaches_its_ends():
    x = np.array([-200, -104, -88.8, 88, 200], np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(silu(x), expected, rtol=1e-6, atol=1e-36)
    assert silu(np.float32([np.inf])) == np.inf
    assert np.isnan(silu(np.float32([-np.inf])))  # -inf / (1 + inf), as torch has it


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads, channels, turned", [(1, 2, 2), (3, 10, 6), (2, 64, 64), (1, 5, 4)])
def test_rope_is_the_reference(layout, heads, channels, turned):
    frequencies = tuple(float(np.float32(f)) for f in 10.0 ** -np.arange(turned // 2))

    def rope(ops, x, w):
        return ops.rope(x, ops.rotary(frequencies, scale=1.1), heads=heads, layout=layout)

    check_op(rope, normal(1, 130, heads * channels), 2e-6)


@pytest.mark.parametrize("scale", [1.0, 1.2079441541679836])
def test_angles_are_the_references_to_one_ulp(scale):
    frequencies = tuple(float(np.float32(f)) for f in 500000.0 ** -(np.arange(32) / 32))
    far = indices(np.unique(np.random.default_rng(0).integers(0, 10**6, 300)))

    def angles(ops, w):
        return ops.rotary(frequencies, scale=scale)

    blank = np.zeros_like(far)
    batch = Batch(blank, far, blank, indices([[-1]]), blank[:0])
    expected = reference_run(angles, {}, batch)
    actual = everywhere(angles, {}, batch, blocks=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=6e-8)
    assert (actual == expected).mean() > 0.9999


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embed_looks_up_ids_and_positions(dtype):
    table = misaligned(normal(1, 9, 13, dtype=dtype))
    ids, position = indices([8, 0, 3]), indices([2, 5, 7])
    batch = Batch(ids, position, indices([0] * 3), indices([[0]]), ids[:0])
    for source, index in (("ids", ids), ("position", position)):
        out = everywhere(lambda ops, w, s=source: ops.embed(w["x"], source=s), {"x": table}, batch)
        np.testing.assert_array_equal(out, table[index].astype(np.float32))
