"""Running ops and small forward passes natively, for the tests of the native runtime.

Raw activations reach an op through an `embed` whose table is the matrix and whose ids count up.
"""

import ml_dtypes
import numpy as np
import pytest
import torch

from seriatim.kernels.native import NativeRuntime, isas
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.kernels.record import record
from seriatim.kernels.reference import ReferenceOps

native = pytest.importorskip("seriatim._native", reason="the extension is not built")

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = [F32, F16, BF16]


def indices(values):
    return np.array(values, dtype=np.int32)


def one_sequence(tokens, rows=None):
    """A fresh sequence of `tokens` ids 0, 1, ... in blocks 0, 1, ..."""
    count = indices(range(tokens))
    table = indices([range(tokens // BLOCK + 1)])
    return Batch(count, count, indices([0] * tokens), table, count if rows is None else rows)


def ragged_steps(lengths, tables, cut):
    """Ragged steps that bring each sequence forward by `cut(turn + sequence)` tokens at a time."""
    done, base = [0] * len(lengths), np.cumsum([0, *lengths])
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
            yield Batch(
                indices(ids), indices(position), indices(sequence), indices(tables), indices([])
            )


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


def product(ops, x, w):
    return ops.linear(x, w["w"], w.get("b"))


def attention(heads, kv_heads, **options):
    def forward(ops, w):
        q, k, v = (ops.embed(w[name], source="ids") for name in "qkv")
        options.setdefault("scale", 0.4)
        return ops.attention(q, k, v, layer=0, heads=heads, kv_heads=kv_heads, **options)

    return forward


def qkv(tokens, heads, kv_heads, channels, seed=0):
    width = {"q": heads * channels, "k": kv_heads * channels, "v": kv_heads * channels}
    return {n: normal(seed + i, tokens, w) for i, (n, w) in enumerate(width.items())}
