"""Each kernel's GB/s and Gop/s beside the machine's limits, measured on the spot.

    python benchmarks/kernels.py [--only PATTERN] [--threads N] [--isa NAME] [--json FILE]

A kernel runs as a plan of many copies of one op over weights that lie apart in memory, so that at
one token they come from memory, as in a model. Times are medians of one op, its barriers included;
what a barrier costs is the last but one group. Shares are of the limits measured just before.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from shapes import SHAPES

from seriatim.engine.sampler import Sampling, draw
from seriatim.kernels.formats import FORMATS, Blocks
from seriatim.kernels.native import NativeRuntime, available_cpus
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.kernels.record import record
from seriatim.measure.limits import Limits, limits
from seriatim.models.weights import DTYPES

COLD = 96 << 20  # bytes of weights, keys or values in a plan: more than the caches hold
SECONDS = 0.3  # of one measurement
IDS = 64  # rows of the tables that inputs are looked up in
KINDS = ("f32", "bf16", "int8", "int4")
ATTENDED = (  # length, tokens of it, sequences
    (512, 1, 1),
    (2048, 1, 1),
    (8192, 1, 1),
    (512, 1, 16),
    (512, 256, 1),
    (2048, 256, 1),
)


@dataclass(frozen=True)
class Setting:
    """How the kernels run."""

    threads: int
    isa: str | None


@dataclass(frozen=True)
class Found:
    """Seconds of one op, the bytes of weights or cache it reads, and its additions and products."""

    seconds: float
    bytes: float = 0
    operations: float = 0


Case = tuple[str, str, Callable[[Setting], Found]]  # name, type of the arithmetic, measurement


def linear(kind: str, rows: int, columns: int, tokens: int, how: Setting) -> Found:
    """A product of `tokens` vectors with a matrix [rows, columns]."""
    weight = _matrix(kind, rows, columns)
    copies = max(2, -(-COLD // weight.nbytes)) if tokens <= 16 else 2

    def forward(ops: Any, w: Any) -> Any:
        x = ops.rows(ops.embed(w["table"], source="ids"))
        return [ops.linear(x, w[f"matrix.{i}"]) for i in range(copies)][-1]

    weights = {f"matrix.{i}": _copy(weight) for i in range(copies)}
    run = _runtime(forward, weights | {"table": _table(columns)}, how)
    seconds = _median(lambda: run.step(_batch(tokens)))
    return Found(seconds / copies, weight.nbytes, 2.0 * rows * columns * tokens)


def attention(shape: str, kv: str, length: int, tokens: int, sequences: int, how: Setting) -> Found:
    """The last `tokens` of `sequences`, each `length` positions long; keys and values are read.

    With its rotation and cache write, after a product of 16 columns, as models have it: fused.
    """
    dim, _, _, heads, kv_heads, _ = SHAPES[shape]
    channels, layers = dim // heads, 8

    def forward(ops: Any, w: Any) -> Any:
        x = ops.embed(w["table"], source="ids")
        angles = ops.rotary(tuple([0.1] * (channels // 2)), scale=1.0)

        def turned(name: str, heads: int) -> Any:
            return ops.rope(ops.linear(x, w[name]), angles, heads=heads, layout="half")

        mixed = [
            ops.attention(
                turned("query", heads),
                turned("key", kv_heads),
                ops.linear(x, w["value"]),
                layer=i,
                heads=heads,
                kv_heads=kv_heads,
                scale=channels**-0.5,
            )
            for i in range(layers)
        ]
        return ops.rows(mixed[-1])

    inner = {"query": dim, "key": kv_heads * channels, "value": kv_heads * channels}
    weights = {name: _matrix("f32", rows, 16) for name, rows in inner.items()}
    run = _runtime(forward, weights | {"table": _table(16)}, how, kv=kv)
    run.resize(sequences * -(-length // BLOCK))
    for first in range(0, length, BLOCK):  # memory that was never written is not read from memory
        run.step(_batch(min(BLOCK, length - first), first, sequences, length))
    batch = _batch(tokens, length - tokens, sequences, length)
    seconds = _median(lambda: run.step(batch))
    seen = sequences * sum(range(length - tokens + 1, length + 1))
    stored = sequences * length * run.block_bytes / BLOCK / layers
    return Found(seconds / layers, stored, 4.0 * seen * heads * channels)


def pointwise(op: str, width: int, tokens: int, how: Setting) -> Found:
    """One of the ops between products, in f32."""
    copies, eps = 64, 1e-5
    calls: dict[str, Callable[[Any, Any, Any], Any]] = {
        "norm": lambda ops, x, w: ops.norm(x, w["gain"], None, kind="rms", eps=eps),
        "add": lambda ops, x, w: ops.add(x, x),
        "gate": lambda ops, x, w: ops.gate(x, x, activation="silu"),
        "scale": lambda ops, x, w: ops.scale(x, factor=1.0),
    }

    def forward(ops: Any, w: Any) -> Any:
        x = ops.embed(w["table"], source="ids")
        for _ in range(copies):
            x = calls[op](ops, x, w)
        return ops.rows(x)

    weights = {"table": _table(width), "gain": np.ones(width, np.float32)}
    run = _runtime(forward, weights, how)
    seconds = _median(lambda: run.step(_batch(tokens)))
    return Found(seconds / copies, 8.0 * width * tokens)


def barrier(how: Setting) -> Found:
    """What more than one thread adds to an op on 16 numbers: one barrier."""
    alone = pointwise("scale", 16, 1, Setting(1, how.isa))
    return Found(max(0.0, pointwise("scale", 16, 1, how).seconds - alone.seconds))


def sampler(vocabulary: int, sampling: Sampling, how: Setting) -> Found:
    """One draw."""
    logits = 3 * np.random.default_rng(0).standard_normal(vocabulary, np.float32)
    call = partial(draw, logits, sampling, ids=[1, 2, 3], prompt=3, seed=0, top=None)
    return Found(_median(call), logits.nbytes)


def cases() -> Iterator[Case]:
    for shape in ("1B", "135M"):
        dim, ffn, *_ = SHAPES[shape]
        for kind in KINDS:
            for rows, columns in ((ffn, dim), (dim, ffn)):
                for tokens in (1, 4, 16, 256):
                    name = f"linear {kind} [{rows}, {columns}] x {tokens}"
                    yield name, kind, partial(linear, kind, rows, columns, tokens)
    for shape in ("1B", "135M"):
        for kv in ("f32", "bf16", "int8"):
            for length, tokens, sequences in ATTENDED:
                name = f"attention {shape} kv {kv}, {sequences} x {tokens} at {length}"
                yield name, "f32", partial(attention, shape, kv, length, tokens, sequences)
    for op in ("norm", "add", "gate"):
        for tokens in (1, 256):
            yield f"{op} 2048 x {tokens}", "f32", partial(pointwise, op, 2048, tokens)
    yield "barrier", "f32", barrier
    for vocabulary in (32000, 128256):
        for name, how in SAMPLINGS.items():
            yield f"sampler {vocabulary}, {name}", "f32", partial(sampler, vocabulary, how)


SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "temperature": Sampling(temperature=0.8),
    "temperature, top-k, top-p": Sampling(temperature=0.8, top_k=50, top_p=0.95),
}


def _runtime(forward: Any, weights: Any, how: Setting, kv: str = "f32") -> NativeRuntime:
    plan = record(forward, {name: array.shape for name, array in weights.items()})
    return NativeRuntime(plan, weights, threads=how.threads, isa=how.isa, kv=kv)


def _matrix(kind: str, rows: int, columns: int) -> Any:
    random = np.random.default_rng(0)
    if kind not in FORMATS:
        return random.standard_normal((rows, columns), np.float32).astype(DTYPES[kind])
    data = random.integers(0, 48, FORMATS[kind].shape(rows, columns), np.uint8)  # finite scales
    return Blocks(kind, (rows, columns), data)


def _copy(weight: Any) -> Any:
    if isinstance(weight, Blocks):
        return Blocks(weight.kind, weight.shape, weight.data.copy())
    return weight.copy()


def _table(width: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((IDS, width), np.float32)


def _batch(tokens: int, first: int = 0, sequences: int = 1, length: int = 0) -> Batch:
    """`tokens` of each sequence from position `first` on; every one wants its row."""
    blocks = -(-max(length, tokens) // BLOCK)
    count = tokens * sequences
    return Batch(
        ids=np.arange(count, dtype=np.int32) % IDS,
        position=np.tile(np.arange(first, first + tokens, dtype=np.int32), sequences),
        sequence=np.repeat(np.arange(sequences, dtype=np.int32), tokens),
        block_table=np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks),
        rows=np.arange(count, dtype=np.int32),
    )


def _median(call: Callable[[], object]) -> float:
    call()
    times, end = [], perf_counter() + SECONDS
    while len(times) < 3 or perf_counter() < end:
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return median(times)


def line(name: str, kind: str, found: Found, machine: Limits) -> dict[str, Any]:
    peak = machine.int8_gop_s if kind in FORMATS else machine.f32_gflop_s
    seconds = max(found.seconds, 1e-12)  # a barrier may cost nothing
    read, done = found.bytes / 1e9 / seconds, found.operations / 1e9 / seconds
    return {
        "kernel": name,
        "us": 1e6 * found.seconds,
        "gb_s": read,
        "share_of_read": read / machine.read_gb_s,
        "gop_s": done,
        "share_of_arithmetic": done / peak,
        "machine": asdict(machine),
    }


def shown(found: dict[str, Any]) -> str:
    text = f"{found['kernel']:46} {found['us']:11.2f} us"
    if found["gb_s"]:
        text += f" {found['gb_s']:7.1f} GB/s {found['share_of_read']:5.0%}"
    if found["gop_s"]:
        text += f" {found['gop_s']:8.1f} Gop/s {found['share_of_arithmetic']:5.0%}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="PATTERN")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--isa")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    how, group, machine, rows = Setting(args.threads, args.isa), "", limits(), []
    for name, kind, run in cases():
        if not re.search(args.only, name):
            continue
        if group != (group := " ".join(name.split()[:2])):
            machine = limits()
            print(f"-- reads {machine.read_gb_s:.1f} GB/s, f32 {machine.f32_gflop_s:.0f} Gop/s")
        try:
            rows.append(line(name, kind, run(how), machine))
            print(shown(rows[-1]), flush=True)
        except Exception as error:  # one kernel that is not there must not hide the others
            rows.append({"kernel": name, "error": f"{type(error).__name__}: {error}"})
            print(f"{name:46} FAILED {rows[-1]['error']}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
