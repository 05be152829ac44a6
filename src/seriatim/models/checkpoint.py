"""Checkpoints: a Hugging Face folder, a GGUF or a llama2.c file, read and checked; folders written.

What it is not: tokenizers (`codecs/`), or a download. Nothing here runs code from a checkpoint.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.errors import ModelError
from seriatim.files import gguf, llama2c, safetensors
from seriatim.files.jsonfile import read_object
from seriatim.files.regular import is_file, refuse
from seriatim.kernels.formats import Array, Blocks
from seriatim.models import families, quantised
from seriatim.models import gguf as models_gguf
from seriatim.models import weights as weighing
from seriatim.models.config import ids
from seriatim.models.families import llama
from seriatim.models.spec import Spec
from seriatim.models.spec import weights as shapes
from seriatim.models.weights import Weights

CONFIG, GENERATION = "config.json", "generation_config.json"
ADAPTER = "adapter_config.json"  # of an adapter in PEFT's format (`peft.py`)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model as its files say.

    `names` is what each weight is called on disk; `ends` and `start` are ids within the vocabulary;
    `defaults` is generation_config.json, which is shown and never applied; `notes` says what was
    ignored, defaulted or chosen; `metadata` is what a GGUF file says beside its tensors.
    """

    path: Path
    family: str
    model_type: str
    spec: Spec
    weights: Weights = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    ends: tuple[int, ...]
    start: int | None
    defaults: Mapping[str, Any]
    notes: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def dtypes(self) -> dict[str, int]:
        """How many weights of each type."""
        return weighing.counts(self.weights)

    @property
    def parameters(self) -> int:
        """How many weights in all."""
        return sum(self.dtypes.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every weight as stored; the first use reads them all."""
        return weighing.digest(self.weights)


def read(path: Path, *, context: int | None = None) -> Checkpoint:
    """Read a folder of config.json and safetensors, a GGUF file, or a llama2.c file of version 0.

    Args:
        path: the folder or the file.
        context: the length to load for; default: the model's own.

    Raises:
        FileError: a file is missing, damaged or of another format.
        ModelError: readable, but not a model that seriatim runs exactly.
        RequestError: `context` is more than the model has.
        ResourceError: the blocks of a GGUF file would not fit into memory.
    """
    return _read_file(path, context) if is_file(path) else _read_folder(path, context)


def read_spec(folder: Path, context: int | None = None) -> Spec:
    """The model that a folder's config.json describes, without its weights."""
    config = read_object(folder / CONFIG)
    return families.of(config)[1].spec(config, context)


def write(
    folder: Path,
    spec: Spec,
    weights: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, model.safetensors and generation_config.json, each flushed to the disk.

    Args:
        folder: where; made if it is not there. Its files appear one by one: for an atomic change
            write to a new folder and rename it.
        spec: a model that Llama's schema can describe.
        weights: by the names of `spec.weights(spec)`.
        config: keys to add or replace, such as eos_token_id or rope_theta.
        generation: generation_config.json; default: the config's start and end ids.

    Raises:
        ModelError: the config would not read back as this spec.
    """
    if {name: array.shape for name, array in weights.items()} != shapes(spec):
        raise ModelError("the weights to write are not those of the model", expected="its shapes")
    whole = _config(spec, weights, config or {})
    family = families.of(whole)[1]
    if family.spec(whole) != spec:
        raise ModelError("the model has parts that its config.json cannot describe")
    sources = family.sources(spec, ())
    if any(source.transpose or source.rows or source.dealt for source in sources.values()):
        raise ModelError(f"model_type {whole['model_type']!r} can be read, not written")
    ids = {key: whole.get(key) for key in ("bos_token_id", "eos_token_id")}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, whole)
    write_json(folder / GENERATION, ids if generation is None else generation)
    tensors = {source.name: weights[name] for name, source in sources.items()}
    safetensors.write(folder / safetensors.SINGLE, tensors, {"format": "pt"})


def write_quantised(folder: Path, source: Checkpoint, weights: Mapping[str, Array]) -> None:
    """Write config.json and model.safetensors of a model whose weights are in blocks.

    Args:
        folder: where; made if it is not there.
        source: the model they stand for, of a layout that has a config.json (`standard.py`).
        weights: by the names of `spec.weights(source.spec)`.

    Raises:
        ModelError: a fused tensor of parts that are not whole panels.
    """
    config = described(source)
    sources = families.by_name(source.family)[1].sources(source.spec, source.names.values())
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {**config, quantised.KEY: quantised.MARK})
    quantised.write(folder / safetensors.SINGLE, weights, sources)


def write_again(folder: Path, source: Checkpoint, weights: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors of a model with other weights, in its own layout.

    Args:
        folder: where; made if it is not there.
        source: the model, of a layout that has a config.json (`standard.py`).
        weights: of one type, by the names of `spec.weights(source.spec)`.

    Raises:
        ModelError: the weights are not of the model's shapes, or no config.json describes it.
    """
    if {name: array.shape for name, array in weights.items()} != shapes(source.spec):
        raise ModelError("the weights to write are not those of the model", expected="its shapes")
    config = described(source)
    key = "dtype" if "dtype" in config else "torch_dtype"
    kept = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    sources = families.by_name(source.family)[1].sources(source.spec, source.names.values())
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {**kept, key: _most(weights)})
    tensors = quantised.joined(weights, sources)
    plain = {name: array for name, array in tensors.items() if not isinstance(array, Blocks)}
    safetensors.write(folder / safetensors.SINGLE, plain, {"format": "pt"})


def described(source: Checkpoint) -> dict[str, Any]:
    """The config.json of a model: its folder's, or one in Llama's schema.

    Raises:
        ModelError: none can say what the model is.
    """
    if source.path.is_dir():
        return quantised.of(read_object(source.path / CONFIG), source.path / CONFIG)[0]
    given: dict[str, Any] = {"bos_token_id": source.start, "eos_token_id": [*source.ends] or None}
    base = source.metadata.get(f"{source.metadata.get('general.architecture')}.rope.freq_base")
    config = _config(source.spec, source.weights, given | ({"rope_theta": base} if base else {}))
    if families.of(config)[1].spec(config) != source.spec:
        raise ModelError("the model has parts that its config.json cannot describe")
    return config


def _read_folder(folder: Path, context: int | None) -> Checkpoint:
    if not folder.is_dir():
        raise refuse(folder, "does not exist", expected="a model folder, a GGUF or a llama2.c file")
    if os.path.lexists(folder / ADAPTER) and not os.path.lexists(folder / CONFIG):
        raise refuse(
            folder,
            "holds only an adapter",
            expected="the model that it was made for",
            fix="load that with adapter=; or train with merge for a whole model",
        )
    config = read_object(folder / CONFIG)
    extra = folder / GENERATION
    generation = read_object(extra) if os.path.lexists(extra) else {}
    config, in_blocks = quantised.of(config, folder / CONFIG)
    name, family = families.of(config)
    notes: list[str] = []
    if os.path.lexists(folder / ADAPTER):
        notes.append(f"{ADAPTER} lies beside the model and is not applied: see adapter=")
    spec = family.spec(config, context, notes.append)
    stored = quantised.read(folder) if in_blocks else safetensors.read_folder(folder).tensors
    ends = ids(config, "eos_token_id", spec.vocab_size, notes.append, CONFIG)
    ends |= ids(generation, "eos_token_id", spec.vocab_size, notes.append, GENERATION)
    starts = ids(config, "bos_token_id", spec.vocab_size, notes.append, CONFIG)
    return Checkpoint(
        path=folder,
        family=name,
        model_type=config["model_type"],
        spec=spec,
        weights=weighing.load(stored, spec, family, notes.append),
        names=_names(family, spec, stored),
        ends=tuple(sorted(ends)),
        start=next(iter(starts), None),
        defaults=generation,
        notes=tuple(notes),
    )


def _read_file(path: Path, context: int | None) -> Checkpoint:
    if path.suffix in (".safetensors", ".json"):
        raise refuse(path, "is one file of a model", expected="the folder that holds all of them")
    if gguf.matches(path):
        return Checkpoint(path=path, **models_gguf.read(path, context)._asdict())
    header, stored = llama2c.read(path)
    name, family = families.by_name("llama2c")
    spec = family.spec(header, context)
    return Checkpoint(
        path=path,
        family=name,
        model_type=name,
        spec=spec,
        weights=weighing.load(stored, spec, family),
        names=_names(family, spec, stored),
        ends=(1,) if spec.vocab_size > 1 else (),  # run.c stops where the next text would begin
        start=1 if spec.vocab_size > 1 else None,
        defaults={},
        notes=(),
    )


def _names(family: families.Family, spec: Spec, stored: Collection[str]) -> dict[str, str]:
    return {name: source.name for name, source in family.sources(spec, stored).items()}


def _config(spec: Spec, weights: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
    """Llama's config with the given keys over it, each fact in one spelling only."""
    base = llama.config(spec)
    if "rope_parameters" in given:
        del base["rope_theta"], base["rope_scaling"]
    rest = {key: value for key, value in given.items() if key != "dtype"}
    return base | rest | {"torch_dtype": _most(weights)}


def _most(weights: Mapping[str, Array]) -> str:
    """The type that most weights have, as config.json calls it."""
    types = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    return types[next(iter(weighing.counts(weights)))]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, flushed to the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
