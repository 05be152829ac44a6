"""Logits against other computations: numpy, torch, the original; and what a window lets through."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from seriatim.errors import RequestError
from seriatim.files.jsonfile import read_object
from seriatim.kernels.formats import Array, Blocks, expand
from seriatim.kernels.ops import BLOCK, Batch
from seriatim.models import runtime
from seriatim.models.spec import MLP, Attention, Layer, Spec
from seriatim.models.spec import weights as shapes
from seriatim.verify import reference
from seriatim.verify.definition import log_softmax
from seriatim.verify.lab import Lab, bits, need
from seriatim.verify.report import Broken, Check, Seen

# Largest root mean square difference, in standard deviations of the logits. Where inputs or keys
# are rounded, a difference of 10^-7 turns some by one unit, which a few layers carry on.
LIMITS = {"f32": 1e-4, "f16": 1e-2, "bf16": 3e-2, "blocks": 6e-2}
PROBE = 3e-3  # of one layer in f32, its keys and values rounded
WIDEST = 5_000  # positions of a window that is tried whole


def against_numpy(lab: Lab) -> Seen:
    """Logits of a prompt that crosses blocks and windows, by the forward pass of `reference.py`."""
    other = _native(lab)
    ids = lab.ids(_length(lab), stem=200)
    own = reference.logits(lab.spec, other.weights, ids, kv=other.kv)
    return _close(lab.logits(ids), own, _limit(other), "numpy")


def against_torch(lab: Lab) -> Seen:
    """The same from torch's ops, or from the native runtime where the model runs on torch."""
    need(find_spec("torch") is not None, "torch is not installed")
    options: dict[str, Any] = {"backend": "torch", "threads": None, "isa": None}
    other = lab.model.load(**options) if lab.exact else _twin(lab)
    ids = lab.ids(_length(lab) // 2, stem=201)
    seen = lab.logits(ids)
    return _close(seen, lab.logits(ids, model=other), _limit(_native(lab)), other.runtime.facts)


def _length(lab: Lab) -> int:
    """Beyond the edge of the widest window that can be afforded."""
    edge = max((l.attention.window for l in lab.spec.layers), default=0) + 40
    length = min(edge, 600) if edge > 140 else 300 if lab.small else 90
    return min(length, lab.model.context, lab.model.pool.limit * BLOCK)


def _twin(lab: Lab) -> Any:
    return lab.model.load(backend="native", device=None)


def _native(lab: Lab) -> Any:
    """The native runtime of these weights: the model's own, or another beside torch's."""
    return lab.model.runtime if lab.exact else _twin(lab).runtime


def _limit(run: Any) -> float:
    kinds = {_kind(array) for array in run.weights.values() if len(array.shape) == 2}
    return max(LIMITS[kind] for kind in (*kinds, "bf16" if run.kv == "int8" else run.kv))


def _kind(array: Array) -> str:
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    return "blocks" if isinstance(array, Blocks) else names[array.dtype.name]


def _close(seen: np.ndarray, expected: np.ndarray, limit: float, by: str) -> Seen:
    """Root mean square of the difference at each position, in standard deviations."""
    spread = float(expected.std()) or 1.0
    off = np.sqrt(((seen - expected) ** 2).mean(-1)) / spread  # [position]
    worst = float(np.sqrt((off**2).mean()))
    if not worst <= limit:
        place = int(np.argmax(~(off <= limit))) if (~(off <= limit)).any() else int(off.argmax())
        id = int(abs(seen[place] - expected[place]).argmax())
        raise Broken(
            f"logits from position {place} on, by {by}", id=id,
            expected=f"{expected[place, id]:.6g}; differences of {limit:g} standard deviations",
            seen=f"{bits(seen[place, id])}; {worst:.3g}",
        )  # fmt: skip
    same = int((seen.argmax(-1) == expected.argmax(-1)).sum())
    power = f"differences above {limit:g} standard deviations; seen {worst:.1e}, likeliest id "
    return Seen(seen.size, power + f"the same at {same} of {len(seen)} positions")


# ---- windows -----------------------------------------------------------------------------------


def windows(lab: Lab) -> Seen:
    """Which earlier ids can change a logit: one layer of each kind by itself, then the model."""
    expected, spec = declared(lab), lab.spec
    for index, (said, layer) in enumerate(zip(expected, spec.layers, strict=True)):
        if said != layer.attention.window:
            raise Broken(f"the window of layer {index}", expected=f"{said}, by its config",
                         seen=layer.attention.window)  # fmt: skip
    tried = 0
    for window in sorted(set(expected)):
        layer = next(l for l in spec.layers if l.attention.window == window)
        if window <= WIDEST:
            tried += _edges(lab, layer, window)
    tried += _reach(lab, expected)
    shown = ", ".join(str(w) if w else "all" for w in sorted(set(expected)))
    return Seen(tried, f"one key too many or too few, at any of {tried} edges; keys seen: {shown}")


def declared(lab: Lab) -> list[int]:
    """The keys that each layer sees by config.json, read here a second time; 0 is all."""
    source, count = lab.model.checkpoint, len(lab.spec.layers)
    if not source.path.is_dir():
        return [0] * count  # GGUF with a window is refused, llama2.c has none
    config = read_object(source.path / "config.json")
    used = config.get("use_sliding_window", source.model_type == "mistral")
    window = (config.get("sliding_window") or 0) if used else 0
    if types := config.get("layer_types"):
        return [window if kind == "sliding_attention" else 0 for kind in types]
    full = config.get("max_window_layers", 0) if source.model_type.startswith("qwen") else 0
    return [window if index >= full else 0 for index in range(count)]


def _edges(lab: Lab, layer: Layer, window: int) -> int:
    """One layer: changing id j changes row t where t - j < window, and no bit where not."""
    spec = _probe(layer, kv_heads=min(layer.attention.kv_heads, 2))
    run = _run(lab, spec, _drawn(lab, spec), _native(lab).kv)
    length = window + 40 if window else min(lab.model.context, 600)
    base = np.array(lab.ids(length, stem=210)) % spec.vocab_size
    rows, tried = _rows(run, base), 0
    for j in (0, 1, 20, length - 30):
        changed = base.copy()
        changed[j] = (changed[j] + 1) % spec.vocab_size
        other = _rows(run, changed)
        differ = (rows.view(np.uint32) != other.view(np.uint32)).any(-1)
        end = min(j + window, length) if window else length
        for name, wrong in (("before it", differ[:j]), ("outside its window", differ[end:])):
            if wrong.any() and lab.exact:
                place = int(wrong.argmax()) + (0 if name == "before it" else end)
                _leak(spec, j, place, f"unchanged: {name}", "changed")
        if not differ[j:end].all():
            place = j + int((~differ[j:end]).argmax())
            _leak(spec, j, place, "changed: it is seen", "unchanged")
        _alone(lab, run, changed, other)
        tried += length
    return tried


def _leak(spec: Spec, j: int, place: int, expected: str, seen: str) -> None:
    raise Broken(
        f"logits at position {place} of one layer, id {j} changed ({place - j} back)",
        window=spec.layers[0].attention.window, expected=expected, seen=seen,
    )  # fmt: skip


def _alone(lab: Lab, run: Any, ids: np.ndarray, rows: np.ndarray) -> None:
    """The last id in a step of its own gives the same row."""
    _rows(run, ids[:-1], wanted=[])
    last = _rows(run, ids, first=len(ids) - 1)[0]
    lab.same_logits(rows[-1], last, case="one layer", position=len(ids) - 1, how="id by id")


def _reach(lab: Lab, expected: list[int]) -> int:
    """The model: the ids that no chain of windows leads to."""
    reach = sum(w - 1 for w in expected) + 1
    if not all(expected) or reach + 8 > min(lab.model.context, 1_500) or not lab.exact:
        return 0
    ids = list(lab.ids(reach + 8, stem=211))
    rows = lab.logits(ids)
    ids[0] = (ids[0] + 1) % lab.model.vocab_size
    other = lab.logits(ids)
    for place in range(reach, len(ids)):
        how = f"id 0 changed, which is {place} back and {reach - 1} can be seen"
        lab.same_logits(rows[place], other[place], case="the model", position=place, how=how)
    return len(ids) - reach


# ---- heads -------------------------------------------------------------------------------------


def heads(lab: Lab) -> Seen:
    """One layer of each kind, its heads of very different sizes, by numpy, for each `kv`."""
    tried, worst = 0, 0.0
    for attention in dict.fromkeys(_shape(l) for l in lab.spec.layers):
        layer = next(l for l in lab.spec.layers if _shape(l) == attention)
        spec = _probe(layer, kv_heads=min(layer.attention.kv_heads, 8))
        weights = _drawn(lab, spec)
        _spread(spec.layers[0].attention, weights)
        ids = np.array(lab.ids(140, stem=220)) % spec.vocab_size
        for kv in dict.fromkeys((_native(lab).kv, "int8", "f32")):
            seen = _rows(_run(lab, spec, weights, kv), ids)
            expected = reference.logits(spec, weights, ids, kv=kv)
            off = float(np.sqrt(((seen - expected) ** 2).mean()) / expected.std())
            if not off <= PROBE:
                place = int((abs(seen - expected).max(-1) > PROBE * expected.std()).argmax())
                raise Broken(
                    f"one layer with kv={kv}, from position {place} on", heads=spec.layers[0]
                    .attention.kv_heads, expected=f"{PROBE:g} standard deviations from numpy",
                    seen=f"{off:.3g}",
                )  # fmt: skip
            tried, worst = tried + 1, max(worst, off)
    return Seen(tried, f"{PROBE:g} standard deviations (seen {worst:.1e}); scales of keys and "
                       "values differ 64-fold between heads")  # fmt: skip


def _shape(layer: Layer) -> Attention:
    """Attention without what its place in the model adds."""
    return replace(layer.attention, window=min(layer.attention.window, BLOCK + 9))


def _spread(a: Attention, weights: dict[str, np.ndarray]) -> None:
    """Sizes of heads apart, each head's part in the result as before."""
    group = a.heads // a.kv_heads
    size = 4.0 ** (np.arange(a.kv_heads) % 4)
    shared = np.repeat(size, a.channels).astype(np.float32)
    own = np.repeat(np.repeat(size, group), a.channels).astype(np.float32)
    weights["layers.0.value.weight"] *= shared[:, None]
    weights["layers.0.output.weight"] /= own
    if a.qk_norm is None:
        weights["layers.0.key.weight"] *= shared[:, None]
        weights["layers.0.query.weight"] /= own[:, None]


# ---- one layer by itself -----------------------------------------------------------------------


def _probe(layer: Layer, *, kv_heads: int) -> Spec:
    """A model of one such layer: few weights, its attention as in the model, no biases."""
    a = layer.attention
    attention = replace(
        a, heads=kv_heads * (a.heads // a.kv_heads), kv_heads=kv_heads, qkv_bias=False,
        output_bias=False,
    )  # fmt: skip
    mlp = MLP(64, layer.mlp.activation, layer.mlp.gated)
    norm = replace(layer.norm, bias=False)
    return Spec(64, 64, 1 << 20, (Layer(attention, mlp, norm),), norm, tied=True)


def _drawn(lab: Lab, spec: Spec) -> dict[str, np.ndarray]:
    """Norms around 1, products that keep the size of what they read."""
    draw = np.random.default_rng([lab.seed, 7])
    return {
        name: (1 + 0.3 * draw.standard_normal(shape) if len(shape) == 1
               else draw.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
        for name, shape in shapes(spec).items()
    }  # fmt: skip


def _run(lab: Lab, spec: Spec, weights: Mapping[str, np.ndarray], kv: str) -> Any:
    """The runtime that the model has, of other weights."""
    own = lab.model.runtime
    if lab.exact:
        return runtime.native(spec, weights, names={}, threads=own.threads, kv=kv, isa=own.isa)
    return runtime.torch(spec, weights, names={}, kv=kv, device=own.device)


def _rows(
    run: Any, ids: np.ndarray, *, first: int = 0, wanted: list[int] | None = None
) -> np.ndarray:
    """Logits after each of `ids[first:]`, or of none; what comes before is in the cache."""
    count = len(ids) - first
    blocks = -(-len(ids) // BLOCK)
    run.resize(blocks)
    index = np.arange(count, dtype=np.int32)
    rows = index if wanted is None else np.array(wanted, np.int32)
    table = np.arange(blocks, dtype=np.int32)[None]
    parts = ids[first:].astype(np.int32), index + np.int32(first), np.zeros_like(index)
    return run.step(Batch(*parts, table, rows)).copy()


# ---- quantised ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """How far blocks may be from what they stand for."""

    error: float  # of a matrix, root mean square, relative
    kl: float  # nats, mean over positions


BOUNDS = {"int8": Bound(0.03, 0.05), "int6": Bound(0.1, 0.2), "int4": Bound(0.3, 1.0)}


def quantised(lab: Lab) -> Seen:
    """Each matrix in blocks and its original; then what both models predict."""
    weights = _native(lab).weights
    blocks = {name: array for name, array in weights.items() if isinstance(array, Blocks)}
    need(bool(blocks), "no weight is in blocks")
    original = lab.original or _stored(lab)
    need(original is not None, "its original is not known: name it with --original")
    if original.vocab_size != lab.model.vocab_size:
        raise RequestError(
            f"the original has {original.vocab_size} ids and the model {lab.model.vocab_size}",
            expected="the model that it was made from",
        )
    worst = max(_matrix(name, array, original) for name, array in blocks.items())
    kl, same, count = _predictions(lab, original)
    limit = max(BOUNDS[array.kind].kl for array in blocks.values())
    if not kl <= limit:
        raise Broken(
            f"KL over {count} positions", expected=f"at most {limit} nats", seen=f"{kl:.4f}"
        )
    return Seen(
        len(blocks) + count,
        f"a matrix off by {max(BOUNDS[b.kind].error for b in blocks.values()):.0%} (worst "
        f"{worst:.1%}), KL above {limit} nats (seen {kl:.4f}), same likeliest id {same:.1%}",
    )


def _stored(lab: Lab) -> Any:
    """What was rounded when the model was loaded, if it was."""
    if any(isinstance(array, Blocks) for array in lab.model.checkpoint.weights.values()):
        return None
    return lab.model.load(precision="stored")


def _matrix(name: str, blocks: Blocks, original: Any) -> float:
    """Its relative error."""
    whole = original.checkpoint.weights.get(name)
    if whole is None or whole.shape != blocks.shape:
        raise Broken(name, expected=f"a matrix {blocks.shape} in the original",
                     seen=None if whole is None else whole.shape)  # fmt: skip
    exact = expand(whole) if isinstance(whole, Blocks) else whole.astype(np.float32)
    off = float(np.linalg.norm(expand(blocks) - exact) / (np.linalg.norm(exact) or 1))
    if not off <= BOUNDS[blocks.kind].error:
        limit = f"within {BOUNDS[blocks.kind].error:.0%} of the original"
        raise Broken(name, kind=blocks.kind, expected=limit, seen=f"{off:.1%}")
    return off


def _predictions(lab: Lab, original: Any) -> tuple[float, float, int]:
    """Mean KL(original || model), share of equal likeliest ids, on what the original writes."""
    kl, same = [], []
    for ids in _written(lab, original):
        p = log_softmax(lab.logits(ids, model=original))
        q = log_softmax(lab.logits(ids))
        kl.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    every = np.concatenate(kl)
    return float(every.mean()), float(np.concatenate(same).mean()), len(every)


def _written(lab: Lab, original: Any) -> Iterator[list[int]]:
    start = list(original.start) or [0]
    for sample in range(4 if lab.small else 2):
        own = lab.private(model=original)
        how = {"max_tokens": min(100, lab.model.context - len(start) - 1), "ignore_end": True}
        yield [*start, *own.generate(start, seed=lab.seed + sample, **how).ids]


CHECKS = [
    Check("reference", "logits and the forward pass in numpy",
          'load with isa="plain"; if that agrees, report the processor with this table',
          against_numpy),
    Check("torch", "logits and those of another backend", 'verify with isa="plain" and threads=1, '
          "and report this with the table", against_torch),
    Check("windows", "which ids change a logit, and the model's windows",
          "do not use prompts longer than the window, and report this with the table", windows),
    Check("heads", "one layer of the model's shape, heads of very different sizes, and numpy",
          'load with kv="f32" if that is not what failed, and report this with the table', heads),
    Check("quantised", "weights in blocks and what they stand for",
          "quantise the original again, or check that it is the one", quantised),
]  # fmt: skip
