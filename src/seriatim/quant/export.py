"""A model as a GGUF file, which llama.cpp loads: `models/gguf.py` the other way round.

Weights are written as llama.cpp's own converter writes them: queries and keys of a llama in the
order in which channels rotate together, vectors and positions as F32. What a file cannot say is
refused by name. The tokenizer's keys come from `codecs/`.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seriatim.errors import FileError, ModelError, RequestError, SeriatimError, did_you_mean
from seriatim.files.regular import listed
from seriatim.kernels.formats import GROUP, Array, Blocks, expand, unpack
from seriatim.models.config import Say
from seriatim.models.gguf_spec import FACTORS, sources
from seriatim.models.spec import Spec
from seriatim.models.spec import weights as shapes
from seriatim.models.weights import convert
from seriatim.quant.gguf_header import architecture_of, header

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # to general.file_type
BLOCKS = {"q8_0": ("int8", 127), "q4_0": ("int4", 8)}  # our format; the largest integer
LARGEST = float(np.finfo(np.float16).max)  # of a scale


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        architecture: by llama.cpp's name.
        types: how many weights of each type.
        bytes: of the file.
        notes: what the file does not say, or says in another type than was asked for.
    """

    path: Path
    architecture: str
    types: dict[str, int]
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    """One to write: its type, its rows' sources in order, and the order they are put in."""

    type: str
    shape: tuple[int, ...]
    parts: list[Array]
    order: np.ndarray | None = None


def write(
    path: Path,
    spec: Spec,
    weights: Mapping[str, Array],
    tokenizer: Mapping[str, Any],
    *,
    type: str,
    name: str,
    notes: Sequence[str] = (),
) -> Exported:
    """Write one file; it appears under its name when it is whole.

    Args:
        path: where; nothing may be there yet.
        spec: the model.
        weights: by the names of `spec.weights(spec)`.
        tokenizer: metadata by key: numbers, truth values, strings and lists of them.
        type: of the matrices: a key of `TYPES`. q8_0 and q4_0 round as llama.cpp does; blocks of
            int8 and int4 become them as they are.
        name: of the model, in the file.
        notes: passed on in the result.

    Raises:
        RequestError: an unknown type, or one in which a weight would be infinite.
        FileError: something is at `path` already, or cannot be put there.
        ModelError: a part of the model that llama.cpp does not compute.
        SeriatimError: the package gguf is not installed.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    library = _library()
    if type not in TYPES:
        raise RequestError(f"type is {type!r}", fix=did_you_mean(type, TYPES))
    if os.path.lexists(path):
        raise FileError(f"{path} exists already", fix="remove it, or choose another name")
    said = list(notes)
    architecture = architecture_of(spec)
    keys, factors = header(spec, architecture)
    tensors = _tensors(spec, architecture, weights, type, said.append)
    if factors is not None:
        tensors[FACTORS] = _Tensor("f32", factors.shape, [factors])
    general = {"general.name": name, "general.file_type": TYPES[type]}
    general["general.quantization_version"] = 2
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = library.GGUFWriter(None, architecture)
    for key, value in (general | keys | dict(tokenizer)).items():
        _put(writer, key, value)
    try:
        _save(writer, part, tensors)
        size = part.stat().st_size
        part.replace(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}", fix="choose another") from error
    finally:
        part.unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[tensor.type] += int(np.prod(tensor.shape))
    return Exported(path, architecture, dict(counts.most_common()), size, tuple(said))


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise SeriatimError(
            "writing GGUF needs the package gguf, which is not installed",
            fix="pip install 'seriatim[gguf]'",
        ) from None
    return gguf


# Tensors


def _tensors(
    spec: Spec, architecture: str, weights: Mapping[str, Array], type: str, say: Say
) -> dict[str, _Tensor]:
    """All of them, by name; those of one name in the file are its rows, in order."""
    parts: dict[str, list[Array]] = {}
    wanted, places = shapes(spec), sources(architecture, spec)
    if {name: weights[name].shape for name in weights} != wanted:
        raise ModelError("the weights to write are not those of the model", expected="its shapes")
    for name in wanted:
        parts.setdefault(places[name].name, []).append(weights[name])
    a = spec.layers[0].attention
    turned = architecture == "llama" and a.rope is not None and a.rope.layout == "half"
    heads = {"attn_q": a.heads, "attn_k": a.kv_heads} if turned else {}
    made, uneven, rounded = {}, [], []
    for name, arrays in parts.items():
        shape = (sum(part.shape[0] for part in arrays), *arrays[0].shape[1:])
        kind = "f32" if len(shape) == 1 or name == "position_embd.weight" else type
        if kind in BLOCKS and shape[-1] % GROUP:
            kind = "f16"
            uneven.append(name)
        if any(isinstance(p, Blocks) and BLOCKS.get(kind, "")[:1] != (p.kind,) for p in arrays):
            rounded.append(name)
        split = name.split(".")
        count = heads.get(split[-2], 0)
        made[name] = _Tensor(kind, shape, arrays, _side_by_side(shape[0], count))
    if uneven:
        say(f"rows that are no multiple of {GROUP} are written as f16: {listed(uneven)}")
    if rounded:
        say(f"blocks were expanded, and rounded to {type}: {listed(rounded)}")
    return made


def _side_by_side(rows: int, heads: int) -> np.ndarray | None:
    """Which row comes where, so that channels that rotate together become neighbours."""
    if not heads:
        return None
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _save(writer: "GGUFWriter", path: Path, tensors: Mapping[str, _Tensor]) -> None:
    """One tensor in memory at a time."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, tensor in tensors.items():
        kind = GGMLQuantizationType[tensor.type.upper()]
        values, size = GGML_QUANT_SIZES[kind]
        count = int(np.prod(tensor.shape))
        writer.add_tensor_info(
            name, tensor.shape, np.dtype(np.float32), count // values * size, raw_dtype=kind
        )
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(_bytes(name, tensor))
        writer.flush()
        for file in writer.fout or ():
            os.fsync(file.fileno())
    finally:
        writer.close()


def _bytes(name: str, tensor: _Tensor) -> np.ndarray:
    """A tensor as it lies in the file."""
    format, most = BLOCKS.get(tensor.type, ("", 0))
    if all(isinstance(part, Blocks) and part.kind == format for part in tensor.parts):
        unpacked = [unpack(part) for part in tensor.parts if isinstance(part, Blocks)]
        q, scales = (np.concatenate(both) for both in zip(*unpacked, strict=True))
        q, scales = _ordered(q, tensor.order), _ordered(scales, tensor.order)
        return _records(tensor.type, q, scales)
    floats = [expand(part) if isinstance(part, Blocks) else part for part in tensor.parts]
    whole = _ordered(np.concatenate(floats) if len(floats) > 1 else floats[0], tensor.order)
    if not most:
        return np.ascontiguousarray(convert({name: whole}, tensor.type)[name])
    return _rounded(name, whole.astype(np.float32, copy=False), tensor.type, most)


def _rounded(name: str, values: np.ndarray, type: str, most: int) -> np.ndarray:
    """Blocks by llama.cpp's own plain rule, as its package has it."""
    from gguf import GGMLQuantizationType, quants

    largest = float(np.abs(values).max())
    if not largest <= LARGEST * most:
        raise RequestError(f"type {type} cannot hold {largest:g}, a weight of {name}", fix="f32")
    return quants.quantize(values, GGMLQuantizationType[type.upper()])


def _records(type: str, q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Q8_0: the scale, 32 int8. Q4_0: the scale, 16 bytes of k = j (low) and k = j + 16 (high)."""
    q = q.reshape(len(q), -1, GROUP)
    low, high = q[..., : GROUP // 2], q[..., GROUP // 2 :]
    data = q ^ np.uint8(128) if type == "q8_0" else low | high << np.uint8(4)
    scale = np.ascontiguousarray(scales)[..., None].view(np.uint8)
    return np.concatenate([scale, data], axis=2)


def _ordered(array: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return array if order is None else array[order]


def _put(writer: "GGUFWriter", key: str, value: Any) -> None:
    """One key, by the type of its value."""
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)
