"""Training checkpoints: a folder written beside its place and renamed into it, never half there.

`checkpoints/step-N/` holds model.safetensors (the forward pass's own names, f32),
optimizer.safetensors, state.json and manifest.json (SHA-256 of the others). No pickle, no clock.
Of ranks that divide the weights each writes its rows: model-R-of-N.safetensors and so on.
The files of the finished model come into the run folder likewise: `published`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from seriatim.errors import FileError, ResourceError
from seriatim.files import safetensors
from seriatim.files.jsonfile import read_object
from seriatim.train.parallel import Alone, World

FORMAT = 1
STEP = re.compile(r"step-(0|[1-9][0-9]{0,17})")
ALONE: World = Alone()
STATE, MANIFEST = "state.json", "manifest.json"
LIMIT = 1 << 24  # bytes of JSON; a state has some 2,000
LAST = "config.json"  # of the model's files: where it is, all are


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
    if not world.gather(world.main and _whole(folder))[0]:  # else the same run: the same bits
        partial = folder.with_name(f"{folder.name}.partial")
        with _refusing(f"checkpoint {folder}", partial):
            world.first(lambda: _make_room(partial, folder))
            parts = world.gather(_write_tensors(partial, checkpoint, world))
            world.first(lambda: _publish(partial, folder, checkpoint, parts))
    world.first(lambda: _prune(run, checkpoint.step, keep))
    return folder


def newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and the names of newer damaged ones.

    Raises:
        FileError: it was written by a newer format, or by no run: a link, or not what it says.
    """
    damaged: list[str] = []
    for folder in _folders(run):
        _refuse_links(folder)
        if _whole(folder):
            return _read(folder), damaged
        damaged.append(folder.name)
    return None, damaged


@contextmanager
def published(run: Path) -> Iterator[Path]:
    """A folder of the run's own name for a model's files, which come into `run` when it is left.

    Each is renamed there once all are on the disk, config.json last: whenever this is cut short,
    what is there is whole.

    Raises:
        ResourceError: the disk refused.
    """
    partial = run / "model.partial"
    with _refusing(f"the model in {run}", partial):
        _remove(partial)
        beside = partial / run.name
        beside.mkdir(parents=True)
        yield beside
        files = sorted(beside.iterdir(), key=lambda path: (path.name == LAST, path.name))
        for path in files:
            _sync(path)
        for path in files:
            path.replace(run / path.name)
        _sync(run)
        _remove(partial)


@contextmanager
def _refusing(what: str, partial: Path) -> Iterator[None]:
    """A disk that refuses is a `ResourceError`, and leaves nothing half-written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            _remove(partial)
        raise ResourceError(
            f"{what} was not written: {getattr(error, 'strerror', None) or error}",
            fix="earlier checkpoints are whole; make room, then run again with resume",
        ) from error


def _remove(path: Path) -> None:
    """Whatever it is, if it is; a link goes, and what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _names(shards: int) -> list[tuple[str, str]]:
    """For each shard, the files of its weights and of the optimizer's tensors."""
    of = [f"-{rank:05}-of-{shards:05}" for rank in range(shards)] if shards > 1 else [""]
    return [(f"model{which}.safetensors", f"optimizer{which}.safetensors") for which in of]


def _make_room(partial: Path, folder: Path) -> None:
    for left in (*folder.parent.glob("*.partial"), folder):
        _remove(left)
    partial.mkdir(parents=True)


def _write_tensors(partial: Path, checkpoint: Checkpoint, world: World) -> dict[str, str]:
    """What this rank keeps; digests of its files."""
    if world.shards == 1 and not world.main:
        return {}
    names = _names(world.shards)[world.rank if world.shards > 1 else 0]
    for name, tensors in zip(names, (checkpoint.weights, checkpoint.optimizer), strict=True):
        safetensors.write(partial / name, {n: t.numpy() for n, t in tensors.items()}, {})
    return {name: _digest(partial / name) for name in names}


def _publish(
    partial: Path, folder: Path, checkpoint: Checkpoint, parts: list[dict[str, str]]
) -> None:
    """Says what the files of all ranks are, and moves them to their place."""
    state = {"format": FORMAT, "step": checkpoint.step} | dict(checkpoint.state)
    _write_json(partial / STATE, state)
    digests = {STATE: _digest(partial / STATE)}
    for part in parts:
        digests |= part
    _write_json(partial / MANIFEST, digests)
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)


def _prune(run: Path, step: int, keep: int) -> None:
    for old in [path for path in _folders(run) if _number(path) <= step][keep:]:
        with suppress(OSError):  # it takes room, and the next one tries again
            _remove(old)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Make a file durable, or a folder's entries: a rename is not, until its folder is synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _folders(run: Path) -> list[Path]:
    """Checkpoint folders, newest first; half-written ones have another name."""
    found = [p for p in (run / "checkpoints").glob("step-*") if STEP.fullmatch(p.name)]
    return sorted(found, key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _refuse_links(folder: Path) -> None:
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            raise FileError(f"{path} is a symbolic link", expected="what a run wrote")


def _whole(folder: Path) -> bool:
    try:
        manifest = read_object(folder / MANIFEST, limit=LIMIT)
        names = {STATE, *(name for names in _names(len(manifest) // 2) for name in names)}
        return names == manifest.keys() and all(
            (folder / name).is_file() and _digest(folder / name) == digest  # a pipe would block
            for name, digest in manifest.items()
        )
    except (OSError, FileError):
        return False


def _read(folder: Path) -> Checkpoint:
    """A checkpoint that matches its manifest, which proves no more than that nothing was lost."""
    state = read_object(folder / STATE, limit=LIMIT)
    if (found := state.pop("format", None)) != FORMAT:
        raise FileError(
            f"{folder} has another format, {found!r:.40}",
            expected=f"format {FORMAT}",
            fix="resume with the version of seriatim that wrote it",
        )
    if type(step := state.pop("step", None)) is not int or step != _number(folder):
        raise FileError(f"{folder} is of step {step!r:.40}", expected=f"{_number(folder)}")
    names = _names(len(read_object(folder / MANIFEST)) // 2)
    weights = [_tensors(folder / name) for name, _ in names]
    optimizer = [_tensors(folder / name) for _, name in names]
    return Checkpoint(step, _joined(folder, weights), _joined(folder, optimizer), state)


def _joined(folder: Path, shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors from each rank's rows of them."""
    if len(shards) == 1:
        return shards[0]
    kinds = [{name: tensor.shape[1:] for name, tensor in shard.items()} for shard in shards]
    if any(kind != kinds[0] for kind in kinds) or any(t.ndim < 1 for t in shards[0].values()):
        raise FileError(f"{folder} holds shards that do not fit together")
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _tensors(path: Path) -> dict[str, Tensor]:
    found = safetensors.read(path).tensors
    for name, array in found.items():
        if array.dtype != np.float32:
            raise FileError(f"{path} holds {name!r:.80} in {array.dtype}", expected="float32")
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}
