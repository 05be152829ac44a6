"""A model of a file that has no config.json, in Llama's own layout: the same function, exactly.

Only rows of queries and keys move: Hugging Face's Llama turns channels i and i + A/2 of a head
together, other formats 2i and 2i + 1.
"""

from dataclasses import replace

import numpy as np

from seriatim.errors import ModelError
from seriatim.kernels.formats import Array, Blocks
from seriatim.models import families
from seriatim.models.checkpoint import Checkpoint
from seriatim.models.spec import Attention, Layer, Spec


def standard(source: Checkpoint) -> Checkpoint:
    """The model as a folder can hold it; one that came from a folder is returned as it is.

    Raises:
        ModelError: rows of weights in blocks would have to move.
    """
    if source.path.is_dir():
        return source
    spec = replace(source.spec, layers=tuple(map(_halved, source.spec.layers)))
    weights = {name: _moved(name, array, source.spec) for name, array in source.weights.items()}
    name, family = families.by_name("llama")
    names = {key: found.name for key, found in family.sources(spec, ()).items()}
    return replace(source, family=name, model_type=name, spec=spec, weights=weights, names=names)


def _halved(layer: Layer) -> Layer:
    rope = layer.attention.rope
    turned = None if rope is None else replace(rope, layout="half")
    return replace(layer, attention=replace(layer.attention, rope=turned))


def _moved(name: str, array: Array, spec: Spec) -> Array:
    part = name.split(".")[-2]
    if part not in ("query", "key"):
        return array
    a: Attention = spec.layers[int(name.split(".")[1])].attention
    if a.rope is None or a.rope.layout == "half":
        return array
    if isinstance(array, Blocks):
        raise ModelError(f"{name} is in blocks, whose rows cannot move", fix="use the original")
    count = 2 * len(a.rope.frequencies)  # channels of a head that turn
    order = np.r_[0:count:2, 1:count:2, count : a.channels]
    return array.reshape(-1, a.channels, *array.shape[1:])[:, order].reshape(array.shape)
