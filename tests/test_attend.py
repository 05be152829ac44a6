"""The fused `attend`: to the bit the records it stands for, for any shape, chunks and company."""

import numpy as np
import pytest
import torch
from fused_attention import Layer, make_fused, make_unfused, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from native_runs import indices, one_sequence, ragged_steps

from seriatim.kernels.native import isas
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.kernels.reference import round_heads

KV = ["f32", "bf16", "int8"]


@st.composite
def layers(draw):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    channels = draw(st.sampled_from([1, 16, 20, 33, 48, 64, 80, 96, 128]))
    return Layer(
        kv_heads * group,
        kv_heads,
        channels,
        turned=draw(st.integers(0, channels // 2)) * 2,
        layout=draw(st.sampled_from(["half", "interleaved"])),
        norm=draw(st.sampled_from([None, "rms", "layer"])),
        window=draw(st.sampled_from([0, 0, 1, 40, 64, 100])),
        softcap=draw(st.sampled_from([0.0, 0.0, 5.0])),
    )


def bits(array):
    return array.view(np.uint32)


def fresh(make, layer, tables, blocks, **options):
    """A runtime whose cache holds nothing but poison."""
    runtime = make(layer, tables, **options)
    runtime.resize(blocks)
    for block in range(blocks):
        runtime.poison(block)
    return runtime


def whole(make, layer, tables, tokens, **options):
    runtime = fresh(make, layer, tables, tokens // BLOCK + 1, **options)
    return runtime.step(one_sequence(tokens)).copy()


@given(layer=layers(), tokens=st.integers(1, 200), kv=st.sampled_from(KV))
@settings(max_examples=40, deadline=None)
def test_it_is_the_records_it_stands_for(layer, tokens, kv):
    tables = weights(layer, tokens)
    expected = whole(make_unfused, layer, tables, tokens, kv=kv, threads=1)
    assert np.isfinite(expected).all()
    for isa in isas():
        for threads in (1, 2, 3):
            got = whole(make_fused, layer, tables, tokens, kv=kv, threads=threads, isa=isa)
            np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("window", [0, 150])
@pytest.mark.parametrize("heads, kv_heads, channels", [(9, 3, 64), (4, 1, 20), (3, 3, 48)])
def test_chunks_company_blocks_and_threads_change_nothing(kv, window, heads, kv_heads, channels):
    """Sequences whose blocks lie in random order, in steps of any shape: the same bits."""
    layer = Layer(heads, kv_heads, channels, turned=channels // 2, norm="rms", window=window)
    lengths = [390, 1, 65, 130]
    order = np.random.default_rng(1).permutation(20)
    tables = [[*order[:7]], [order[7]] + [-1] * 6, [*order[8:10]] + [-1] * 5,
              [*order[10:13]] + [-1] * 4]  # fmt: skip
    table = weights(layer, sum(lengths))
    alone = []
    for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
        part = {n: a[start : start + length] if a.ndim == 2 else a for n, a in table.items()}
        alone.append(whole(make_unfused, layer, part, length, kv=kv, threads=1))
    expected = np.concatenate(alone)
    for threads, cut in [
        (1, lambda i: 390),
        (2, lambda i: 1),
        (3, lambda i: 1),
        (2, lambda i: 4),
        (3, lambda i: 1 + 7 * i % 90),
        (2, lambda i: i % 2 * 64),
    ]:
        runtime = fresh(make_fused, layer, table, 20, kv=kv, threads=threads)
        got = np.full_like(expected, np.nan)
        for batch in ragged_steps(lengths, tables, cut):
            got[batch.ids] = runtime.step(batch)
        np.testing.assert_array_equal(bits(got), bits(expected))


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("heads, kv_heads, window", [(8, 1, 0), (3, 3, 0), (4, 2, 30)])
def test_what_comes_later_in_the_same_step_changes_nothing(kv, heads, kv_heads, window):
    """Keys and values that are NaN reach the tokens that see them, and no others."""
    layer, tokens, bad = Layer(heads, kv_heads, 64, window=window), 140, 70
    tables = weights(layer, tokens)
    expected = whole(make_fused, layer, tables, tokens, kv=kv)
    for name in ("key", "value"):
        spoilt = {n: a.copy() for n, a in tables.items()}
        spoilt[name][bad, 5] = np.nan
        got = whole(make_fused, layer, spoilt, tokens, kv=kv)
        np.testing.assert_array_equal(bits(got[:bad]), bits(expected[:bad]))
        reached = slice(bad, bad + window if window else tokens)
        assert np.isnan(got[reached]).any(axis=1).all()
        np.testing.assert_array_equal(bits(got[reached.stop :]), bits(expected[reached.stop :]))


@pytest.mark.parametrize("channels", [1, 16, 33, 64])
def test_int8_values_are_whole_multiples_of_their_largest_over_127(channels):
    """One token attends to itself alone: its value as it is stored."""
    layer = Layer(2, 2, channels)
    tables = weights(layer, 5)
    value = tables["value"].reshape(5, 2, channels)
    value[1] = 0
    value[2] *= 1e-38  # too small to have a factor: zeros
    value[3, 0], value[4, 1, 0] = np.inf, np.nan
    expected = round_heads(torch.from_numpy(value)).numpy().reshape(5, -1)
    assert np.isnan(expected[3, :channels]).all() and np.isnan(expected[4, channels:]).all()
    for isa in isas():
        runtime = fresh(make_fused, layer, tables, 5, kv="int8", isa=isa)
        each = indices(range(5))
        batch = Batch(each, each * 0, each, each[:, None], indices([]))
        got = runtime.step(batch)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_few_long_items_are_cut_without_a_trace(threads):
    """One head over many chunks: workers share them; ahead of it, short sequences."""
    layer = Layer(2, 1, 48, turned=48)
    tables = weights(layer, 1000)
    expected = whole(make_fused, layer, tables, 1000, kv="bf16", threads=1)
    runtime = fresh(make_fused, layer, tables, 18, kv="bf16", threads=threads)
    table = indices([[16] + [-1] * 15, [17] + [-1] * 15, range(16)])
    head = indices(range(990))
    runtime.step(Batch(head, head, head * 0 + 2, table, head[:0]))
    for first, last in ((990, 991), (991, 992), (992, 996), (996, 1000)):
        ids = indices([0, 0, *range(first, last)])
        sequence = indices([0, 1, *[2] * (last - first)])
        got = runtime.step(Batch(ids, ids, sequence, table, head[:0]))
        np.testing.assert_array_equal(bits(got), bits(expected[ids]))
