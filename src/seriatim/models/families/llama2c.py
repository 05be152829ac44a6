"""llama2.c checkpoints: Llama with interleaved rotary pairs and Meta's tensor names.

Source: https://github.com/karpathy/llama2.c (model.py, run.c). Its "config" is the header that
`files/llama2c.py` reads; everything else is fixed by run.c.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from seriatim.models.config import Say, choose_context, silent
from seriatim.models.families import Source
from seriatim.models.rope import rope
from seriatim.models.spec import MLP, Attention, Layer, Norm, Spec, weights

MODEL_TYPES = ()  # no config.json names it: the file's header stands for one
ARCHITECTURES = ()

ROOT_NAMES = {"embed": "tok_embeddings", "norm": "norm", "head": "output"}
LAYER_NAMES = {
    "attention_norm": "attention_norm",
    "query": "attention.wq",
    "key": "attention.wk",
    "value": "attention.wv",
    "output": "attention.wo",
    "mlp_norm": "ffn_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}


def spec(config: Mapping[str, Any], context: int | None = None, say: Say = silent) -> Spec:
    """The model that a header describes; see `Family.spec`."""
    context = choose_context(context, config["seq_len"], config["seq_len"])
    channels = config["dim"] // config["n_heads"]
    turns = rope({}, channels, trained=config["seq_len"], context=context)
    attention = Attention(
        config["n_heads"],
        config["n_kv_heads"],
        channels,
        scale=channels**-0.5,
        rope=replace(turns, layout="interleaved"),
    )
    norm = Norm("rms", 1e-5)
    layer = Layer(attention, MLP(config["hidden_dim"], "silu", gated=True), norm)
    layers = (layer,) * config["n_layers"]
    return Spec(config["vocab_size"], config["dim"], context, layers, norm, bool(config["tied"]))


def sources(spec: Spec, names: Collection[str]) -> dict[str, Source]:
    """The names of llama2.c's model.py."""
    return {name: Source(_stored(name)) for name in weights(spec)}


def duplicates(spec: Spec, names: Collection[str]) -> dict[str, str]:
    """None: the format stores a tied head once."""
    return {}


def ignored(name: str) -> bool:
    """Tables of cosines and sines, which nothing reads."""
    return name.startswith("freq_cis_")


def _stored(name: str) -> str:
    path, _, end = name.rpartition(".")
    if not path.startswith("layers."):
        return f"{ROOT_NAMES[path]}.{end}"
    _, index, part = path.split(".")
    return f"layers.{index}.{LAYER_NAMES[part]}.{end}"
