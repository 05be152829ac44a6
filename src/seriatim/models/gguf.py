"""A GGUF file as a model: floats as views of the map, blocks laid out anew in our format.

What the keys say is read in `models/gguf_spec.py`, what the blocks hold in `models/ggml.py`, and
the tokenizer's keys in `codecs/`.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from seriatim.errors import ModelError, ResourceError
from seriatim.files import gguf
from seriatim.files.gguf import Tensor
from seriatim.files.regular import forget, listed
from seriatim.kernels.formats import Array
from seriatim.kernels.native import available_cpus
from seriatim.models import ggml, memory
from seriatim.models.config import Say, ids
from seriatim.models.families import Source
from seriatim.models.gguf_spec import FACTORS, sources, spec
from seriatim.models.spec import Spec
from seriatim.models.spec import weights as shapes
from seriatim.models.weights import Weights

END_KEYS = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
START_KEYS = ["tokenizer.ggml.bos_token_id"]
SAMPLING = "general.sampling."


class Model(NamedTuple):
    """What `models/checkpoint.py` makes a `Checkpoint` of: fields of the same names."""

    family: str
    model_type: str
    spec: Spec
    weights: Weights
    names: dict[str, str]
    ends: tuple[int, ...]
    start: int | None
    defaults: dict[str, Any]
    notes: tuple[str, ...]
    metadata: Mapping[str, Any]


def read(path: Path, context: int | None = None) -> Model:
    """Read one file.

    Args:
        path: the file.
        context: the length to load for; default: the model's own.

    Raises:
        FileError: not GGUF, or damaged.
        ModelError: readable, but not a model that seriatim runs exactly.
        RequestError: `context` is more than the model has.
        ResourceError: its blocks would need more memory than there is.
    """
    (keys, tensors), where = gguf.read(path), path.name
    notes: list[str] = []
    kind, model = spec(keys, tensors, where, context, notes.append)
    places = sources(kind, model)
    names = {name: place.name for name, place in places.items()}
    ends, starts = (
        set().union(*(ids(keys, key, model.vocab_size, notes.append, where) for key in group))
        for group in (END_KEYS, START_KEYS)
    )
    return Model(
        family="gguf",
        model_type=kind,
        spec=model,
        weights=_weights(_parts(tensors, model, places, where), names, notes.append),
        names=names,
        ends=tuple(sorted(ends)),
        start=next(iter(starts), None),
        defaults={k.removeprefix(SAMPLING): keys[k] for k in keys if k.startswith(SAMPLING)},
        notes=tuple(notes),
        metadata=keys,
    )


def _parts(
    tensors: Mapping[str, Tensor], model: Spec, places: Mapping[str, Source], where: str
) -> dict[str, Tensor]:
    """What is stored of each weight, rows of a fused tensor cut out; nothing may be left over."""
    rows = Counter[str]()
    for name, shape in shapes(model).items():
        rows[places[name].name] += shape[0]
    if missing := sorted(rows.keys() - tensors.keys()):
        expected = f"the {len(rows)} tensors that its keys describe"
        raise ModelError(f"{where} lacks {listed(missing)}", expected=expected)
    if unknown := sorted(tensors.keys() - rows.keys() - {FACTORS}):
        seen = f"{where} holds {listed(unknown)}, which no part of the model reads"
        raise ModelError(seen, expected="only the tensors that its keys describe")
    for name, shape in shapes(model).items():
        stored = places[name].name
        _check(stored, tensors[stored], (rows[stored], *shape[1:]))
    return {name: ggml.rows(tensors[place.name], place.rows) for name, place in places.items()}


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ModelError(f"the tensor {name} has the shape {tensor.shape}", expected=str(shape))
    known = ggml.FLOATS | (ggml.BLOCKS if len(shape) == 2 else {})
    if tensor.kind not in known:
        seen = f"the tensor {name} of {len(shape)} axes has the type {tensor.kind}"
        raise ModelError(seen, expected=f"one of {', '.join(known)}")


def _weights(parts: Mapping[str, Tensor], names: Mapping[str, str], say: Say) -> Weights:
    """All of them; whether the blocks fit into memory is known before any is made."""
    need, have = sum(map(ggml.block_bytes, parts.values())), memory.available()
    if need > have:
        raise ResourceError(
            f"the blocks of this model take {need:,} bytes and {have:,} are available",
            fix="free memory, or load a smaller model",
        )
    for kind, count in sorted(Counter(tensor.kind for tensor in parts.values()).items()):
        if kind in ggml.ROUNDED:
            say(f"rounded to int8, groups of 32 to one scale: {count} weights of type {kind}")
    with ThreadPoolExecutor(available_cpus()) as pool:  # numpy's loops run side by side
        return dict(zip(parts, pool.map(_weight, parts.values(), names.values()), strict=True))


def _weight(tensor: Tensor, name: str) -> Array:
    if tensor.kind in ggml.FLOATS:
        return ggml.array(tensor)
    made = ggml.blocks(tensor, name)
    forget(tensor.data)
    return made
