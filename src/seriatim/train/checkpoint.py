"""Training checkpoints: a folder written beside its place and renamed into it, never half there.

`checkpoints/step-N/` holds model.safetensors (the forward pass's own names, f32),
optimizer.safetensors, state.json and manifest.json (SHA-256 of the others). No pickle, no clock.
Of ranks that divide the weights each writes its rows: model-R-of-N.safetensors and so on.
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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from seriatim.errors import FileError, ResourceError
from seriatim.train.parallel import Alone, World

FORMAT = 1
ALONE: World = Alone()
STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One state of a run."""

    step: int  # steps done
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]  # JSON: what the run was asked for


def save_checkpoint(
    run: Path, checkpoint: Checkpoint, *, keep: int = 2, world: World = ALONE
) -> Path:
    """Write `checkpoints/step-N` below `run`, whole or not at all, and prune older ones.

    Ranks call it together; the tensors are those that each of them keeps.

    Raises:
        ResourceError: the disk refused (full, read-only); earlier checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step-{checkpoint.step}"
    if world.gather(world.main and _whole(folder))[0]:
        return folder  # the same run and step: the same bits
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        world.first(lambda: _make_room(partial, folder))
        parts = world.gather(_write(partial, _tensors(checkpoint, world)))
        world.first(lambda: _publish(partial, folder, checkpoint, parts))
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


def _names(shards: int) -> list[dict[str, str]]:
    """For each shard, the files of what it holds."""
    of = [f"-{rank:05}-of-{shards:05}" for rank in range(shards)] if shards > 1 else [""]
    return [{kind: f"{kind}{which}.safetensors" for kind in ("model", "optimizer")} for which in of]


def _tensors(checkpoint: Checkpoint, world: World) -> dict[str, bytes]:
    """The files that this rank writes beside what the main one says of them all."""
    if world.shards == 1 and not world.main:
        return {}
    names = _names(world.shards)[world.rank if world.shards > 1 else 0]
    return {
        names["model"]: save(dict(checkpoint.weights)),
        names["optimizer"]: save(dict(checkpoint.optimizer)),
    }


def _make_room(partial: Path, folder: Path) -> None:
    for left in (*folder.parent.glob("*.partial"), folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)


def _publish(
    partial: Path, folder: Path, checkpoint: Checkpoint, parts: list[dict[str, str]]
) -> None:
    """Says what the files of all ranks are, and moves them to their place."""
    state = {"format": FORMAT, "step": checkpoint.step} | dict(checkpoint.state)
    digests = _write(partial, {"state.json": _json(state)})
    for part in parts:
        digests |= part
    _write(partial, {"manifest.json": _json(digests)})
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Their digests, once they are on the disk."""
    for name, data in files.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return {name: _digest(data) for name, data in files.items()}


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
        names = [name for files in _names(len(manifest) // 2) for name in files.values()]
        return set(manifest) == {"state.json", *names} and all(
            _digest((folder / name).read_bytes()) == digest for name, digest in manifest.items()
        )
    except (OSError, ValueError, TypeError):
        return False


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / "state.json").read_bytes())
    if state.pop("format") != FORMAT:
        raise FileError(f"{folder} has another format", expected=f"format {FORMAT}")
    try:
        shards = _names(len(list(folder.glob("*.safetensors"))) // 2)
        weights, optimizer = (
            _joined([load_file(folder / names[kind]) for names in shards])
            for kind in ("model", "optimizer")
        )
    except SafetensorError as error:
        raise FileError(f"{folder} is not readable: {error}") from error
    return Checkpoint(state.pop("step"), weights, optimizer, state)


def _joined(shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors from each rank's rows of them."""
    if len(shards) == 1:
        return shards[0]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
