"""Checkpoints of real shapes with random weights: valid for speed only."""

from pathlib import Path

import ml_dtypes
import numpy as np

from seriatim.models import checkpoint
from seriatim.models.families import llama
from seriatim.models.spec import Spec, weights

# dim, ffn, layers, heads, kv heads, vocabulary
SHAPES = {
    "15M": (288, 768, 6, 6, 6, 32000),
    "135M": (576, 1536, 30, 9, 3, 49152),
    "1B": (2048, 8192, 16, 32, 8, 128256),
}


def spec(shape: tuple[int, ...], context: int = 2048) -> Spec:
    """A tied Llama of (dim, ffn, layers, heads, kv heads, vocabulary)."""
    dim, ffn, layers, heads, kv_heads, vocabulary = shape
    return llama.spec(
        {
            "model_type": "llama",
            "hidden_size": dim,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
        }
    )


def make(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write a bf16 checkpoint, drawn from seed 0; one that exists is left as it is."""
    if (folder / "config.json").exists():
        return folder
    model, draw = spec(shape), np.random.default_rng(0)
    tensors = {
        name: (
            np.ones(size, np.float32)
            if len(size) == 1
            else draw.standard_normal(size, np.float32) / np.sqrt(size[1])
        ).astype(ml_dtypes.bfloat16)
        for name, size in weights(model).items()
    }
    checkpoint.write(folder, model, tensors)
    return folder
