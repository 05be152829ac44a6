"""What a step costs beside the model, by how many requests wait: it must not grow with them.

The model is a pretence that computes nothing, so that all that is measured is the engine: taking
requests in, scheduling, packing, sampling, giving blocks back. Each row runs the same work: 16
requests at a time, of which one ends and one starts every few steps.

    python benchmarks/waiting.py
"""

import argparse
import json
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from seriatim.engine.cache import BlockPool
from seriatim.engine.engine import Engine
from seriatim.kernels.ops import Batch

VOCAB, STEPS = 256, 400


class Nothing:
    """A `Runtime` that gives the same logits to everybody."""

    blocks, block_bytes, vocab_size, facts, arithmetic, kv = 0, 1, VOCAB, "nothing", "none", "f32"

    def __init__(self) -> None:
        self._logits = np.zeros((256, VOCAB), np.float32)
        self._rows = 0

    def resize(self, blocks: int) -> None: ...
    def copy(self, source: int, target: int) -> None: ...

    def read(self, block: int, positions: int) -> np.ndarray:
        return np.zeros(1, np.uint8)

    def write(self, block: int, data: np.ndarray) -> None: ...

    def step(self, batch: Batch) -> np.ndarray:
        self._rows = len(batch.rows)
        return self._logits[: self._rows]

    def finite(self) -> np.ndarray:
        return np.ones(self._rows, np.uint8)

    def best(self) -> np.ndarray:
        return np.zeros(self._rows, np.int32)

    def trace(self, batch: Batch) -> str:
        return ""


class Served:
    """What the engine needs of a model."""

    vocab_size, context, ends = VOCAB, 4096, (0,)

    def __init__(self) -> None:
        self.runtime = Nothing()
        self.pool = BlockPool(512, self.runtime.resize)


def steps(waiting: int, *, prompts: str) -> dict[str, Any]:
    """Microseconds of a step, of taking one request in, and of an abort, with so many waiting."""
    engine, draw = Engine(Served(), most=16), np.random.default_rng(0)
    shared = draw.integers(1, VOCAB, 100).tolist()
    how = dict(temperature=0, ignore_end=True)

    def add() -> Any:
        ids = shared if prompts == "equal" else draw.integers(1, VOCAB, 100).tolist()
        return engine.add(ids, max_tokens=int(draw.integers(20, 60)), **how)

    queued = [add() for _ in range(waiting + 16)]
    began = perf_counter()
    engine.step()
    arrival = (perf_counter() - began) / len(queued)
    for _ in range(50):
        engine.step()
    costs = []
    for _ in range(STEPS):
        while len(engine.scheduler.waiting) + len(engine._new) < waiting:
            queued.append(add())
        began = perf_counter()
        engine.step()
        costs.append(perf_counter() - began)
    began, last = perf_counter(), queued[-50:]
    for request in last:
        engine.abort(request)
    abort = (perf_counter() - began) / len(last)
    engine.check()
    micro = {"step": median(costs), "mean": sum(costs) / STEPS, "arrival": arrival, "abort": abort}
    return {"prompts": prompts, "waiting": waiting} | {k: 1e6 * v for k, v in micro.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="where to write the rows")
    rows = [
        steps(waiting, prompts=prompts)
        for prompts in ("different", "equal")
        for waiting in (100, 1_000, 10_000)
    ]
    print("prompts    waiting   step us   mean us   arrival us   abort us")
    for r in rows:
        print(f"{r['prompts']:10} {r['waiting']:7} {r['step']:9.1f} {r['mean']:9.1f} "
              f"{r['arrival']:12.1f} {r['abort']:10.1f}")  # fmt: skip
    if (out := parser.parse_args().json) is not None:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
