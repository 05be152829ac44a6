"""The keys of a GGUF file as a `Spec`, and the names of its tensors.

The architectures are llama.cpp's: llama (Mistral's too), qwen2, qwen3 and gpt2. Every key of an
architecture is used, or refused by name. Source: llama.cpp, `load_hparams` and `load_tensors`;
`convert_hf_to_gguf.py`, which turns the rows of llama's queries and keys so that the channels that
rotate together lie side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from seriatim.errors import ModelError, did_you_mean
from seriatim.files.gguf import Tensor
from seriatim.models import ggml
from seriatim.models.config import (
    MOST_HEADS,
    MOST_IDS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_WIDTH,
    Fields,
    Say,
    choose_context,
)
from seriatim.models.families import Source
from seriatim.models.rope import limit, rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec, weights

EMBEDDING, HEAD, FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
ROOT_NAMES = {
    "embed": "token_embd",
    "position": "position_embd",
    "norm": "output_norm",
    "head": "output",
}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
FUSED = ("query", "key", "value")  # row ranges of gpt2's attn_qkv, in this order

# Keys that change nothing at these values; others are refused.
_WHOLE = {"general.type": ("model", None), "general.quantization_version": (2, None)}
_WHOLE |= {"split.count": (0, 1, None)}
_FIXED = {
    "attention.causal": (True, None),
    "expert_count": (0, None),
    "expert_used_count": (0, None),
    "rope.scaling.finetuned": (True, False, None),
    "tensor_data_layout": ("Meta AI original pth", None),  # what llama's permuted rows were called
}
_ORIGINAL, _YARN = "rope.scaling.original_context_length", "rope.scaling.yarn_"
_SCALINGS = {"none": "default", "linear": "linear", "yarn": "yarn"}
_PLAIN = {_YARN + "attn_factor": (1.0, None), _YARN + "ext_factor": (1.0, None)}
_PLAIN |= {"rope.scaling.attn_factor": (1.0, None), _YARN + "log_multiplier": (0.0, None)}


def spec(
    keys: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    where: str,
    context: int | None,
    say: Say,
) -> tuple[str, Spec]:
    """The name of a file's architecture, and its model.

    Args:
        keys: the file's metadata.
        tensors: by name.
        where: what to call the file in errors.
        context: the length to load for; default: the model's own.
        say: told of everything defaulted.

    Raises:
        ModelError: a key that is missing, out of range, unknown or not supported.
        RequestError: `context` is more than the model has.
    """
    Fields(keys, where).only(_WHOLE)
    kind = keys.get("general.architecture")
    if not isinstance(kind, str) or kind not in _READERS:
        hint = did_you_mean(str(kind), _READERS)
        seen = f"{where} has general.architecture = {kind!r:.80}"
        raise ModelError(seen, expected="a known one", fix=hint)
    vocab = _embedding(tensors, where).shape[0]
    own = {k.removeprefix(f"{kind}."): keys[k] for k in keys if k.startswith(f"{kind}.")}
    fields = Fields(own, f"{where} under {kind}", say)
    fields.only(_FIXED | {"vocab_size": (vocab, None)})
    read = _READERS[kind](fields, tensors, context)
    fields.close()
    return kind, replace(read, vocab_size=vocab, tied=HEAD not in tensors)


def sources(kind: str, spec: Spec) -> dict[str, Source]:
    """Where each weight of `spec.weights(spec)` is stored."""
    return {name: _source(kind, name, spec.width) for name in weights(spec)}


def _source(kind: str, name: str, width: int) -> Source:
    path, _, end = name.rpartition(".")
    if not path.startswith("layers."):
        return Source(f"{ROOT_NAMES[path]}.{end}")
    _, index, part = path.split(".")
    if kind != "gpt2" or part not in FUSED:
        return Source(f"blk.{index}.{LAYER_NAMES[part]}.{end}")
    first = FUSED.index(part) * width
    return Source(f"blk.{index}.attn_qkv.{end}", rows=slice(first, first + width))


def _embedding(tensors: Mapping[str, Tensor], where: str) -> Tensor:
    if EMBEDDING not in tensors:
        raise ModelError(f"{where} lacks the tensor {EMBEDDING}", expected="a whole model")
    tensor = tensors[EMBEDDING]
    if len(tensor.shape) != 2 or tensor.shape[0] > MOST_IDS:
        expected = f"[id, channel], at most {MOST_IDS} ids"
        raise ModelError(f"{EMBEDDING} of {where} has the shape {tensor.shape}", expected=expected)
    return tensor


def _gpt2(fields: Fields, _: Mapping[str, Tensor], context: int | None) -> Spec:
    count, width, trained = _sizes(fields)
    norm = Norm("layer", fields.number("attention.layer_norm_epsilon"), bias=True)
    heads, shared = _heads(fields)
    channels = _channels(fields, width, heads)
    if (shared, channels * heads) != (heads, width):
        raise fields.refuse("attention.head_count", f"heads that share embedding_length = {width}")
    attention = Attention(heads, heads, channels, channels**-0.5, qkv_bias=True, output_bias=True)
    inner = fields.integer("feed_forward_length", most=MOST_WIDTH)
    layer = Layer(attention, MLP(inner, "gelu_tanh", gated=False, bias=True), norm)
    length = choose_context(context, trained, trained)
    return Spec(0, width, length, (layer,) * count, norm, tied=False, positions=trained)


def _rotary(layout: str, qk_norm: bool = False) -> Callable[..., Spec]:
    """The reader of an architecture with rotary positions, RMS norms and a gated MLP."""

    def read(fields: Fields, tensors: Mapping[str, Tensor], context: int | None) -> Spec:
        count, width, trained = _sizes(fields)
        norm = Norm("rms", fields.number("attention.layer_norm_rms_epsilon"))
        heads, shared = _heads(fields)
        channels = _channels(fields, width, heads)
        values = _rope_values(fields, trained)
        length = choose_context(context, trained, limit(values, trained))
        turns = rope(values, channels, trained=trained, context=length, say=fields.say)
        attention = Attention(
            heads,
            shared,
            channels,
            channels**-0.5,
            replace(_slowed(turns, tensors), layout=layout),
            qkv_bias="blk.0.attn_q.bias" in tensors,
            output_bias="blk.0.attn_output.bias" in tensors,
            qk_norm=norm if qk_norm else None,
        )
        inner = fields.integer("feed_forward_length", most=MOST_WIDTH)
        mlp = MLP(inner, "silu", gated=True, bias="blk.0.ffn_up.bias" in tensors)
        return Spec(0, width, length, (Layer(attention, mlp, norm),) * count, norm, tied=False)

    return read


_READERS = {
    "llama": _rotary("interleaved"),
    "qwen2": _rotary("half"),
    "qwen3": _rotary("half", qk_norm=True),
    "gpt2": _gpt2,
}


def _sizes(fields: Fields) -> tuple[int, int, int]:
    """Layers, width, positions."""
    return (
        fields.integer("block_count", most=MOST_LAYERS),
        fields.integer("embedding_length", most=MOST_WIDTH),
        fields.integer("context_length", most=MOST_POSITIONS),
    )


def _heads(fields: Fields) -> tuple[int, int]:
    """Of queries, and of keys and values."""
    heads = fields.integer("attention.head_count", most=MOST_HEADS)
    key = "attention.head_count_kv"
    shared = heads if fields.get(key) is None else fields.integer(key, most=heads)
    if heads % shared:
        raise fields.refuse(key, f"a divisor of attention.head_count = {heads}")
    return heads, shared


def _channels(fields: Fields, width: int, heads: int) -> int:
    """Of one head: all of them hold keys, hold values and rotate."""
    key = "attention.key_length"
    channels = width // heads if fields.get(key) is None else fields.integer(key, most=MOST_HEADS)
    if channels < 1 or channels % 2:
        expected = f"an even share of embedding_length = {width}"
        raise fields.refuse("attention.head_count", f"{expected}, or {key} to be even")
    same = ("attention.value_length", "rope.dimension_count")
    fields.only(dict.fromkeys(same, (channels, None)))
    return channels


def _rope_values(fields: Fields, trained: int) -> dict[str, Any]:
    """What `rope` takes: the keys of a Hugging Face config."""
    fields.only(_PLAIN)
    old, new = "rope.scale_linear", "rope.scaling.factor"
    factor = old if fields.get(new) is None else new
    kind = "linear" if fields.get(factor) else "default"
    if fields.get("rope.scaling.type") is not None:
        kind = fields.word("rope.scaling.type", _SCALINGS)
    base = fields.number("rope.freq_base", low=1.0, default=10_000.0)
    values = {"rope_type": kind, "rope_theta": base}
    if kind != "default":
        values["factor"] = fields.number(factor)
    fields.get(_ORIGINAL)  # only yarn reads it
    if kind == "yarn":
        values |= {
            "original_max_position_embeddings": fields.integer(
                _ORIGINAL, most=MOST_POSITIONS, default=trained
            ),
            "beta_fast": fields.number(_YARN + "beta_fast", default=32.0),
            "beta_slow": fields.number(_YARN + "beta_slow", default=1.0),
        }
    return values


def _slowed(turns: Rope, tensors: Mapping[str, Tensor]) -> Rope:
    """Frequencies divided by the factors that a file stores: how llama 3 scales them."""
    if FACTORS not in tensors:
        return turns
    tensor, pairs = tensors[FACTORS], len(turns.frequencies)
    if tensor.kind != "F32" or tensor.shape != (pairs,):
        seen = f"the tensor {FACTORS} is {tensor.kind} of shape {tensor.shape}"
        raise ModelError(seen, expected=f"F32 of shape ({pairs},)")
    with np.errstate(all="ignore"):
        slowed = np.array(turns.frequencies, np.float32) / ggml.array(tensor)
    if not (np.isfinite(slowed) & (slowed > 0)).all():
        raise ModelError(f"the tensor {FACTORS} holds a factor that is not a number above 0")
    return replace(turns, frequencies=tuple(map(float, slowed)))
