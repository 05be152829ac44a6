"""seriatim, by the path that its users take: `Engine.step()`. A job is described in lines.py.

Four kinds have no peer: "draft" (a step of drafted rows beside a step of one, by the runtime),
"sampling" (one draw, microseconds), "overhead" (what the engine adds to the runtime's own time,
microseconds) and "prefix" (milliseconds to the first id of a prompt met before).
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from lines import PROMPT, STEPS, serve, starts, until

import seriatim
from seriatim.engine.sampler import Sampling, draw
from seriatim.kernels.ops import BLOCK, Batch

Measure = Callable[[], dict[str, float]]


class Timed:
    """A runtime that adds up the seconds spent in its calls."""

    def __init__(self, run: Any) -> None:
        self.run, self.seconds = run, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.run, name)
        if not callable(found):
            return found

        def timed(*args: Any, **named: Any) -> Any:
            begin = perf_counter()
            try:
                return found(*args, **named)
            finally:
                self.seconds += perf_counter() - begin

        return timed


def prepare(job: dict[str, Any]) -> tuple[int, Measure]:
    if job["kind"] == "sampling":
        return 0, sampling(job)
    most = max(starts(job)) + job["tokens"] + STEPS + BLOCK
    model = seriatim.load(job["path"], threads=job["threads"], kv=job["kv"], context=most)
    kinds = {
        "decode": generate, "prefill": prefill, "draft": draft, "overhead": overhead,
        "prefix": prefix,
    }  # fmt: skip
    return model.weight_bytes, kinds[job["kind"]](model, job)


def prefill(model: seriatim.Model, job: dict[str, Any]) -> Measure:
    """New ids each time, so that nothing is cached: tokens/s, the first sampled id included."""
    prompts = _prompts(model)
    engine = seriatim.Engine(model, budget=job["tokens"])

    def measure() -> dict[str, float]:
        begin = perf_counter()
        for count in until(job["seconds"]):
            request = engine.add(prompts(job["tokens"]), max_tokens=1, temperature=0)
            _step(engine, [request])
            done = count + 1
        return {"value": done * job["tokens"] / (perf_counter() - begin)}

    return measure


def generate(model: seriatim.Model, job: dict[str, Any]) -> Measure:
    """Greedy tokens/s of all sequences together; a long prompt is read once, then cached."""
    engine = seriatim.Engine(model)
    chosen = list(map(_prompts(model), starts(job)))

    def again(requests: list[Any]) -> list[Any]:
        for request in requests:
            engine.abort(request)
        requests = [engine.add(ids, temperature=0, ignore_end=True) for ids in chosen]
        while not all(request.generated for request in requests):
            _step(engine, requests)
        _step(engine, requests)
        return requests

    for request in again([]):
        engine.abort(request)  # a long prompt takes its time now, and is cached from here on

    def measure() -> dict[str, float]:
        requests, times = [], []
        for step in until(job["seconds"], least=3):
            if step % STEPS == 0:
                requests = again(requests)
            begin = perf_counter()
            _step(engine, requests)
            times.append(perf_counter() - begin)
        for request in requests:
            engine.abort(request)
        return {"value": len(requests) * len(times) / sum(times)}

    return measure


def prefix(model: seriatim.Model, job: dict[str, Any]) -> Measure:
    """Milliseconds to the first id of a prompt met before, and as "base" of a new one."""
    engine, prompts = seriatim.Engine(model), _prompts(model)

    def seconds(ids: list[int]) -> float:
        begin = perf_counter()
        request = engine.add(ids, max_tokens=1, temperature=0)
        while not request.done:
            _step(engine, [request])
        return perf_counter() - begin

    def measure() -> dict[str, float]:
        ids = prompts(job["tokens"])
        base = seconds(ids)
        value = median(seconds(ids) for _ in range(5))
        return {"value": 1000 * value, "base": 1000 * base}

    return measure


def overhead(model: seriatim.Model, job: dict[str, Any]) -> Measure:
    """Microseconds a step: the engine's own, and as "base" the runtime's."""
    engine, prompts = seriatim.Engine(model), _prompts(model)

    def measure() -> dict[str, float]:
        run = model.runtime
        model.runtime = timed = Timed(run)
        request = engine.add(prompts(PROMPT), temperature=0, ignore_end=True)
        _step(engine, [request])
        times = []
        for _ in range(STEPS):
            timed.seconds, begin = 0.0, perf_counter()
            engine.step()
            times.append((perf_counter() - begin - timed.seconds, timed.seconds))
        engine.abort(request)
        model.runtime = run
        own, base = (1e6 * median(some) for some in zip(*times, strict=True))
        return {"value": own, "base": base}

    return measure


def draft(model: seriatim.Model, job: dict[str, Any]) -> Measure:
    """Milliseconds of a step of `tokens` rows of one sequence and, as "base", of one row."""
    run = model.runtime
    run.resize(2)
    run.step(_batch(model, 0, BLOCK, logits=1))

    def seconds(count: int) -> float:
        batch = _batch(model, BLOCK, count, logits=count)
        begin = perf_counter()
        run.step(batch)
        return perf_counter() - begin

    def measure() -> dict[str, float]:
        times = [(seconds(job["tokens"]), seconds(1)) for _ in until(job["seconds"], 5)]
        value, base = (1000 * median(some) for some in zip(*times, strict=True))
        return {"value": value, "base": base}

    return measure


def sampling(job: dict[str, Any]) -> Measure:
    """Microseconds of a draw from `tokens` logits with temperature, top-k and top-p."""
    how = Sampling(temperature=0.8, top_k=50, top_p=0.95)
    logits = 3 * np.random.default_rng(0).standard_normal(job["tokens"], np.float32)
    history = list(range(PROMPT))

    def microseconds(seed: int) -> float:
        begin = perf_counter()
        draw(logits, how, ids=history, prompt=PROMPT, seed=seed, top=None)
        return 1e6 * (perf_counter() - begin)

    return lambda: {"value": median(map(microseconds, until(job["seconds"], 5)))}


def _step(engine: seriatim.Engine, requests: list[Any]) -> None:
    engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error


def _prompts(model: seriatim.Model) -> Callable[[int], list[int]]:
    random = np.random.default_rng(0)
    return lambda length: random.integers(0, model.vocab_size, length).tolist()


def _batch(model: seriatim.Model, first: int, count: int, *, logits: int) -> Batch:
    """`count` tokens of one sequence from position `first` on; the last `logits` want rows."""
    places = np.arange(count, dtype=np.int32)
    return Batch(
        ids=places * 7919 % model.vocab_size,
        position=first + places,
        sequence=np.zeros(count, np.int32),
        block_table=np.array([[0, 1]], np.int32),
        rows=places[count - logits :],
    )


if __name__ == "__main__":
    serve(prepare)
