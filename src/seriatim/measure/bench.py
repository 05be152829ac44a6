"""How fast a model runs here, and how near that is to what the machine can do.

Every figure is of `Engine.step()`, which is what `generate`, the command line and servers call.
Prompts are random ids, so that no cached prefix helps. Comparisons with other programs are in
`benchmarks/`, not here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from seriatim.api import Model
from seriatim.engine.options import whole
from seriatim.errors import RequestError, shown
from seriatim.kernels.ops import BLOCK
from seriatim.measure.limits import Limits, limits
from seriatim.models import memory
from seriatim.models.spec import weights as shapes

PROMPT, TOKENS, BATCH = 256, 64, 8
SHORT = 16  # ids of each prompt of a batch: what is measured there is generating


@dataclass(frozen=True)
class Spread:
    """Milliseconds: the median, and what one in ten and one in a hundred exceed, of `count`."""

    p50: float
    p90: float
    p99: float
    count: int


@dataclass(frozen=True)
class Memory:
    """Bytes: weights as they are loaded, cache blocks that exist, and the most the process held."""

    weights: int
    cache: int
    peak_rss: int


@dataclass(frozen=True)
class Share:
    """Parts of the machine's limits: of its read bandwidth when one sequence generates (weights,
    keys and values), and of its arithmetic when a prompt is read (matrix products)."""

    bandwidth: float
    arithmetic: float


@dataclass(frozen=True)
class Bench:
    """Tokens per second by phase, waiting times, memory, and shares of the machine's limits."""

    model: str
    prompt_tokens: int
    max_tokens: int
    batch: int
    prefill_tokens_s: float
    decode_tokens_s: float
    batched_tokens_s: float
    first_token_ms: Spread
    between_tokens_ms: Spread
    memory: Memory
    machine: Limits
    share: Share


@dataclass(frozen=True)
class _Run:
    """Requests that ran together: seconds to all first ids, seconds and new ids of later steps."""

    first: float
    steps: list[float]
    made: int


def bench(
    model: Model,
    *,
    prompt_tokens: int | None = None,
    max_tokens: int | None = None,
    batch: int = BATCH,
    seconds: float = 15.0,
) -> Bench:
    """Measure a model.

    Args:
        model: what `seriatim.load` gives.
        prompt_tokens: ids of the prompt; default 256, or half the context if that is less.
        max_tokens: ids generated after it; default 64, or a quarter of the context.
        batch: how many sequences generate together.
        seconds: how long to measure; at least one run of each kind is made, however long it takes.

    Raises:
        RequestError: a number that is none of these, or more ids than the context holds.
        NumericError: the model's logits are not finite.

    Example:
        >>> import seriatim
        >>> found = bench(seriatim.load("tales"), prompt_tokens=8, max_tokens=4, seconds=0.1)
        >>> found.first_token_ms.p50 <= found.first_token_ms.p99
        True
    """
    prompt, tokens = _lengths(model, prompt_tokens, max_tokens)
    batch = whole("batch", batch, 1)
    if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise RequestError(f"seconds is {shown(seconds)}", expected="a number above 0")
    draw = np.random.default_rng(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return draw.integers(0, model.vocab_size, (count, length)).tolist()

    _run(model, prompts(1, min(SHORT, prompt)), 2)  # maps the weights
    single = _repeat(lambda: _run(model, prompts(1, prompt), tokens), 0.6 * seconds)
    many = _repeat(lambda: _run(model, prompts(batch, min(SHORT, prompt)), tokens), 0.4 * seconds)
    held = _memory(model)  # before the limits, whose measurement takes more
    firsts, gaps = [run.first for run in single], [gap for run in single for gap in run.steps]
    prefill, decode = prompt * len(firsts) / sum(firsts), len(gaps) / sum(gaps)
    machine = limits()
    return Bench(
        model=model.facts,
        prompt_tokens=prompt,
        max_tokens=tokens,
        batch=batch,
        prefill_tokens_s=prefill,
        decode_tokens_s=decode,
        batched_tokens_s=sum(run.made for run in many) / sum(sum(run.steps) for run in many),
        first_token_ms=_spread(firsts),
        between_tokens_ms=_spread(gaps),
        memory=held,
        machine=machine,
        share=Share(
            bandwidth=decode * step_bytes(model, prompt + tokens // 2) / 1e9 / machine.read_gb_s,
            arithmetic=_operations(model, prompt) * prefill / prompt / 1e9 / _peak(model, machine),
        ),
    )


def lines(found: Bench) -> dict[str, str]:
    """What a person reads, line by line."""
    held, machine = found.memory, found.machine
    return {
        "model": found.model,
        "prefill": f"{found.prefill_tokens_s:,.1f} tokens/s, {found.prompt_tokens} at once",
        "decode": f"{found.decode_tokens_s:,.1f} tokens/s",
        f"decode, batch {found.batch}": f"{found.batched_tokens_s:,.1f} tokens/s",
        "first token": _waits(found.first_token_ms),
        "between tokens": _waits(found.between_tokens_ms),
        "weights": f"{held.weights / 1e6:,.1f} MB",
        "cache": f"{held.cache / 1e6:,.1f} MB",
        "peak memory": f"{held.peak_rss / 1e6:,.1f} MB",
        "machine": f"reads {machine.read_gb_s:.1f} GB/s, f32 {machine.f32_gflop_s:.0f} GFLOP/s, "
        f"{machine.processors} processors",
        "share reached": f"{found.share.bandwidth:.0%} of the bandwidth (decode), "
        f"{found.share.arithmetic:.0%} of the arithmetic (prefill)",
    }


def _waits(spread: Spread) -> str:
    return (
        f"{spread.p50:.2f} ms (p50), {spread.p90:.2f} (p90), {spread.p99:.2f} (p99) "
        f"of {spread.count}"
    )


def step_bytes(model: Model, context: int) -> float:
    """Bytes that one generating step reads: weights, and keys and values of `context` positions.

    An embedding that is not the head too is looked up, not read.
    """
    spec = model.checkpoint.spec
    looked_up = spec.positions * spec.width + (0 if spec.tied else spec.vocab_size * spec.width)
    read = 1 - looked_up / sum(int(np.prod(shape)) for shape in shapes(spec).values())
    return model.weight_bytes * read + context * model.runtime.block_bytes / BLOCK


def _operations(model: Model, tokens: int) -> float:
    """Of the matrix products that read a prompt, with one row of logits: 2 for each weight."""
    spec = model.checkpoint.spec
    matrices = {name: shape for name, shape in shapes(spec).items() if len(shape) == 2}
    layers = sum(n * k for name, (n, k) in matrices.items() if name.startswith("layers."))
    return 2.0 * (tokens * layers + spec.vocab_size * spec.width)


def _peak(model: Model, machine: Limits) -> float:
    """Gop/s of the arithmetic that the weights call for: of bytes at int8 and int4, else of f32."""
    bits = 8 * model.weight_bytes / model.checkpoint.parameters
    return machine.int8_gop_s if bits < 10 else machine.f32_gflop_s


def _lengths(model: Model, prompt: int | None, tokens: int | None) -> tuple[int, int]:
    """Prompt and generated ids, which together must fit the context."""
    prompt = (
        min(PROMPT, model.context // 2) if prompt is None else whole("prompt_tokens", prompt, 1)
    )
    tokens = min(TOKENS, model.context // 4) if tokens is None else whole("max_tokens", tokens, 2)
    if prompt + tokens > model.context:
        raise RequestError(
            f"prompt_tokens {prompt} and max_tokens {tokens} are {prompt + tokens} ids",
            expected=f"at most the context, {model.context}",
        )
    return prompt, tokens


def _run(model: Model, prompts: Sequence[Sequence[int]], tokens: int) -> _Run:
    """Sampled at temperature 1, past any end id, so that every request is as long."""
    engine, begin = model.engine, perf_counter()
    requests = [engine.add(ids, max_tokens=tokens, seed=0, ignore_end=True) for ids in prompts]
    try:
        while any(not r.generated and not r.done for r in requests):
            engine.step()
        first, made = perf_counter() - begin, sum(r.generated for r in requests)
        steps = list(_steps(model, lambda: any(not r.done for r in requests)))
    finally:
        for request in requests:
            engine.abort(request)  # those that are done stay as they are
    for request in requests:
        if request.error is not None:
            raise request.error
    return _Run(first, steps, sum(r.generated for r in requests) - made)


def _steps(model: Model, more: Callable[[], bool]) -> Iterator[float]:
    """Seconds of each step until there is no more."""
    while more():
        begin = perf_counter()
        model.engine.step()
        yield perf_counter() - begin


def _repeat(run: Callable[[], _Run], seconds: float) -> list[_Run]:
    """As many runs as begin within `seconds`."""
    end = perf_counter() + seconds
    runs = [run()]
    while perf_counter() < end:
        runs.append(run())
    return runs


def _spread(seconds: Sequence[float]) -> Spread:
    p50, p90, p99 = (float(p) for p in 1000 * np.percentile(seconds, (50, 90, 99)))
    return Spread(p50, p90, p99, len(seconds))


def _memory(model: Model) -> Memory:
    run = model.runtime
    return Memory(model.weight_bytes, run.blocks * run.block_bytes, memory.peak())
