"""ProGen2: GPT-J's maths, query, value and key dealt to eight groups of heads in one tensor.

Attention and MLP read the same norm and are added together; the first `rotary_dim` channels of a
head turn, in pairs (2i, 2i + 1). Source: github.com/salesforce/progen `progen2/models/progen`. Its
`mp_num = 8` is no key of the config, so it is a constant here too. The head has a bias and is never
tied, whatever the config says.
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
from seriatim.models.families.gpt2 import ACTIVATIONS
from seriatim.models.rope import rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec, weights

MODEL_TYPES = ("progen",)
ARCHITECTURES = ("ProGenForCausalLM",)

GROUPS = 8  # `mp_num`
DEALT = ("query", "value", "key")  # the parts of each group, in this order
NAMES = {
    "embed": "transformer.wte",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "ln_1",
    "output": "attn.out_proj",
    "up": "mlp.fc_in",
    "down": "mlp.fc_out",
}


def spec(config: Mapping[str, Any], context: int | None = None, say: Say = silent) -> Spec:
    """The model that a ProGen2 config describes; see `Family.spec`."""
    fields = Fields(config, "config.json", say)
    fields.get("model_type")
    fields.only(HARMLESS_AT | {"scale_attn_weights": (True, None)})
    width = fields.integer("n_embd", most=MOST_WIDTH)
    positions = fields.integer("n_positions", most=MOST_POSITIONS)
    fields.only({"n_ctx": (positions, None)})
    context = choose_context(context, positions, positions)
    heads = fields.integer("n_head", most=MOST_HEADS)
    if heads % GROUPS or width % heads:
        raise fields.refuse("n_head", f"a multiple of {GROUPS} that divides n_embd = {width}")
    channels = width // heads
    turns = _rope(fields, channels, positions, context)
    attention = Attention(heads, heads, channels, channels**-0.5, turns)
    inner = fields.integer("n_inner", most=MOST_WIDTH, default=4 * width)
    mlp = MLP(inner, fields.word("activation_function", ACTIVATIONS), gated=False, bias=True)
    norm = Norm("layer", fields.number("layer_norm_epsilon"), bias=True)
    count = fields.integer("n_layer", most=MOST_LAYERS)
    vocab = fields.integer("vocab_size", most=MOST_IDS)
    fields.close(HARMLESS | {"tie_word_embeddings"})
    layers = (Layer(attention, mlp, norm, parallel=True),) * count
    return Spec(vocab, width, context, layers, norm, tied=False, head_bias=True)


def sources(spec: Spec, names: Collection[str]) -> dict[str, Source]:
    """Names on disk."""
    return {name: _source(name) for name in weights(spec)}


def duplicates(spec: Spec, names: Collection[str]) -> dict[str, str]:
    """None: the head is never tied."""
    return {}


def ignored(name: str) -> bool:
    """Causal masks."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def _rope(fields: Fields, channels: int, positions: int, context: int) -> Rope:
    turned = fields.integer("rotary_dim", most=channels, default=channels)
    if turned % 2:
        raise fields.refuse("rotary_dim", "an even number")
    values = {"rope_type": "default", "rope_theta": 10_000.0}
    return replace(rope(values, turned, trained=positions, context=context), layout="interleaved")


def _source(name: str) -> Source:
    path, _, end = name.rpartition(".")
    if not path.startswith("layers."):
        return Source(f"{NAMES[path]}.{end}")
    _, index, part = path.split(".")
    stem = f"transformer.h.{index}."
    if part in DEALT:
        dealt = (GROUPS, len(DEALT), DEALT.index(part))
        return Source(f"{stem}attn.qkv_proj.{end}", dealt=dealt)
    return Source(f"{stem}{NAMES[part]}.{end}")
