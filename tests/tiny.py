"""A Llama of random weights, written without torch or transformers: for tests of the interface.

A plain module for tests: `write(folder)` gives a folder that `seriatim.load` takes by its path.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from seriatim.codecs.byte import END, ByteCodec
from seriatim.files import safetensors
from seriatim.models import checkpoint
from seriatim.models.families import llama
from seriatim.models.spec import weights as shapes
from seriatim.models.weights import DTYPES

CONTEXT, VOCAB = 256, 257
CONFIG = dict(
    model_type="llama",
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-5,
    hidden_act="silu",
)
IDS = dict(bos_token_id=END, eos_token_id=END)

Tensors = dict[str, np.ndarray]


def write(folder: Path, *, codec: bool = True, dtype: str = "f32", ids=IDS, **config) -> Path:
    """A model of `config`, with the codec of bytes or none; `ids` are its start and its end."""
    spec = llama.spec(CONFIG | config)
    draw = np.random.default_rng(0)
    random = {
        name: (0.3 * draw.standard_normal(shape, np.float32)).astype(DTYPES[dtype])
        for name, shape in shapes(spec).items()
    }
    checkpoint.write(folder, spec, random, config=ids)
    if codec:
        ByteCodec().save(folder)
    return folder


def change(folder: Path, how: Callable[[Tensors], Tensors | None]) -> Path:
    """The same folder after `how` was done to its tensors, by their names on disk."""
    path = folder / safetensors.SINGLE
    tensors = {name: array.copy() for name, array in safetensors.read(path).tensors.items()}
    safetensors.write(path, how(tensors) or tensors, {"format": "pt"})
    return folder
