"""What a run will take, said before its first step: ids, operations, time and memory.

Operations follow from the model alone; time and memory from a short measurement: a few rows forward
and backward, one layer's update. Nothing of the run changes by it, and nothing in the run follows
from it.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.models.spec import Spec, weights
from seriatim.train.batches import Batch
from seriatim.train.memory import forget_peak, give_back, peak_bytes, resident
from seriatim.train.model import Model
from seriatim.train.objectives import Objective
from seriatim.train.optim import Optimizer
from seriatim.train.report import Forecast

SECONDS = 3.0  # of measuring forward and backward, about

Make = Callable[[Mapping[str, Tensor]], Optimizer]


def flops(spec: Spec, context: int) -> float:
    """Operations that a row's id takes, forward and backward.

    Two for each weight of a product and thrice that with the backward pass (Kaplan et al. 2020,
    arXiv:2001.08361, appendix B), and as much for the scores and sums of attention, which sees
    half of the context on average. Weights that stay as they are have no gradient: a third less.

    Example:
        >>> from seriatim.train.dial import dial
        >>> round(flops(dial("1M", 1024).spec, 512) / 1e6, 2)
        8.29
    """
    products = sum(
        shape[0] * shape[1]
        for name, shape in weights(spec).items()
        if len(shape) == 2 and not name.startswith(("embed.", "position."))
    )
    products += spec.vocab_size * spec.width * spec.tied
    seen = sum(l.attention.heads * l.attention.channels for l in spec.layers) * (context + 1) / 2
    return 6 * products + 12 * seen


def forecast(
    model: Model, task: Objective, make: Make, parts: list[Batch], *, steps: int
) -> Forecast:
    """What `steps` of these should take.

    Args:
        make: gives the run's optimizer, for any weights.
        parts: of one batch of the run, as they are computed one by one.
    """
    rows, context = parts[0].inputs.shape
    ids = sum(part.inputs.size for part in parts)
    # As rows of the last step: there an objective may do what it did not at first.
    later = (steps - 1) * sum(len(part.numbers) for part in parts)
    last = replace(parts[0], numbers=parts[0].numbers + later)
    give_back()
    one = _pass(model, task, last.rows(slice(1)))
    count = min(rows, max(2, int(SECONDS / one.seconds)))
    some = _pass(model, task, last.rows(slice(count))) if count > 1 else one
    row = max(0, some.bytes - one.bytes) / max(1, count - 1)  # bytes that one more takes
    seconds = some.seconds * ids / (count * context) + _update_seconds(model, make)
    learning = some.bytes + row * (rows - count)
    updating = one.before + sum(w.nbytes for w in model.weights.values()) + _workspace(model)
    return Forecast(
        flops=steps * ids * flops(model.spec, context) * (2 / 3 if model.beside else 1),
        seconds=steps * seconds,
        bytes=round(max(learning, updating)),
        tokens=steps * ids,
    )


class Pass(NamedTuple):
    """Forward and backward over some rows: how long, memory in use before and at its most."""

    seconds: float
    before: int
    bytes: int


def _pass(model: Model, task: Objective, rows: Batch) -> Pass:
    """The second of two: the first makes what stays, such as the libraries' own buffers."""
    forget_peak(model.device)
    before, seconds = resident(model.device), inf
    for _ in range(2):
        begun = time.perf_counter()
        made = task.prepare(rows)
        (task.loss(model, made) / max(1, made.learned)).backward()
        _wait(model)
        seconds = min(seconds, time.perf_counter() - begun)
    model.clear()
    return Pass(seconds, before, peak_bytes(model.device))


def _update_seconds(model: Model, make: Make) -> float:
    """An update, from copies of the first layer's weights and of those in no layer."""
    depth = len(model.spec.layers)
    layer, rest = (
        [name for name in model.weights if name.startswith(begin) == inside]
        for begin, inside in (("layers.0.", True), ("layers.", False))
    )
    return depth * _update_of(model, make, layer) + _update_of(model, make, rest)


def _update_of(model: Model, make: Make, names: list[str]) -> float:
    copies = {name: model.weights[name].detach().clone() for name in names}
    for copy in copies.values():
        copy.grad = torch.ones_like(copy)
    small = make(copies)
    times = []
    for step in range(2):
        begun = time.perf_counter()
        small.step(step, 1.0)
        _wait(model)
        times.append(time.perf_counter() - begun)
    return min(times)


def _wait(model: Model) -> None:
    if torch.device(model.device).type == "cuda":
        torch.cuda.synchronize(model.device)


def _workspace(model: Model) -> int:
    """What Muon holds while it turns the matrices of one shape: about five times their bytes."""
    groups: dict[tuple[int, ...], int] = defaultdict(int)
    for name, weight in model.weights.items():
        if name.startswith("layers.") and weight.ndim == 2:
            groups[tuple(weight.shape)] += 5 * weight.numel() * weight.element_size()
    return max(groups.values(), default=0)
