"""What a run is, so that only the same one goes on; its codec, and its bad steps."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from seriatim import codecs
from seriatim.codecs import Codec, Records
from seriatim.errors import FileError, NumericError, ResourceError
from seriatim.files.regular import listed
from seriatim.train.batches import Batches
from seriatim.train.checkpoint import Checkpoint, newest, save_checkpoint
from seriatim.train.dial import Dial, Tuning
from seriatim.train.options import Options, fixing
from seriatim.train.parallel import World
from seriatim.train.report import Note, Report, Saved

MOST_BAD = 10  # bad steps in a row end even a run that skips them


def plan(options: Options) -> dict[str, Any]:
    """What the rate follows from."""
    steps, warmup = options.steps, options.warmup
    warmup = min(50, steps // 10) if warmup is None else warmup
    return {"steps": steps, "kind": options.schedule, "warmup": warmup, "decay": options.decay}


def fixed(options: Options, numbers: Dial | Tuning) -> dict[str, Any]:
    """What cannot change when a run goes on: all that its numbers follow from, as JSON has it."""
    return {name: _plain(value) for name, value in (vars(numbers) | fixing(options)).items()}


def _plain(value: Any) -> Any:
    """JSON knows no infinity, and no paths."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return str(value) if infinite or isinstance(value, Path) else value


class BadSteps:
    """What becomes of a step whose loss or gradient is not finite, or too large.

    Attributes:
        row: how many came one after another until now.
    """

    def __init__(self, options: Options, folder: Path, say: Report) -> None:
        self.options, self.folder, self.say = options, folder, say
        self.row = 0

    def seek(self, row: Any) -> None:
        """Go on from that `row`.

        Raises:
            FileError: it is none.
        """
        if type(row) is not int or not 0 <= row < MOST_BAD:
            raise FileError(f"the bad steps are {row!r:.40}", expected=f"0 to {MOST_BAD - 1}")
        self.row = row

    def allow(self, step: int, nats: float, norm: float) -> bool:
        """Whether the weights may move; a bad step is said, and skipped if that is allowed.

        Raises:
            NumericError: a bad step may not be skipped, or too many came in a row.
        """
        limit = self.options.norm_limit
        if math.isfinite(nats) and math.isfinite(norm) and norm <= limit:
            self.row = 0
            return True
        self.row += 1
        seen = f"step {step}: loss {nats}, gradient norm {norm}"
        if self.options.bad_step == "stop" or self.row >= MOST_BAD:
            raise NumericError(
                seen,
                expected="finite numbers"
                + (f", a norm up to {limit:g}" if limit < math.inf else ""),
                fix=f"the checkpoint before is kept in {self.folder}; lower the learning rate",
            )
        self.say(Note(f"{seen}: skipped"))
        return False


@dataclass(frozen=True)
class Maker:
    """Where a run's codec comes from: it is there, or it learns its ids.

    Attributes:
        make: from texts and a vocabulary size; one that is there reads none of them.
        text: its objects are text, rather than any bytes.
        objects: it reads files of its own kind.
    """

    make: Callable[[Iterable[str], int], Codec]
    text: bool = True
    objects: bool = False


def maker(name: str | Codec) -> Maker:
    """Where the codec of that name comes from; a folder holds one that was saved, or it is there.

    Raises:
        RequestError: no such codec.
        FileError: the folder holds none.
    """
    if not isinstance(name, str):
        return _given(name)
    if Path(name).is_dir():
        if (codec := codecs.load(Path(name))) is None:
            raise FileError(f"{name} holds no codec", expected="a model's folder")
        return _given(codec)
    if (codec := codecs.made(name)) is not None:
        return _given(codec)
    return Maker(codecs.learner(name))


def _given(codec: Codec) -> Maker:
    kinds = {type(raw) for raw in codec.examples()}
    objects = isinstance(codec, Records) or not kinds <= {str, bytes}
    return Maker(lambda texts, vocab_size: codec, text=kinds == {str}, objects=objects)


def digest(codec: Codec) -> str:
    """SHA-256 of the files that the codec writes.

    Raises:
        ResourceError: the disk refused.
    """
    try:
        with TemporaryDirectory() as folder:
            codec.save(Path(folder))
            files = sorted(Path(folder).iterdir())
            return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
    except OSError as error:
        seen = f"the folder for temporary files cannot be written: {error.strerror}"
        raise ResourceError(seen, fix="make room in it, or name another by TMPDIR") from error


@dataclass(frozen=True)
class State:
    """What a run is, so that only the same run continues it."""

    out: Path
    options: Mapping[str, Any]  # everything that changes the numbers
    schedule: Mapping[str, Any]
    data: str  # digest
    codec: str  # digest
    world: World

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        batches: Batches,
        bad: BadSteps,
        say: Report,
        *,
        keep: int,
    ) -> None:
        """Keep the state after `step` steps.

        Raises:
            ResourceError: the disk refused; earlier checkpoints are whole.
        """
        held = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        moments = {name: tensor.cpu() for name, tensor in optimizer.items()}
        now = self._json() | {"position": batches.position, "bad": bad.row}
        made = Checkpoint(step, held, moments, now)
        folder = save_checkpoint(self.out, made, keep=keep, world=self.world)
        say(Saved(step, folder))

    def restore(
        self,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        batches: Batches,
        bad: BadSteps,
        say: Report,
    ) -> int:
        """Load the newest whole checkpoint, if any; the number of steps done.

        `batches` and `bad` go on where that run was.

        Raises:
            FileError: it belongs to a run with other data, codec, options or schedule, or to none.
        """
        found, damaged = newest(self.out)
        for name in damaged:
            say(Note(f"{name} is damaged and was passed over"))
        if found is None:
            say(Note(f"no checkpoint in {self.out}: starting at step 0"))
            return 0
        self._agree(found)
        for name in ("threads", "ranks"):
            before, now = found.state.get(name, 1), self._json()[name]
            if before != now:
                seen = f"on {now} {name}, {before!r:.20} before"
                say(Note(f"{seen}: equal to rounding, not to the bit"))
        batches.seek(found.state.get("position", {}))
        bad.seek(found.state.get("bad"))
        for what, own in (("weights", weights), ("optimizer", optimizer)):
            whole = getattr(found, what)
            _take(what, own, {name: self.world.part(tensor) for name, tensor in whole.items()})
        return found.step

    def _json(self) -> dict[str, Any]:
        same: dict[str, Any] = {"data": self.data, "codec": self.codec}
        same |= {"threads": torch.get_num_threads(), "ranks": self.world.size}
        return same | {"options": dict(self.options), "schedule": dict(self.schedule)}

    def _agree(self, found: Checkpoint) -> None:
        mine, theirs = self._json(), found.state
        for name in ("data", "codec"):
            if mine[name] != theirs.get(name):
                raise FileError(
                    f"{self.out} was trained with another {name}",
                    expected="the same to resume",
                )
        for group in ("options", "schedule"):
            then = theirs.get(group)
            if not isinstance(then, dict):
                raise FileError(f"the {group} of {self.out} are {then!r:.40}", expected="an object")
            for name in sorted(mine[group].keys() | then.keys()):
                self._same(name, mine[group].get(name), then.get(name), found)
        if found.step > self.schedule["steps"]:
            raise FileError(
                f"{self.out} has done {found.step} steps",
                expected=f"up to {self.schedule['steps']}",
            )

    def _same(self, name: str, now: Any, then: Any, found: Checkpoint) -> None:
        if now == then or (name == "steps" and type(then) is int and self._level(found, then)):
            return
        raise FileError(
            f"{self.out} was trained with {name} {then!s:.80}, not {now}",
            expected="the same to resume",
        )

    def _level(self, found: Checkpoint, steps: int) -> bool:
        """Whether both schedules were still level until here: then the length may change."""
        now, decay = self.schedule["steps"], self.schedule["decay"]
        falls = (n - round(decay * n) for n in (now, steps))
        return self.schedule["kind"] == "wsd" and found.step <= min(falls)


def _take(what: str, into: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy tensors by name, if they are the same.

    Raises:
        FileError: they are not: the first few names that differ.
    """
    shapes, theirs = ({n: tuple(t.shape) for n, t in many.items()} for many in (into, found))
    if shapes != theirs:
        names = [n for n in sorted({**shapes, **theirs}) if shapes.get(n) != theirs.get(n)]
        pairs = [f"{n} {theirs.get(n, 'missing')} for {shapes.get(n, 'nothing')}" for n in names]
        raise FileError(f"the {what} of the checkpoint are others: {listed(pairs)}")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(found[name])
