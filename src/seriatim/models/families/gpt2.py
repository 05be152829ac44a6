"""GPT-2: learned positions, layer norm, fused query-key-value, weights stored as [in, out].

Source: transformers 5 `models/gpt2`. `reorder_and_upcast_attn` only changes the order of float32
operations, which is fixed here, so it is accepted and means nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from seriatim.models.config import (
    HARMLESS,
    HARMLESS_AT,
    MOST_HEADS,
    MOST_IDS,
    MOST_LAYERS,
    MOST_POSITIONS,
    MOST_WIDTH,
    Fields,
    Say,
    choose_context,
    silent,
)
from seriatim.models.families import Source
from seriatim.models.spec import MLP, Attention, Layer, Norm, Spec, weights

MODEL_TYPES = ("gpt2",)
ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model")

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
ROOT_NAMES = {"embed": "wte", "position": "wpe", "norm": "ln_f"}
LAYER_NAMES = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
PRODUCT_NAMES = {"output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
FUSED = ("query", "key", "value")  # row ranges of attn.c_attn, in this order

_HARMLESS = HARMLESS | {"reorder_and_upcast_attn", "n_special", "predict_special_tokens"}


def spec(config: Mapping[str, Any], context: int | None = None, say: Say = silent) -> Spec:
    """The model that a GPT-2 config describes; see `Family.spec`."""
    fields = Fields(config, "config.json", say)
    fields.get("model_type")
    fields.only(HARMLESS_AT)
    width = fields.integer("n_embd", most=MOST_WIDTH)
    positions = fields.integer("n_positions", most=MOST_POSITIONS)
    fields.only({"n_ctx": (positions, None)})
    norm = Norm("layer", fields.number("layer_norm_epsilon"), bias=True)
    attention, scales = _attention(fields, width)
    inner = fields.integer("n_inner", most=MOST_WIDTH, default=4 * width)
    mlp = MLP(inner, fields.word("activation_function", ACTIVATIONS), gated=False, bias=True)
    layers = tuple(Layer(replace(attention, scale=scale), mlp, norm) for scale in scales)
    vocab = fields.integer("vocab_size", most=MOST_IDS)
    tied = fields.flag("tie_word_embeddings", default=True)
    fields.close(_HARMLESS)
    context = choose_context(context, positions, positions)
    return Spec(vocab, width, context, layers, norm, tied, positions)


def sources(spec: Spec, names: Collection[str]) -> dict[str, Source]:
    """Names on disk; checkpoints of the bare `GPT2Model` lack the prefix "transformer."."""
    prefix = "" if "wte.weight" in names else "transformer."
    return {name: _source(name, prefix, spec.width) for name in weights(spec)}


def duplicates(spec: Spec, names: Collection[str]) -> dict[str, str]:
    """A tied head that is stored all the same."""
    embed = sources(spec, names)["embed.weight"].name
    return {"lm_head.weight": embed} if spec.tied and "lm_head.weight" in names else {}


def ignored(name: str) -> bool:
    """Causal masks, which old checkpoints store."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _attention(fields: Fields, width: int) -> tuple[Attention, list[float]]:
    """The attention of a layer, and the scale of each layer's query . key."""
    heads = fields.integer("n_head", most=MOST_HEADS)
    if width % heads:
        raise fields.refuse("n_embd", f"a multiple of n_head = {heads}")
    channels = width // heads
    scale = channels**-0.5 if fields.flag("scale_attn_weights", default=True) else 1.0
    shrinks = fields.flag("scale_attn_by_inverse_layer_idx", default=False)
    count = fields.integer("n_layer", most=MOST_LAYERS)
    scales = [scale / (index + 1) if shrinks else scale for index in range(count)]
    return Attention(heads, heads, channels, scale, qkv_bias=True, output_bias=True), scales


def _source(name: str, prefix: str, width: int) -> Source:
    path, _, end = name.rpartition(".")
    if not path.startswith("layers."):
        return Source(f"lm_head.{end}" if path == "head" else f"{prefix}{ROOT_NAMES[path]}.{end}")
    _, index, part = path.split(".")
    stem = f"{prefix}h.{index}."
    if part in LAYER_NAMES:
        return Source(f"{stem}{LAYER_NAMES[part]}.{end}")
    turned = end == "weight"
    if part in PRODUCT_NAMES:
        return Source(f"{stem}{PRODUCT_NAMES[part]}.{end}", transpose=turned)
    first = FUSED.index(part) * width
    return Source(f"{stem}attn.c_attn.{end}", transpose=turned, rows=slice(first, first + width))
