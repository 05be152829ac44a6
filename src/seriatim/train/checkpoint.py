"""Training checkpoints: a folder written beside its place and renamed into it, never half there.

`checkpoints/step-N/` holds model.safetensors (the forward pass's own names, f32),
optimizer.safetensors, state.json and manifest.json (SHA-256 of the others). No pickle, no clock.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from seriatim.errors import FileError, ResourceError

FORMAT = 1
STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One state of a run."""

    step: int  # steps done
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]  # JSON: what the run was asked for


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write `checkpoints/step-N` below `run`, whole or not at all, and prune older ones.

    Raises:
        ResourceError: the disk refused (full, read-only); earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step-{checkpoint.step}"
    if _whole(folder):
        return folder  # the same run and step: the same bits
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        for left in (*folder.parent.glob("*.partial"), folder):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, _files(checkpoint))
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ResourceError(
            f"checkpoint {folder} was not written: {error.strerror}",
            fix="earlier checkpoints are whole; make room, then run again with resume",
        ) from error
    for old in _folders(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and the names of newer damaged ones.

    Raises:
        FileError: it was written by a newer format.
    """
    damaged: list[str] = []
    for folder in _folders(run):
        if _whole(folder):
            return _read(folder), damaged
        damaged.append(folder.name)
    return None, damaged


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    state = {"format": FORMAT, "step": checkpoint.step} | dict(checkpoint.state)
    files = {
        "model.safetensors": save(dict(checkpoint.weights)),
        "optimizer.safetensors": save(dict(checkpoint.optimizer)),
        "state.json": _json(state),
    }
    return files | {"manifest.json": _json({name: _digest(data) for name, data in files.items()})}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make the folder's own entries durable: a rename is not, until its parent is synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folders(run: Path) -> list[Path]:
    """Checkpoint folders, newest first; half-written ones have another name."""
    found = [p for p in (run / "checkpoints").glob("step-*") if STEP.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        names = {"model.safetensors", "optimizer.safetensors", "state.json"}
        return set(manifest) == names and all(
            _digest((folder / name).read_bytes()) == digest for name, digest in manifest.items()
        )
    except (OSError, ValueError, TypeError):
        return False


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_bytes())
    if state.pop("format") != FORMAT:
        raise FileError(f"{folder} has another format", expected=f"format {FORMAT}")
    try:
        weights, optimizer = (
            load_file(folder / name) for name in ("model.safetensors", "optimizer.safetensors")
        )
    except SafetensorError as error:
        raise FileError(f"{folder} is not readable: {error}") from error
    return Checkpoint(state.pop("step"), weights, optimizer, state)
