"""A model's shape as the keys of a GGUF file: `models/gguf_spec.py` the other way round.

Every field of every layer is what llama.cpp computes under the architecture's name, or the model is
refused. Rotary frequencies are given by a base, and by factors where no base alone gives them.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from seriatim.errors import ModelError
from seriatim.models.rope import rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec


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
        turns, factors = _turns(a.rope, architecture)
        keys |= dict.fromkeys(same, a.channels) | turns
    return {f"{architecture}.{key}": value for key, value in keys.items()}, factors


def _turns(turns: Rope, architecture: str) -> tuple[dict[str, Any], np.ndarray | None]:
    """Keys that give the frequencies again, with factors where no base alone does."""
    if turns.scale != 1:
        raise ModelError(
            f"rotary positions are scaled by {turns.scale}", expected="1: GGUF has no place for it"
        )
    given = np.array(turns.frequencies, np.float32)
    best, kept = 10_000.0, -1
    for base in _bases(given.astype(np.float64)):
        plain = _plain(base, len(given))
        if (same := int((plain == given).sum())) > kept:
            best, kept = base, same
        slowed = {"rope_type": "linear", "factor": float(np.float32(1) / given[0])}
        if same < len(given) and (_plain(base, len(given), **slowed) == given).all():
            keys = {"rope.scaling.type": "linear", "rope.scaling.factor": slowed["factor"]}
            return {"rope.freq_base": base} | keys, None
    keys = {"rope.freq_base": best}
    if kept == len(given):
        return keys, None
    if architecture != "llama":
        raise ModelError(
            "rotary frequencies are slowed unevenly", expected=f"plain ones in a {architecture}"
        )
    return keys, _factors(_plain(best, len(given)), given)


def _bases(frequencies: np.ndarray) -> list[float]:
    """Numbers whose powers the first or all frequencies may be, the shortest first."""
    pairs = len(frequencies)
    if pairs == 1:
        return [10_000.0]
    near = [(frequencies[0] / frequencies[place]) ** (pairs / place) for place in (pairs - 1, 1)]
    return [float(f"{value:.{digits}g}") for digits in range(1, 10) for value in near]


def _plain(base: float, pairs: int, **scaling: Any) -> np.ndarray:
    values = {"rope_type": "default", "rope_theta": max(base, 1.0)} | scaling
    turns = rope(values, 2 * pairs, trained=1, context=1)
    return np.array(turns.frequencies, np.float32)


def _factors(plain: np.ndarray, given: np.ndarray) -> np.ndarray:
    """float32 [pair] by which `plain` is divided to give `given`, to the bit where one does."""
    near = plain / given
    for other in (np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))):
        near = np.where((plain / near != given) & (plain / other == given), other, near)
    return near
