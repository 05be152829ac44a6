"""Native attention: the reference's values; the same bits for any chunks, company and blocks."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from native_runs import (
    as_torch,
    attention,
    everywhere,
    indices,
    make,
    native_run,
    one_sequence,
    qkv,
    ragged_steps,
    reference_run,
)

from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import Cache


def expected_attention(forward, weights, batch, kv):
    """The reference over a cache of the stored type, float64 otherwise."""
    width = weights["k"].shape[1]
    heads = forward_heads(forward)
    dtype = {"f32": torch.float64, "bf16": torch.bfloat16, "int8": torch.int8}[kv]
    cache = Cache([(heads, width // heads)], dtype, "cpu")
    cache.resize(int(batch.block_table.max()) + 1)
    return reference_run(forward, {n: as_torch(a) for n, a in weights.items()}, batch, cache)


def forward_heads(forward):
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__, strict=True))
    return cells["kv_heads"].cell_contents


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("channels", [1, 5, 12, 33, 48, 64, 80, 128])
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


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
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
        for batch in ragged_steps(lengths, tables, cut):
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
