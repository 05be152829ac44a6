"""A model's shape as the keys of a GGUF file: `models/gguf_spec.py` the other way round.

Every field of every layer is what llama.cpp computes under the architecture's name, or the model is
refused. Rotary frequencies are given by a base, and by factors where no base alone gives them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from seriatim.errors import ModelError
from seriatim.models.rope import rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec

_KIND = "rope.scaling.type"
_KEYS = {
    "rope_theta": "rope.freq_base",
    "factor": "rope.scaling.factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}


def architecture_of(spec: Spec) -> str:
    """The architecture of llama.cpp that computes this model, every layer of it."""
    layer = spec.layers[0]
    if spec.positions:
        kind = "gpt2"
    elif layer.attention.qk_norm:
        kind = "qwen3"
    else:
        kind = "qwen2" if layer.attention.qkv_bias > layer.attention.output_bias else "llama"
    expected = _computed(kind, spec, layer)
    for index, given in enumerate(spec.layers):
        for part in ("attention", "mlp", "norm"):
            for field, value in vars(getattr(given, part)).items():
                if value != (wanted := getattr(getattr(expected, part), field)):
                    raise ModelError(
                        f"layer {index} has {part} {field} = {value!r:.80}",
                        expected=f"{wanted!r:.80}, as llama.cpp's {kind} has",
                    )
    if spec.head_bias or spec.norm != expected.norm:
        raise ModelError(f"llama.cpp's {kind} has no such head or final norm", expected="its own")
    if kind != "gpt2" and layer.attention.rope is None:
        raise ModelError("the model has no positions", expected=f"rotary ones, as {kind} has")
    return kind


def _computed(kind: str, spec: Spec, layer: Layer) -> Layer:
    """The layer that llama.cpp computes under this name, as near to the given one as it can be."""
    a, norm = layer.attention, Norm("rms", layer.norm.eps)
    window = a.window if a.window >= spec.context else 0  # one that hides nothing
    same = replace(a, scale=a.channels**-0.5, window=window)
    mlp = MLP(layer.mlp.width, "silu", gated=True, bias=kind == "llama" and layer.mlp.bias)
    if kind == "gpt2":
        norm = Norm("layer", layer.norm.eps, bias=True)
        mlp = MLP(layer.mlp.width, "gelu_tanh", gated=False, bias=True)
        channels = spec.width // a.heads
        heads = Attention(a.heads, a.heads, channels, channels**-0.5, qkv_bias=True)
        return Layer(replace(heads, output_bias=True, window=window), mlp, norm)
    if kind == "llama":
        return Layer(replace(same, qkv_bias=a.output_bias, qk_norm=None), mlp, norm)
    turns = None if a.rope is None else replace(a.rope, layout="half")
    half = replace(same, rope=turns, output_bias=False)
    if kind == "qwen2":
        channels = spec.width // a.heads
        return Layer(replace(half, channels=channels, qkv_bias=True, qk_norm=None), mlp, norm)
    return Layer(replace(half, qkv_bias=False, qk_norm=norm), mlp, norm)


def header(spec: Spec, architecture: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """The architecture's keys, and the factors that slow its frequencies, if any."""
    layer = spec.layers[0]
    a = layer.attention
    kind = "layer_norm_epsilon" if spec.norm.kind == "layer" else "layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "context_length": spec.positions or spec.context,
        "embedding_length": spec.width,
        "block_count": len(spec.layers),
        "feed_forward_length": layer.mlp.width,
        "attention.head_count": a.heads,
        "attention.head_count_kv": a.kv_heads,
        f"attention.{kind}": float(spec.norm.eps),
        "vocab_size": spec.vocab_size,
    }
    factors = None
    if a.rope is not None:
        same = ("attention.key_length", "attention.value_length", "rope.dimension_count")
        turns, factors = _turns(spec, a.rope, architecture)
        keys |= dict.fromkeys(same, a.channels) | turns
    return {f"{architecture}.{key}": value for key, value in keys.items()}, factors


def _turns(spec: Spec, turns: Rope, architecture: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """Keys that give the frequencies again, with factors where no rule does."""
    pairs, given = len(turns.frequencies), replace(turns, layout="half")
    for values in _guesses(turns, spec.context):
        if _rope(values, pairs) == given:
            return {_KEYS[name]: value for name, value in values.items() if name in _KEYS} | (
                {} if values["rope_type"] == "default" else {_KIND: values["rope_type"]}
            ), None
    if architecture != "llama" or turns.scale != 1:
        raise ModelError(
            "the rotary frequencies follow no rule that GGUF names",
            expected=f"plain ones, slowed evenly, or YaRN's in a {architecture}",
        )
    plain = {base: _plain(base, pairs) for base in _bases(turns)}
    known = np.array(turns.frequencies, np.float32)
    best = max(plain, key=lambda base: int((plain[base] == known).sum()))
    return {_KEYS["rope_theta"]: best}, _factors(plain[best], known)


def _guesses(turns: Rope, context: int) -> Iterator[dict[str, Any]]:
    """What a config may have said, the simplest first."""
    for base in _bases(turns):
        yield {"rope_type": "default", "rope_theta": base}
    slowed = _roundings(1 / turns.frequencies[0]) if turns.frequencies[0] < 1 else []
    for base, factor in product(_bases(turns), slowed):
        yield {"rope_type": "linear", "rope_theta": base, "factor": factor}
    for factor in _roundings(math.exp(10 * (turns.scale - 1))) if 1 < turns.scale < 2 else []:
        originals = [max(round(context / factor), 1), *(1 << bits for bits in range(5, 21))]
        for base, original in product(_bases(turns, factor), originals):
            values = {"rope_type": "yarn", "rope_theta": base, "factor": factor}
            yield values | {"original_max_position_embeddings": original}


def _bases(turns: Rope, slowed: float = 1.0) -> list[float]:
    """Numbers of which the first frequency, which no scaling slows, and the last are powers.

    Args:
        turns: whose frequencies they are.
        slowed: by how much the last one was divided, beside the first.
    """
    frequencies, last = turns.frequencies, len(turns.frequencies) - 1
    if not last:
        return [10_000.0]
    near = [
        (frequencies[0] / (frequencies[place] * slowing)) ** ((last + 1) / place)
        for place, slowing in ((last, slowed), (1, 1.0))
    ]
    found = (base for bases in zip(*map(_roundings, near), strict=True) for base in bases)
    return [base for base in dict.fromkeys(found) if 1 < base < math.inf] or [10_000.0]


def _roundings(value: float) -> list[float]:
    """A number that was computed in float32, to ever more digits."""
    return [float(f"{value:.{digits}g}") for digits in range(1, 10)]


def _rope(values: Mapping[str, Any], pairs: int) -> Rope:
    return rope(values, 2 * pairs, trained=1, context=1)


def _plain(base: float, pairs: int) -> np.ndarray:
    values = {"rope_type": "default", "rope_theta": base}
    return np.array(_rope(values, pairs).frequencies, np.float32)


def _factors(plain: np.ndarray, given: np.ndarray) -> np.ndarray:
    """float32 [pair] by which `plain` is divided to give `given`, to the bit where one does."""
    near = plain / given
    for other in (np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        near = np.where((plain / near != given) & (plain / other == given), other, near)
    return near
