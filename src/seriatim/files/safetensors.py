"""safetensors: every header checked, tensors as views of one read-only memory map per file.

Not a parser of meaning: names and shapes are checked against a model in `models/weights.py`.
Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, data).
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from seriatim.files.jsonfile import distinct, parse, read_object
from seriatim.files.regular import is_file, listed, mapped, open_regular, refuse

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
HEADER_LIMIT = 10_000_000  # bytes, 90,000 tensors: read in 0.5 s and 60 MB; real files have < 3 MB

_KEYS = {"dtype", "shape", "data_offsets"}

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class Entry(NamedTuple):
    """One tensor of a header; `start` and `stop` are bytes of the data section."""

    dtype: Any  # a numpy type, or the unknown word that was found
    shape: tuple[Any, ...]
    start: Any
    stop: Any


class File(NamedTuple):
    """One file: its tensors by name (read-only views of the map) and the header's metadata."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: Path) -> File:
    """Map one file.

    Raises:
        FileError: the file, and what of it is not as the format says.
    """
    with open_regular(path) as file:
        entries, metadata, start = _header(file, path)
        data = mapped(file, path)[start:]
    return File({name: _view(data, entry) for name, entry in entries.items()}, metadata)


def read_folder(folder: Path) -> File:
    """Map model.safetensors, or all the shards that model.safetensors.index.json lists.

    Raises:
        FileError: a damaged file, a missing or misplaced shard or tensor, or only pickles.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not is_file(index):
        if not is_file(single):
            raise _nothing(folder)
        return read(single)
    places = _places(index)
    shards = sorted(set(places.values()))
    if is_file(single) and SINGLE not in shards:
        raise refuse(folder, f"holds both {SINGLE} and an index of other files", fix="remove one")
    if missing := [name for name in shards if not is_file(folder / name)]:
        raise refuse(folder, f"lacks {listed(missing)}", expected=f"the shards that {INDEX} lists")
    return _join(folder, places, {name: read(folder / name) for name in shards})


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write tensors, flushed to the disk; equal tensors give equal bytes.

    Args:
        path: the file, replaced if it is there.
        tensors: by name; anything not contiguous is copied first.
        metadata: strings for the header, such as {"format": "pt"}, which transformers asks for.
    """
    # save_file reads `nbytes` from the data pointer whatever the strides: it must get plain arrays
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives: save_file would leave it private
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, path, dict(metadata))
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Entry], dict[str, str], int]:
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size < 10:
        raise refuse(path, f"has only {size} bytes", expected="a safetensors file")
    if not 2 <= length <= HEADER_LIMIT:
        raise refuse(path, f"says its header has {length} bytes", expected=f"2 to {HEADER_LIMIT}")
    if length > size - 8:
        raise refuse(path, f"is cut short: a header of {length} bytes in a file of {size}")
    entries = parse(file.read(length), path, pairs=_pairs)
    if not isinstance(entries, dict):
        raise refuse(path, "has a header that is not a JSON object of tensors")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse(path, "has __metadata__ that is not an object of strings")
    _check(entries, size - 8 - length, path)
    return entries, metadata, 8 + length


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    """Tensor records become small tuples while parsing: dicts would take three times the memory."""
    value = distinct(pairs)
    if len(value) != 3 or value.keys() != _KEYS:
        return value
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or type(shape) is not list or type(offsets) is not list:
        return value
    if len(offsets) != 2:
        return value
    return Entry(DTYPES.get(dtype, dtype), tuple(shape), *offsets)


def _check(entries: dict[str, Any], size: int, path: Path) -> None:
    """Every record is well formed, and together they cover the data exactly once."""
    for name, entry in entries.items():
        if fault := _fault(entry):
            raise refuse(path, f"has a bad record of the tensor {listed([name])}: {fault}")
    end, before = 0, "the header"
    for name in sorted(entries, key=lambda name: entries[name][2:]):
        start, stop = entries[name][2:]
        if start != end:
            kind = "overlaps" if start < end else "leaves a gap after"
            raise refuse(path, f"is damaged: {listed([name])} {kind} {listed([before])}")
        end, before = stop, name
    if end != size:
        kind = "is cut short" if end > size else "has bytes that belong to no tensor"
        raise refuse(path, f"{kind}: its tensors take {end} bytes, its data has {size}")


def _fault(entry: Any) -> str:
    if not isinstance(entry, Entry):
        return "expected dtype, shape and two data_offsets"
    if not isinstance(entry.dtype, np.dtype):
        return f"the dtype {entry.dtype!r}; expected one of {', '.join(DTYPES)}"
    if len(entry.shape) > 8:
        return f"{len(entry.shape)} axes; expected at most 8"
    for number in (*entry.shape, entry.start, entry.stop):
        if type(number) is not int or not 0 <= number < 1 << 63:
            return f"the number {number!r}; expected an integer from 0 to 2**63 - 1"
    need, have = math.prod(entry.shape) * entry.dtype.itemsize, entry.stop - entry.start
    return f"{have} bytes; {need} expected for its dtype and shape" if need != have else ""


def _view(data: np.ndarray, entry: Entry) -> np.ndarray:
    return data[entry.start : entry.stop].view(entry.dtype).reshape(entry.shape)


def _places(index: Path) -> dict[str, str]:
    """weight_map: tensor name -> plain file name in the same folder."""
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise refuse(index, "has no weight_map", expected="an object: tensor name -> file name")
    for file in sorted({str(file) for file in places.values()}):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise refuse(
                index,
                f"names the file {file!r}",
                expected="a plain name of a .safetensors file in the same folder",
            )
    return places


def _join(folder: Path, places: dict[str, str], shards: dict[str, File]) -> File:
    tensors: dict[str, np.ndarray] = {}
    for shard, file in shards.items():
        here = {name for name, place in places.items() if place == shard}
        if lost := sorted(here - file.tensors.keys()):
            raise refuse(folder / shard, f"lacks {listed(lost)}", expected=f"what {INDEX} lists")
        if extra := sorted(file.tensors.keys() - here):
            raise refuse(folder / shard, f"holds {listed(extra)}, which is not in {INDEX}")
        tensors |= file.tensors
    return File(tensors, {})


def _nothing(folder: Path) -> Exception:
    if not folder.is_dir():
        return refuse(folder, "is not a folder" if is_file(folder) else "does not exist")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        return refuse(
            folder,
            f"holds weights only as {listed(pickles)}, which can run code when opened",
            expected=SINGLE,
            fix="convert them to safetensors where you trust them",
        )
    return refuse(folder, f"holds no {SINGLE}", expected=f"{SINGLE} or {INDEX}")
