"""Llama and what differs from it by a few keys: Mistral, Qwen2 (and 2.5), Qwen3, SmolLM, Yi.

Sources: transformers 5 `models/{llama,mistral,qwen2,qwen3}`; their biases, windows and QK-norm
are rows of the tables below. What seriatim trains is written back in the same schema.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from seriatim.errors import ModelError
from seriatim.models.config import (
    HARMLESS,
    HARMLESS_AT,
    MOST_HEADS,
    MOST_IDS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_WIDTH,
    REQUIRED,
    Fields,
    Say,
    choose_context,
    silent,
)
from seriatim.models.families import Source
from seriatim.models.rope import limit, rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Spec, weights

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
ROOT_NAMES = {"embed": "embed_tokens", "norm": "norm"}


@dataclass(frozen=True)
class _Kind:
    """How one model_type differs from the others."""

    name: str  # of its classes in transformers
    biases: str | None = "attention_bias"  # key that adds biases to all four products, if any
    qkv_bias: bool = False  # biases on query, key and value always
    qk_norm: bool = False
    windows: str = ""  # "": never; "always": sliding_window for all; "layers": for some layers
    kv_default: bool = False  # num_key_value_heads may be absent: as many as heads
    head_default: bool = True  # head_dim may be absent: hidden_size / heads


_KINDS = {
    "llama": _Kind("Llama", kv_default=True),
    "mistral": _Kind("Mistral", biases=None, windows="always"),
    "qwen2": _Kind("Qwen2", biases=None, qkv_bias=True, windows="layers"),
    "qwen3": _Kind("Qwen3", qk_norm=True, windows="layers", head_default=False),
}
MODEL_TYPES = tuple(_KINDS)
ARCHITECTURES = tuple(k.name + end for k in _KINDS.values() for end in ("ForCausalLM", "Model"))


def spec(config: Mapping[str, Any], context: int | None = None, say: Say = silent) -> Spec:
    """The model that a config of one of `MODEL_TYPES` describes; see `Family.spec`."""
    fields = Fields(config, "config.json", say)
    kind = _KINDS[fields.get("model_type")]
    fields.only(HARMLESS_AT | _constants(kind))
    width = fields.integer("hidden_size", most=MOST_WIDTH)
    trained = fields.integer("max_position_embeddings", most=MOST_POSITIONS)
    rotary = _rope_values(fields)
    context = choose_context(context, trained, limit(rotary, trained))
    norm = Norm("rms", fields.number("rms_norm_eps"))
    attention = _attention(fields, kind, width, norm)
    turns = rope(rotary, attention.channels, trained=trained, context=context, say=say)
    mlp = _mlp(fields, kind)
    count = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    layers = tuple(
        Layer(replace(attention, rope=turns, window=window), mlp, norm)
        for window in _windows(fields, kind, count)
    )
    vocab = fields.integer("vocab_size", most=MOST_IDS)
    tied = fields.flag("tie_word_embeddings", default=False)
    fields.only({"max_sequence_length": (trained, None), "model_max_length": (trained, None)})
    fields.close(HARMLESS)
    return Spec(vocab, width, context, layers, norm, tied)


def config(spec: Spec, *, rope_theta: float = 10_000.0) -> dict[str, Any]:
    """A Llama config.json of a model that seriatim made, in the spelling every version reads.

    Args:
        spec: a model of equal layers, without windows or QK-norm.
        rope_theta: the base of its frequencies.

    Raises:
        ModelError: Llama's schema cannot say what this spec says.
    """
    layer = spec.layers[0]
    a, m = layer.attention, layer.mlp
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": m.width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.channels,
        "hidden_act": next((k for k, v in ACTIVATIONS.items() if v == m.activation), None),
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm.eps,
        "rope_theta": rope_theta,
        "rope_scaling": None,
        "attention_bias": a.qkv_bias,
        "mlp_bias": m.bias,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def sources(spec: Spec, names: Collection[str]) -> dict[str, Source]:
    """Names on disk; checkpoints of the bare `LlamaModel` lack the prefix "model."."""
    bare = "embed_tokens.weight" in names
    return {name: Source(_stored(name, "" if bare else "model.")) for name in weights(spec)}


def duplicates(spec: Spec, names: Collection[str]) -> dict[str, str]:
    """A tied head that is stored all the same."""
    embed = sources(spec, names)["embed.weight"].name
    return {"lm_head.weight": embed} if spec.tied and "lm_head.weight" in names else {}


def ignored(name: str) -> bool:
    """Rotary frequencies, which old checkpoints store and every reader computes."""
    return name.endswith("rotary_emb.inv_freq")


def _stored(name: str, prefix: str) -> str:
    path, _, end = name.rpartition(".")
    if path.startswith("layers."):
        _, index, part = path.split(".")
        return f"{prefix}layers.{index}.{LAYER_NAMES[part]}.{end}"
    return f"lm_head.{end}" if path == "head" else f"{prefix}{ROOT_NAMES[path]}.{end}"


def _constants(kind: _Kind) -> dict[str, tuple[Any, ...]]:
    """Keys that a kind's class does not read: accepted only where they say what it does."""
    fixed: dict[str, tuple[Any, ...]] = {}
    if kind.biases is None:
        fixed["attention_bias"] = (kind.qkv_bias, None)
    if kind.name != "Llama":
        fixed["mlp_bias"] = (False, None)
    if not kind.windows:
        fixed |= {"sliding_window": (None,), "use_sliding_window": (False, None)}
    return fixed


def _rope_values(fields: Fields) -> dict[str, Any]:
    """One spelling from both: `rope_parameters` of transformers 5, and what came before it."""
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            raise fields.refuse(key, "an object or null")
    if old and new and _typed(fields, old) != _typed(fields, new):
        raise fields.refuse("rope_scaling", "the same as rope_parameters, or only one of them")
    values = _typed(fields, new or old or {})
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        given = fields.get(key)
        if given is not None and values.setdefault(key, given) != given:
            raise fields.refuse(key, f"{values[key]!r}, as in rope_parameters")
    if "rope_theta" not in values:
        fields.say("rope_theta is not in config.json: 10000.0 is the standard's default")
        values["rope_theta"] = 10_000.0
    return values


def _typed(fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
    """`type` is the old name of `rope_type`."""
    kind = values.get("rope_type", values.get("type", "default"))
    if values.get("type", kind) != kind:
        raise fields.refuse("rope_scaling", "type and rope_type to agree")
    rest = {k: v for k, v in values.items() if k != "type" and v is not None}
    return rest | {"rope_type": kind}


def _attention(fields: Fields, kind: _Kind, width: int, norm: Norm) -> Attention:
    heads = fields.integer("num_attention_heads", most=MOST_HEADS)
    absent = heads if kind.kv_default or "num_key_value_heads" in fields.values else REQUIRED
    shared = fields.integer("num_key_value_heads", most=heads, default=absent)
    if heads % shared:
        raise fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    channels = _channels(fields, kind, width, heads)
    biased = kind.biases is not None and fields.flag(kind.biases, default=False)
    return Attention(
        heads,
        shared,
        channels,
        scale=channels**-0.5,
        qkv_bias=kind.qkv_bias or biased,
        output_bias=biased,
        qk_norm=norm if kind.qk_norm else None,
    )


def _channels(fields: Fields, kind: _Kind, width: int, heads: int) -> int:
    if fields.get("head_dim") is None and kind.head_default:
        if width % heads:
            raise fields.refuse("hidden_size", f"a multiple of num_attention_heads = {heads}")
        channels = width // heads
    else:
        channels = fields.integer("head_dim", most=MOST_HEADS)
    if channels % 2:
        raise ModelError(
            f"config.json gives heads of {channels} channels",
            expected="an even number, which rotary positions pair",
        )
    return channels


def _mlp(fields: Fields, kind: _Kind) -> MLP:
    return MLP(
        fields.integer("intermediate_size", most=MOST_WIDTH),
        fields.word("hidden_act", ACTIVATIONS),
        gated=True,
        bias=kind.name == "Llama" and fields.flag("mlp_bias", default=False),
    )


def _windows(fields: Fields, kind: _Kind, count: int) -> list[int]:
    """How many keys each layer sees, 0 for all."""
    window = fields.get("sliding_window")
    if kind.windows and window is not None:
        window = fields.integer("sliding_window", most=MOST_POSITIONS)
    if kind.windows == "layers":
        used = fields.flag("use_sliding_window", default=False)
        window = window if used else None
    first = fields.get("max_window_layers")
    if kind.windows == "layers" and window and fields.get("layer_types") is None:
        if type(first) is not int or first < 0:
            raise fields.refuse("max_window_layers", "the number of leading layers that see all")
        return [window if index >= first else 0 for index in range(count)]
    return _by_type(fields, kind, count, window or 0)


def _by_type(fields: Fields, kind: _Kind, count: int, window: int) -> list[int]:
    """`layer_types` where it is given; else every layer alike."""
    types = fields.get("layer_types")
    if types is None:
        return [window] * count
    table = {"full_attention": 0, "sliding_attention": window}
    known = isinstance(types, list) and all(name in tuple(table) for name in types)
    if not known or len(types) != count:
        raise fields.refuse("layer_types", f"{count} of full_attention or sliding_attention")
    if "sliding_attention" in types and not window:
        raise fields.refuse("layer_types", "full_attention only, for no sliding window is in use")
    if kind.windows == "always" and window and "full_attention" in types:
        raise fields.refuse("layer_types", "sliding_attention only, as sliding_window is set")
    return [table[name] for name in types]
