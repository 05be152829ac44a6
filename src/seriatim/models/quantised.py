"""Quantised folders (contracts.md, 28): blocks in one safetensors file, read by a map at once.

Each weight in blocks is a U8 tensor [panel, group, byte] under its usual name; the header's
metadata says their types and shapes, config.json that others should keep away. Always [out, in].
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.errors import FileError, ModelError, did_you_mean
from seriatim.files import safetensors
from seriatim.files.jsonfile import parse
from seriatim.files.regular import listed, refuse
from seriatim.kernels.formats import FORMATS, PANEL, Array, Blocks
from seriatim.models.families import Source
from seriatim.models.weights import dtype_name

VERSION = 1
KEY, TABLE = "quantization_config", "seriatim_blocks"
MARK = {"quant_method": "seriatim", "version": VERSION}
MOST = 1 << 31  # rows or columns


def of(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """The config without our mark, and whether it had it; other marks are left for the family.

    Raises:
        FileError: the mark is of a newer version, or holds what is not known.
    """
    mark = config.get(KEY)
    if not isinstance(mark, dict) or mark.get("quant_method") != MARK["quant_method"]:
        return dict(config), False
    version = mark.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        raise refuse(
            path,
            f"has a {KEY} of version {version!r:.80}",
            expected=str(VERSION),
            fix="update seriatim" if newer else "quantise the model again",
        )
    if unknown := sorted(mark.keys() - MARK.keys()):
        raise refuse(path, f"has {listed(unknown)} in {KEY}", expected=f"only {', '.join(MARK)}")
    return {key: value for key, value in config.items() if key != KEY}, True


def read(folder: Path) -> dict[str, Array]:
    """The tensors of a quantised folder by their names on disk: views of the map.

    Raises:
        FileError: the file, and what of it is not as its table says.
    """
    path = folder / safetensors.SINGLE
    file = safetensors.read_folder(folder)
    if TABLE not in file.metadata:
        raise refuse(
            path, f"has no {TABLE} in its metadata", expected="a file written by seriatim quantize"
        )
    table = parse(file.metadata[TABLE].encode("utf-8", "surrogatepass"), path)
    if not isinstance(table, dict):
        raise refuse(path, f"has a {TABLE} that is not an object of tensors")
    if missing := sorted(table.keys() - file.tensors.keys()):
        raise refuse(path, f"lacks {listed(missing)}", expected=f"what its {TABLE} lists")
    blocks = {name: _blocks(path, name, entry, file.tensors[name]) for name, entry in table.items()}
    return {**file.tensors, **blocks}


def write(path: Path, weights: Mapping[str, Array], sources: Mapping[str, Source]) -> None:
    """Write model.safetensors, flushed to the disk.

    Args:
        path: the file.
        weights: by the names of `spec.weights(spec)`.
        sources: where each is stored.

    Raises:
        ModelError: a fused tensor of parts that are not whole panels.
    """
    whole = joined(weights, sources)
    table = {
        name: {"type": array.kind, "shape": list(array.shape)}
        for name, array in sorted(whole.items())
        if isinstance(array, Blocks)
    }
    tensors = {n: a.data if isinstance(a, Blocks) else a for n, a in whole.items()}
    safetensors.write(path, tensors, {"format": "pt", TABLE: json.dumps(table)})


def joined(weights: Mapping[str, Array], sources: Mapping[str, Source]) -> dict[str, Array]:
    """Tensors as they are stored, of their parts: the way back from `weights.load`.

    Raises:
        ModelError: a fused tensor of parts of several types, or in blocks and not whole panels.
    """
    parts: dict[str, list[str]] = {}
    for name, source in sources.items():
        parts.setdefault(source.name, []).append(name)
    return {
        stored: _joined(stored, [(sources[name], weights[name]) for name in names])
        for stored, names in parts.items()
    }


def _blocks(path: Path, name: str, entry: Any, array: np.ndarray) -> Blocks:
    if not isinstance(entry, dict) or entry.keys() != {"type", "shape"}:
        raise _bad(path, name, f"the entry {entry!r:.80}", "type and shape")
    kind, shape = entry["type"], entry["shape"]
    if kind not in list(FORMATS):
        raise _bad(path, name, f"the type {kind!r:.80}", did_you_mean(f"{kind}", FORMATS))
    sizes = shape if isinstance(shape, list) and len(shape) == 2 else [0]
    if not all(type(n) is int and 0 < n < MOST for n in sizes):
        raise _bad(path, name, f"the shape {shape!r:.80}", "rows and columns")
    whole = FORMATS[kind].shape(*sizes)
    if array.dtype != np.uint8 or array.shape != whole:
        seen = f"a tensor {array.dtype} {array.shape} of {prod(array.shape):,} values"
        raise _bad(path, name, seen, f"uint8 {whole} for {kind} {shape}")
    return Blocks(kind, (sizes[0], sizes[1]), array)


def _bad(path: Path, name: str, seen: str, expected: str) -> FileError:
    return refuse(path, f"has for {listed([name])} {seen} in {TABLE}", expected=expected)


def _joined(name: str, parts: list[tuple[Source, Array]]) -> Array:
    """A tensor as it is stored, from its parts in order."""
    parts = sorted(parts, key=lambda part: _order(part[0]))
    kinds = {dtype_name(array) for _, array in parts}
    if len(kinds) > 1:
        raise ModelError(f"the parts of {name} are {' and '.join(sorted(kinds))}", expected="one")
    blocks = [array for _, array in parts if isinstance(array, Blocks)]
    groups = parts[0][0].dealt[0] if parts[0][0].dealt else 1
    if blocks and groups > 1:
        seen = f"the rows of {name} are dealt to {groups} groups, which blocks cannot hold"
        raise ModelError(seen, fix="quantise at load instead, with precision=")
    if blocks:
        return blocks[0] if len(blocks) == 1 else _stacked(name, blocks)
    plain = [array for _, array in parts if not isinstance(array, Blocks)]
    whole = plain[0] if len(plain) == 1 else _woven(plain, groups)
    return whole.T if parts[0][0].transpose else whole


def _order(source: Source) -> int:
    """Where a part stands among those of its tensor."""
    return source.rows.start if source.rows else source.dealt[2] if source.dealt else 0


def _woven(parts: list[np.ndarray], groups: int) -> np.ndarray:
    """Parts one below the other, in each of the groups that their rows are dealt to."""
    dealt = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(dealt, axis=1).reshape(-1, *parts[0].shape[1:])


def _stacked(name: str, blocks: list[Blocks]) -> Blocks:
    """Parts one below the other, each of whole panels."""
    if odd := next((b for b in blocks if b.shape[0] % PANEL), None):
        raise ModelError(
            f"{name} is fused of parts of {odd.shape[0]} rows, which blocks cannot hold",
            expected=f"multiples of {PANEL}",
            fix="quantise at load instead, with precision=",
        )
    rows = sum(b.shape[0] for b in blocks)
    data = np.concatenate([b.data for b in blocks])
    return Blocks(blocks[0].kind, (rows, blocks[0].shape[1]), data)
