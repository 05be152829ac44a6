"""A native step: what it refuses, what it reports, and what must not change its bits."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from native_runs import (
    attention,
    indices,
    make,
    native,
    native_run,
    normal,
    on,
    one_sequence,
    product,
    qkv,
)

from seriatim.errors import ModelError, RequestError
from seriatim.kernels.native import NativeRuntime, _cpus, _quota, available_cpus
from seriatim.kernels.ops import Batch
from seriatim.kernels.record import record


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
    assert make(forward, weights, threads=2).trace(one_sequence(2)) == "w (product)"


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
