"""Heads that predict ids beyond the next, as `ahead.safetensors` beside a model holds them.

Head k gives, from what the last layer gave (h), what the model's own norm and unembedding turn into
the logits of the id k further on (1 is the next, which needs no head):

    h + silu(h W_k' + b_k)

Each is a Medusa head (Cai et al. 2024, arXiv:2401.10774) that shares its unembedding with the
model. Not the engine's yet: they are there for drafts that a model makes for itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seriatim.errors import FileError
from seriatim.files import safetensors
from seriatim.models import checkpoint

FILE = "ahead.safetensors"


class Head(NamedTuple):
    """One head: `weight` [width, width] (out, in) and `bias` [width]."""

    weight: np.ndarray
    bias: np.ndarray


def names(k: int) -> tuple[str, str]:
    """What the weight and the bias of head `k` are called."""
    return f"ahead.{k}.output.weight", f"ahead.{k}.output.bias"


def shapes(count: int, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `count` heads, the first of which is head 2."""
    heads = (zip(names(k), ((width, width), (width,)), strict=True) for k in range(2, 2 + count))
    return {name: shape for head in heads for name, shape in head}


def load_heads(folder: Path) -> Mapping[int, Head]:
    """The heads of a model folder by how far they look, 2 the first; none if it has none.

    Raises:
        FileError: the file is damaged, or does not hold heads of that model.
        ModelError: the folder holds no model.
    """
    width = checkpoint.read_spec(folder).width
    if not (path := folder / FILE).exists():
        return {}
    tensors = safetensors.read(path).tensors
    wanted = shapes(len(tensors) // 2, width)
    if {name: array.shape for name, array in tensors.items()} != wanted:
        raise FileError(f"{path} holds {sorted(tensors)!r:.80}", expected=f"heads of width {width}")
    return {k: Head(*(tensors[n] for n in names(k))) for k in range(2, 2 + len(tensors) // 2)}
