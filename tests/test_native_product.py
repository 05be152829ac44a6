"""Products natively: weights in blocks against the reference, fused plans against plain ones."""

import numpy as np
import pytest
import torch
from native_runs import BF16, F16, F32, indices, isas, normal, one_sequence

from seriatim.kernels.formats import FORMATS, Blocks, expand, pack
from seriatim.kernels.native import NativeRuntime
from seriatim.kernels.ops import Batch
from seriatim.kernels.record import record
from seriatim.kernels.reference import Expanded, ReferenceOps

KINDS = list(FORMATS)
SHAPES = [(1, 1), (16, 32), (33, 65), (48, 172), (100, 96), (130, 2080)]  # rows, columns


def random_blocks(kind, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 1 << FORMATS[kind].bits, (rows, columns), dtype=np.uint8)
    groups = -(-columns // 32)
    scales = rng.normal(size=(rows, groups)).astype(np.float16)
    if kind != "int6":
        return pack(kind, q, scales)
    factors = rng.integers(-128, 128, (rows, groups, 2), dtype=np.int8)
    return pack(kind, q, scales / np.float16(64), factors)


def product(ops, w):
    return ops.linear(ops.rows(ops.embed(w["x"], source="ids")), w["w"], w.get("b"))


def run(weights, tokens, forward=product, **options):
    plan = record(forward, {name: array.shape for name, array in weights.items()})
    runtime = NativeRuntime(plan, weights, **options)
    runtime.resize(1 + tokens // 64)
    return runtime.step(one_sequence(tokens)).copy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, columns", SHAPES)
def test_blocks_equal_the_reference(kind, rows, columns):
    weights = {"x": normal(1, 9, columns), "w": random_blocks(kind, rows, columns)}
    ops = ReferenceOps(one_sequence(9))
    x = torch.from_numpy(weights["x"].astype(np.float64))
    values = Expanded(torch.from_numpy(expand(weights["w"]).astype(np.float64)))
    expected = ops.linear(x, values).numpy()
    size = np.abs(expected).max()
    np.testing.assert_allclose(run(weights, 9), expected, atol=3e-6 * size, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 130, 200])
def test_every_number_of_tokens_threads_and_instruction_set_gives_the_same_bits(kind, tokens):
    weights = {"x": normal(2, 200, 200), "w": random_blocks(kind, 150, 200)}
    alone = np.concatenate(
        [run({**weights, "x": weights["x"][i : i + 1]}, 1) for i in range(min(tokens, 5))]
    )
    for isa in isas():
        for threads in (1, 2, 3):
            here = run(weights, tokens, isa=isa, threads=threads)
            np.testing.assert_array_equal(here[: len(alone)], alone[: len(here)])
            np.testing.assert_array_equal(here, run(weights, 200)[:tokens])


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_in_blocks_is_its_values(kind):
    table = random_blocks(kind, 70, 45)
    ids = indices([0, 69, 31, 32, 15, 16])
    batch = Batch(ids, indices(range(6)), indices([0] * 6), indices([[0]]), indices(range(6)))
    plan = record(lambda ops, w: ops.rows(ops.embed(w["t"], source="ids")), {"t": table.shape})
    runtime = NativeRuntime(plan, {"t": table})
    np.testing.assert_array_equal(runtime.step(batch), expand(table)[ids])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(bad):
    x = normal(3, 2, 64)
    x[1, 40] = bad
    y = run({"x": x, "w": random_blocks("int8", 32, 64)}, 2)
    assert np.isfinite(y[0]).all() and not np.isfinite(y[1]).any()


@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-45])
def test_nearly_nothing_rounds_to_nothing(value):
    x = np.full((1, 64), value, np.float32)
    assert np.abs(run({"x": x, "w": random_blocks("int8", 32, 64)}, 1)).max() <= 1e-30


def some(kind, rows, columns, seed):
    if kind in FORMATS:
        return random_blocks(kind, rows, columns, seed)
    return normal(seed, rows, columns, dtype={"f32": F32, "f16": F16, "bf16": BF16}[kind])


def swiglu(ops, w):
    x = ops.embed(w["x"], source="ids")
    y = ops.norm(x, w["n"], None, kind="rms", eps=1e-5)
    hidden = ops.gate(ops.linear(y, w["g"], w["gb"]), ops.linear(y, w["u"]), activation="silu")
    return ops.rows(ops.add(x, ops.linear(hidden, w["d"], w["db"])))


def gelu(ops, w):
    x = ops.embed(w["x"], source="ids")
    y = ops.norm(x, w["n"], w["nb"], kind="layer", eps=1e-5)
    hidden = ops.activate(ops.linear(y, w["g"], w["gb"]), activation="gelu")
    return ops.linear(ops.norm(ops.rows(hidden), None, None, kind="rms", eps=0.0), w["d"])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", *KINDS])
@pytest.mark.parametrize("forward", [swiglu, gelu])
@pytest.mark.parametrize("tokens", [1, 5, 70])
def test_a_fused_plan_gives_the_same_bits(kind, forward, tokens):
    dim, inner = 72, 200
    weights = {
        "x": normal(4, 128, dim),
        "n": normal(5, dim),
        "nb": normal(6, dim),
        "g": some(kind, inner, dim, 7),
        "gb": normal(8, inner),
        "u": some(kind, inner, dim, 9),
        "d": some(kind, dim, inner, 10),
        "db": normal(11, dim),
    }
    for isa in isas():
        plain = run(weights, tokens, forward, fused=False, isa=isa)
        for threads in (1, 2):
            fused = run(weights, tokens, forward, threads=threads, isa=isa)
            np.testing.assert_array_equal(fused, plain)


def test_fusion_folds_what_it_should():
    shapes = {"x": (9, 32), "n": (32,), "g": (64, 32), "gb": (64,), "u": (64, 32)}
    shapes |= {"d": (32, 64), "db": (32,)}
    from seriatim.kernels.fuse import fuse

    plan = record(swiglu, shapes)
    names = [r.op for r in fuse(plan, dict.fromkeys(shapes, "bf16")).records]
    assert names == ["embed", "product", "product", "rows"]
    mixed = dict.fromkeys(shapes, "bf16") | {"u": "int4"}
    assert [r.op for r in fuse(plan, mixed).records].count("gate") == 1


def test_a_matrix_in_blocks_of_another_size_is_refused():
    blocks = random_blocks("int4", 64, 64)
    weights = {"x": normal(1, 2, 64), "w": Blocks("int4", (65, 64), blocks.data)}
    with pytest.raises(ValueError, match="matrix is not 3 x 2 x 576 bytes"):
        run(weights, 1)
