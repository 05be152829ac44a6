"""The native runtime against the reference ops, and against itself bit for bit.

Raw activations reach an op through an `embed` whose table is the matrix and whose ids count up.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seriatim.errors import ModelError, RequestError
from seriatim.kernels.native import NativeRuntime, _cpus, _quota, available_cpus, isas
from seriatim.kernels.ops import ACTIVATIONS, BLOCK, LAYOUTS, OPS, Batch
from seriatim.kernels.record import ENUMS, record
from seriatim.kernels.reference import Cache, ReferenceOps

native = pytest.importorskip("seriatim._native", reason="the extension is not built")

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = [F32, F16, BF16]
ROOT = Path(__file__).parent.parent


def indices(values):
    return np.array(values, dtype=np.int32)


def one_sequence(tokens, rows=None):
    """A fresh sequence of `tokens` ids 0, 1, ... in blocks 0, 1, ..."""
    count = indices(range(tokens))
    table = indices([range(tokens // BLOCK + 1)])
    return Batch(count, count, indices([0] * tokens), table, count if rows is None else rows)


def normal(seed, *shape, scale=1.0, dtype=F32):
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(np.float32).astype(dtype)


def misaligned(array):
    """The same values at an address that is a multiple of the element size and no more."""
    size = array.dtype.itemsize
    memory = np.zeros(array.nbytes + 64 + size, np.uint8)
    start = -memory.ctypes.data % 64 + size
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def as_torch(array):
    return torch.from_numpy(array.astype(np.float64))


def weight_torch(array):
    """Keeps bfloat16: the reference rounds a product's inputs by the weight's type."""
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.astype(np.float32))


def native_run(forward, weights, batch, *, blocks=None, kv="f32", threads=1, isa=None):
    runtime = make(forward, weights, kv=kv, threads=threads, isa=isa)
    runtime.resize(int(batch.block_table.max()) + 1 if blocks is None else blocks)
    return runtime.step(batch).copy()


def make(forward, weights, **options):
    plan = record(forward, {name: array.shape for name, array in weights.items()})
    return NativeRuntime(plan, weights, **options)


def everywhere(forward, weights, batch, **options):
    """The result, the same to the bit in every instruction set and with one and two threads."""
    results = [
        native_run(forward, weights, batch, isa=isa, threads=threads, **options)
        for isa in isas()
        for threads in (1, 2)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.uint32), other.view(np.uint32))
    return results[0]


def reference_run(forward, weights, batch, cache=None):
    return forward(ReferenceOps(batch, cache=cache), weights).numpy()


def on(x, op):
    """A forward pass: `op` on the matrix x, and x's weights."""
    return lambda ops, w: op(ops, ops.embed(w["x"], source="ids"), w), {"x": x}


def check_op(op, x, tolerance, **more):
    """`op(ops, x, weights)` natively, everywhere, against the reference in float64."""
    forward, weights = on(x, op)
    weights |= more
    batch = one_sequence(len(x))
    wide = {name: as_torch(array) for name, array in weights.items()}
    expected = reference_run(forward, wide, batch)
    actual = everywhere(forward, weights, batch)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


sizes = st.integers(1, 70)
few = st.integers(1, 12)


# ---- the table ---------------------------------------------------------------------------------


def test_op_codes_are_the_tables():
    assert native.op_codes() == {op.name: op.code for op in OPS.values()}


def test_word_lists_are_the_tables():
    assert native.tables() == {name: list(words) for name, words in ENUMS.items()}


def test_best_instruction_set_comes_first_and_plain_is_always_there():
    assert isas()[-1] == "plain"
    assert make(*on(normal(0, 1, 1), lambda ops, x, w: x)).isa == isas()[0]


# ---- products ----------------------------------------------------------------------------------


def product(ops, x, w):
    return ops.linear(x, w["w"], w.get("b"))


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


# ---- attention ---------------------------------------------------------------------------------


def attention(heads, kv_heads, **options):
    def forward(ops, w):
        q, k, v = (ops.embed(w[name], source="ids") for name in "qkv")
        options.setdefault("scale", 0.4)
        return ops.attention(q, k, v, layer=0, heads=heads, kv_heads=kv_heads, **options)

    return forward


def qkv(tokens, heads, kv_heads, channels, seed=0):
    width = {"q": heads * channels, "k": kv_heads * channels, "v": kv_heads * channels}
    return {n: normal(seed + i, tokens, w) for i, (n, w) in enumerate(width.items())}


def expected_attention(forward, weights, batch, kv):
    """The reference over a cache of the stored type, float64 otherwise."""
    width = weights["k"].shape[1]
    heads = forward_heads(forward)
    dtype = torch.bfloat16 if kv == "bf16" else torch.float64
    cache = Cache([(heads, width // heads)], dtype, "cpu")
    cache.resize(int(batch.block_table.max()) + 1)
    return reference_run(forward, {n: as_torch(a) for n, a in weights.items()}, batch, cache)


def forward_heads(forward):
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__, strict=True))
    return cells["kv_heads"].cell_contents


@pytest.mark.parametrize("kv", ["f32", "bf16"])
@pytest.mark.parametrize("channels", [1, 5, 12, 64, 80])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (6, 2)])
def test_attention_is_the_reference(kv, channels, heads, kv_heads):
    forward = attention(heads, kv_heads)
    weights = qkv(140, heads, kv_heads, channels)
    batch = one_sequence(140)
    actual = everywhere(forward, weights, batch, kv=kv)
    expected = expected_attention(forward, weights, batch, kv)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)


@given(tokens=st.integers(1, 200), window=st.integers(0, 150), cap=st.sampled_from([0.0, 2.0]))
@settings(max_examples=12, deadline=None)
@example(tokens=200, window=64, cap=0.0)
@example(tokens=129, window=1, cap=0.0)
def test_windows_and_caps_are_the_reference(tokens, window, cap):
    forward = attention(2, 1, window=window, softcap=cap)
    weights, batch = qkv(tokens, 2, 1, 20), one_sequence(tokens)
    actual = everywhere(forward, weights, batch)
    expected = expected_attention(forward, weights, batch, "f32")
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6)


def chunks_of(lengths, tables, cut):
    """Ragged steps that bring each sequence forward by `cut(i)` tokens at a time."""
    done, base = [0] * len(lengths), np.cumsum([0, *lengths])
    table = indices(tables)
    turn = 0
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        ids, position, sequence = [], [], []
        for s, n in enumerate(lengths):
            end = min(n, done[s] + cut(turn + s))
            ids += range(base[s] + done[s], base[s] + end)
            position += range(done[s], end)
            sequence += [s] * (end - done[s])
            done[s] = end
        turn += 1
        if ids:
            yield Batch(indices(ids), indices(position), indices(sequence), table, indices([]))


@pytest.mark.parametrize("kv", ["f32", "bf16"])
@pytest.mark.parametrize("window", [0, 40])
def test_chunks_company_and_block_order_change_nothing(kv, window):
    """Three sequences whose blocks lie in random order, in steps of any shape: the same bits."""
    lengths = [150, 70, 193]
    order = np.random.default_rng(1).permutation(20)
    tables = [[*order[:3], -1], [*order[3:5], -1, -1], order[5:9]]
    weights = qkv(sum(lengths), 4, 2, 24)
    forward = attention(4, 2, window=window)
    alone = [
        native_run(forward, {n: a[start : start + length] for n, a in weights.items()},
                   one_sequence(length), kv=kv)
        for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False)
    ]  # fmt: skip
    for cut in (lambda i: 200, lambda i: 1 + 7 * i % 90, lambda i: i % 2 * 64):
        runtime = make(forward, weights, kv=kv, threads=2)
        runtime.resize(20)
        for block in range(20):
            runtime.poison(block)
        got = np.full((sum(lengths), 96), np.nan, np.float32)
        for batch in chunks_of(lengths, tables, cut):
            got[batch.ids] = runtime.step(batch)
            assert runtime.finite().all()
        np.testing.assert_array_equal(got, np.concatenate(alone))


def test_a_copied_block_reads_the_same():
    weights, forward = qkv(80, 1, 1, 8), attention(1, 1)
    runtime = make(forward, weights, threads=1)
    runtime.resize(2)
    whole = runtime.step(one_sequence(80)).copy()
    runtime.resize(5)
    runtime.copy(0, 4)
    runtime.poison(0)
    last = indices([79])
    batch = Batch(last, last, indices([0]), indices([[4, 1]]), last[:0])
    np.testing.assert_array_equal(runtime.step(batch), whole[79:])


def test_a_window_needs_no_block_that_it_does_not_see():
    weights, forward = qkv(200, 1, 1, 8), attention(1, 1, window=70)
    runtime = make(forward, weights, threads=1)
    runtime.resize(4)
    whole = runtime.step(one_sequence(200)).copy()
    runtime.poison(0)
    last = indices([199])
    batch = Batch(last, last, indices([0]), indices([[-1, -1, 2, 3]]), last[:0])
    np.testing.assert_array_equal(runtime.step(batch), whole[199:])


# ---- soundness of a step -----------------------------------------------------------------------


def test_rows_without_logits_cost_nothing_and_give_an_empty_result():
    forward, weights = on(normal(0, 4, 6), lambda ops, x, w: ops.linear(ops.rows(x), w["w"]))
    runtime = make(forward, weights | {"w": normal(1, 5, 6)}, threads=2)
    assert runtime.step(one_sequence(4, rows=indices([]))).shape == (0, 5)
    assert runtime.finite().shape == (0,)
    assert runtime.step(one_sequence(4, rows=indices([1, 3]))).shape == (2, 5)


def test_a_row_that_is_not_finite_is_told_and_traced():
    x = normal(0, 4, 6)
    x[2, 3] = np.inf
    forward, weights = on(
        x, lambda ops, x, w: ops.linear(ops.rows(ops.scale(x, factor=2.0)), w["w"])
    )
    runtime = make(forward, weights | {"w": normal(1, 40, 6)}, threads=2)
    batch = one_sequence(4)
    runtime.step(batch)
    assert runtime.finite().tolist() == [1, 1, 0, 1]
    assert runtime.trace(batch) == "x (embed)"
    sound = one_sequence(2)
    runtime.step(sound)
    assert runtime.finite().tolist() == [1, 1]
    assert runtime.trace(sound) == ""


def test_a_bad_weight_is_named():
    forward, weights = on(normal(0, 2, 6), product)
    weights["w"] = normal(1, 40, 6)
    weights["w"][7, 1] = np.nan
    assert make(forward, weights, threads=2).trace(one_sequence(2)) == "w (linear)"


def test_a_result_outlives_the_buffers_it_came_from():
    forward, weights = on(normal(0, 50, 6), lambda ops, x, w: ops.scale(x, factor=1.0))
    runtime = make(forward, weights, threads=1)
    first = runtime.step(one_sequence(1))
    runtime.step(one_sequence(50))
    del runtime
    np.testing.assert_array_equal(first, weights["x"][:1])


BAD_BATCHES = {
    "ids": [("ids", [0, -1, 1]), ("ids", [0, 1, 200]), ("ids", [0, 1])],
    "position": [("position", [0, 1, -1]), ("position", [0, 2, 1]), ("position", [0, 1, 1]),
                 ("position", [0, 1, 500])],
    "sequence": [("sequence", [0, 0, 1]), ("sequence", [0, -1, 0])],
    "block_table": [("block_table", [[2]]), ("block_table", [[-1]])],
    "rows": [("rows", [1, 0]), ("rows", [3]), ("rows", [-1]), ("rows", [1, 1])],
}  # fmt: skip


@pytest.mark.parametrize(
    "named, field, value", [(n, f, v) for n, cases in BAD_BATCHES.items() for f, v in cases]
)
def test_a_hostile_batch_is_refused_by_name(named, field, value):
    runtime = make(attention(1, 1), qkv(200, 1, 1, 4), threads=2)
    runtime.resize(2)
    good = one_sequence(3)
    bad = Batch(**{**vars(good), "block_table": indices([[0]]), field: indices(value)})
    with pytest.raises(ValueError, match=named):
        runtime.step(bad)
    runtime.step(good)


@pytest.mark.parametrize("value", [
    np.zeros(3, np.int64), np.zeros(3, np.float32), np.zeros((3, 1), np.int32),
    np.zeros(6, np.int32)[::2], [0, 1, 2], None, np.zeros(0, np.int32), np.zeros(3, ">i4"),
], ids=str)  # fmt: skip
def test_arrays_of_another_kind_are_refused_by_name(value):
    runtime = make(*on(normal(0, 3, 4), lambda ops, x, w: x), threads=1)
    with pytest.raises(ValueError, match="ids"):
        runtime.step(Batch(**{**vars(one_sequence(3)), "ids": value}))


def test_a_sequence_that_comes_twice_is_refused():
    runtime = make(attention(1, 1), qkv(9, 1, 1, 4), threads=1)
    runtime.resize(2)
    batch = Batch(indices([0, 1, 2]), indices([0, 0, 1]), indices([0, 1, 0]), indices([[0], [1]]),
                  indices([]))  # fmt: skip
    with pytest.raises(ValueError, match="sequence 0 comes twice"):
        runtime.step(batch)


def test_bad_options_and_weights_are_refused():
    forward, weights = on(normal(0, 3, 4), product)
    for options in ({"threads": 0}, {"threads": True}, {"kv": "f16"}, {"isa": "mmx"}):
        with pytest.raises(RequestError, match=next(iter(options))):
            make(forward, weights | {"w": normal(0, 2, 4)}, **options)
    plan = record(forward, {"x": (3, 4), "w": (2, 4)})
    for w in ({}, {"w": normal(0, 2, 5)}, {"w": np.zeros((2, 4))}):
        with pytest.raises(ModelError, match="w"):
            NativeRuntime(plan, weights | w)


def test_a_plan_that_does_not_fit_is_refused():
    def plan(kv_heads=1):
        p = native.Plan("plain", 1, "f32", [(kv_heads, 4)], [("T", 8), ("T", 8), ("R", 8)])
        p.add(0, [], [p.tensor(normal(0, 5, 8), "f32")], 0, [0], [])
        return p

    bad = [
        ((99, [], [], 0, [], []), "op code 99"),
        ((1, [0], [7, -1], 1, [], []), "no such tensor"),
        ((7, [9], [], 1, [0], []), "no such slot"),
        ((7, [1], [], 0, [0], []), "never written"),
        ((7, [0], [], 0, [0], []), "output is also an input"),
        ((7, [0], [], 1, [5], []), "unknown activation"),
        ((7, [0], [], 2, [0], []), "wrong axis"),
        ((2, [0], [-1, -1], 1, [0, 3], [1e-5]), "heads must divide"),
        ((9, [0], [], 1, [], [float("nan")]), "not finite"),
        ((1, [0], [0, -1], 2, [], []), "wrong axis"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            plan().add(*arguments)


# ---- threads -----------------------------------------------------------------------------------


def test_more_threads_than_processors_work():
    forward, weights = on(normal(0, 20, 40), product)
    weights["w"] = normal(1, 30, 40)
    expected = native_run(forward, weights, one_sequence(20))
    for threads in (3, 8):
        actual = native_run(forward, weights, one_sequence(20), threads=threads)
        np.testing.assert_array_equal(actual, expected)


def test_a_forked_child_computes_the_same():
    forward, weights = on(normal(0, 20, 40), product)
    runtime = make(forward, weights | {"w": normal(1, 30, 40)}, threads=2)
    expected = runtime.step(one_sequence(20)).copy()
    child = os.fork()
    if child == 0:
        same = np.array_equal(runtime.step(one_sequence(20)), expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_two_callers_are_never_mixed():
    forward, weights = on(normal(0, 60, 500), product)
    runtime = make(forward, weights | {"w": normal(1, 900, 500)}, threads=2)
    expected, refused = runtime.step(one_sequence(60)).copy(), []

    def call():
        for _ in range(10):
            try:
                runtime.step(one_sequence(60))
            except RuntimeError as error:
                refused.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert set(refused) <= {"a step of this plan is running"}
    np.testing.assert_array_equal(runtime.step(one_sequence(60)), expected)


FLUSHED = """
import sys
import numpy as np
from seriatim import _native
from seriatim.kernels.native import NativeRuntime, isas
from seriatim.kernels.ops import Batch
from seriatim.kernels.record import record

def forward(ops, w):
    x = ops.embed(w["x"], source="ids")
    return ops.activate(ops.linear(x, w["w"]), activation="silu")

x = (np.random.default_rng(0).standard_normal((3, 40)) * 1e-20).astype(np.float32)
w = (np.random.default_rng(1).standard_normal((50, 40)) * 1e-20).astype(np.float32)
count = np.arange(3, dtype=np.int32)
batch = Batch(count, count, count * 0, np.zeros((1, 1), np.int32), count)
_native.set_flush_to_zero("flush" in sys.argv)
for isa in isas():
    runtime = NativeRuntime(record(forward, {"x": x.shape, "w": w.shape}), {"x": x, "w": w},
                            threads=2, isa=isa)
    print(runtime.step(batch).tobytes().hex())
if "flush" in sys.argv:  # the caller's mode is given back
    assert np.float32(1e-20) * np.float32(1e-20) == 0
"""


def test_a_callers_flush_to_zero_changes_nothing():
    def run(*arguments):
        command = [sys.executable, "-c", FLUSHED, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    clean, flushed = run(), run("flush")
    assert clean == flushed and len(set(clean)) == 1
    values = np.frombuffer(bytes.fromhex(clean[0]), np.float32)
    assert (np.abs(values[values != 0]) < 1e-38).all() and (values != 0).any()  # subnormal indeed


def test_processors_are_counted_within_quotas(tmp_path):
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert _cpus("150000 100000") == 1.5
    assert all(_cpus(text) == float("inf") for text in ("", "max 100000", "-1 100000", "0 0"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "own").write_text("0::/a\n")
    assert _quota(tmp_path, tmp_path / "own") == 2


# ---- the compiler ------------------------------------------------------------------------------

LEVELS = """
import numpy as np, sys
sys.path.insert(0, sys.argv[1])
import _native
rng = np.random.default_rng(0)
for isa in _native.isas():
    p = _native.Plan(isa, 1, "bf16", [(1, 20)], [("T", 60)] * 6)
    x = rng.standard_normal((70, 60)).astype(np.float32)
    w = (rng.standard_normal((60, 60)) / 4).astype(np.float16)
    k = (rng.standard_normal((20, 60)) / 4).astype(np.float32)
    table, w, k = p.tensor(x, "f32"), p.tensor(w, "f16"), p.tensor(k, "f32")
    f = p.tensor(np.float32([1, 0.1, 0.01]), "f32")
    p.add(0, [], [table], 0, [0], [])
    p.add(2, [0], [-1, -1], 1, [1, 3], [1e-5])
    p.add(1, [1], [w, -1], 2, [], [])
    p.add(3, [], [f], 3, [], [1.0])
    p.add(4, [2, 3], [], 4, [3, 0], [])
    p.add(1, [1], [k, -1], 3, [], [])
    p.add(5, [4, 3, 3], [], 5, [0, 3, 1, 0, 0], [0.3, 5.0])
    for kind in range(5):
        p.add(6, [5, 2], [], 4, [kind], [])
        p.add(8, [5, 4], [], 1, [], [])
        p.add(10, [1], [], 5, [], [9.0])
    p.resize(2)
    count = np.arange(70, dtype=np.int32)
    table = np.array([[1, 0]], np.int32)
    print(p.step(count, count, count * 0, table, count).tobytes().hex())
    rng = np.random.default_rng(0)
"""


@pytest.mark.slow
def test_the_optimiser_changes_nothing(tmp_path):
    cmake = pytest.importorskip("cmake", reason="cmake is not installed")
    nanobind = pytest.importorskip("nanobind", reason="nanobind is not installed")
    del cmake
    results = []
    for level in ("-O1", "-O3"):
        build = tmp_path / level
        configure = [
            "cmake", "-S", ROOT, "-B", build, f"-DCMAKE_CXX_FLAGS_RELEASE={level}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind.cmake_dir()}",
        ]  # fmt: skip
        subprocess.run(configure, check=True, capture_output=True)
        subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
        command = [sys.executable, "-c", LEVELS, build]
        results.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert results[0] == results[1]
    assert len(set(results[0].split())) == 1
