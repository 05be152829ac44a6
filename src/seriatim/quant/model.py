"""Which weights of a model go into blocks, and how: the three methods, put together.

round    each value to the nearest: seconds, for loading
search   the scale of each group searched for; needs nothing but the weights
feedback what a rounding loses is made up for on given ids, or on ids the model draws itself
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil

import numpy as np

from seriatim.errors import ModelError, RequestError, did_you_mean
from seriatim.kernels.formats import MADE, Array, Blocks
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.models import runtime
from seriatim.models.config import Say, silent
from seriatim.models.spec import Spec
from seriatim.models.weights import Weights, dtype_name, first_nonfinite
from seriatim.quant import inputs
from seriatim.quant.feedback import Moments, feedback
from seriatim.quant.inputs import Windows
from seriatim.quant.rounding import quantise as rounded
from seriatim.quant.search import search

METHODS = ("round", "search", "feedback")
DRAWN, LENGTH = 32, 256  # windows that a model draws for itself, and ids in each


def quantise(
    weights: Mapping[str, Array],
    spec: Spec,
    kind: str,
    *,
    method: str = "round",
    importance: Windows | None = None,
    start: int | None = None,
    say: Say = silent,
) -> Weights:
    """The weights with every matrix of a product, and the table of ids, in blocks.

    Vectors and tables of positions stay as they are, and so do blocks of the same kind.

    Args:
        weights: by the names of `spec.weights(spec)`.
        spec: the model.
        kind: "int8" or "int4".
        method: "round", "search" or "feedback".
        importance: windows of ids to keep the outputs on; they turn "search" into "feedback",
            which without them draws its own from the model.
        start: the id that drawn windows begin with; default: any.
        say: told of each weight as it is done.

    Raises:
        RequestError: an unknown kind or method, or weights in blocks of another kind.
        ModelError: a weight that f16 scales cannot hold.
    """
    _check(weights, kind, method, importance)
    method = "feedback" if importance is not None else method
    names = [name for name in weights if is_product(name, weights[name])]
    todo = [name for name in names if not isinstance(weights[name], Blocks)]
    done: Weights = {}

    def keep(name: str, choose: Callable[[], Blocks]) -> Blocks:
        try:
            done[name] = blocks = choose()
        except ModelError as error:
            raise ModelError(f"{name}: {error.seen}", fix=error.fix) from None
        say(f"{name} {blocks.shape[0]} x {blocks.shape[1]}")
        return blocks

    if method == "feedback" and todo:
        if bad := first_nonfinite({name: weights[name] for name in todo}):
            raise ModelError(f"{bad}: a weight is not finite")
        windows = draw(spec, weights, start) if importance is None else importance
        _feedback(weights, spec, kind, windows, set(todo), keep)
    else:
        for name in todo:
            keep(name, partial(_alone, name, weights[name], spec, kind, method))
    return {name: done.get(name, array) for name, array in weights.items()}


def is_product(name: str, weight: Array) -> bool:
    """Whether `linear` or the look-up of ids reads a weight: a matrix that blocks may hold."""
    return len(weight.shape) == 2 and name != "position.weight"


def draw(
    spec: Spec, weights: Mapping[str, Array], start: int | None = None, *, seed: int = 0
) -> np.ndarray:
    """Windows that a model draws from its own distribution: int32 [32, 256 or a context]."""
    run = runtime.native(spec, weights, names={}, threads=None, kv="f32", isa=None)
    length, rng = min(LENGTH, spec.context), np.random.default_rng(seed)
    every = np.arange(DRAWN, dtype=np.int32)
    table = np.arange(DRAWN * ceil(length / BLOCK), dtype=np.int32).reshape(DRAWN, -1)
    run.resize(table.size)
    ids = np.empty((DRAWN, length), np.int32)
    ids[:, 0] = rng.integers(spec.vocab_size, size=DRAWN) if start is None else start
    for place in range(length - 1):
        logits = run.step(
            Batch(ids[:, place].copy(), np.full_like(every, place), every, table, every)
        )
        ids[:, place + 1] = (logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return ids


def _alone(name: str, weight: Array, spec: Spec, kind: str, method: str) -> Blocks:
    """A weight by itself; the head's errors go straight to the ids: it is searched more finely."""
    array = inputs.values(weight) if isinstance(weight, Blocks) else weight
    if method == "round":
        return rounded(array, kind)
    return search(array, kind, fine=name == ("embed.weight" if spec.tied else "head.weight"))


def _feedback(
    weights: Mapping[str, Array],
    spec: Spec,
    kind: str,
    windows: Windows,
    todo: set[str],
    keep: Callable[[str, Callable[[], Blocks]], Blocks],
) -> None:
    """In the model's order, each on the inputs that those before it leave.

    The table of ids comes first. A tied one is also the last product: it is shaped by what that
    product is given in the model as it is.
    """
    embed = weights["embed.weight"]
    if "embed.weight" in todo:
        embed = keep("embed.weight", partial(_table, weights, spec, kind, windows))
    chosen: dict[str, Array] = {"embed.weight": embed}

    def choose(name: str, moments: Moments) -> Array:
        if name not in chosen:
            array = weights[name]
            how = partial(feedback, inputs.values(array), kind, moments)
            chosen[name] = keep(name, how) if name in todo else array
        return chosen[name]

    inputs.run(spec, weights, windows, choose, embed=embed)


def _table(weights: Mapping[str, Array], spec: Spec, kind: str, windows: Windows) -> Blocks:
    table = inputs.values(weights["embed.weight"])
    if not spec.tied:
        return search(table, kind, fine=True)
    found: dict[str, Moments] = {}

    def note(name: str, moments: Moments) -> Array:
        found[name] = moments
        return weights[name]

    inputs.run(spec, weights, windows, note, embed=table)
    return feedback(table, kind, Moments(found["embed.weight"].own))


def _check(
    weights: Mapping[str, Array], kind: str, method: str, importance: Windows | None
) -> None:
    if kind not in MADE:
        raise RequestError(
            f"the blocks asked for are {kind!r:.80}", fix=did_you_mean(str(kind), MADE)
        )
    if method not in METHODS:
        raise RequestError(f"method is {method!r:.80}", fix=did_you_mean(str(method), METHODS))
    if importance is not None and method == "round":
        raise RequestError("importance is given, which method 'round' does not use", fix="drop one")
    for name, weight in weights.items():
        if isinstance(weight, Blocks) and weight.kind != kind:
            raise RequestError(
                f"{name} is {dtype_name(weight)} already, and {kind} was asked for",
                fix="begin with the model that it was made from",
            )
