"""The run folder: what may begin in it, what a checkpoint must agree with to be continued."""

import hashlib
import math
import signal
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import Any, Self

import torch
from torch import Tensor

from seriatim import codecs, registry
from seriatim.codecs import Codec, Records
from seriatim.errors import FileError, NumericError, RequestError
from seriatim.train.batches import Batches
from seriatim.train.checkpoint import Checkpoint, newest, save_checkpoint
from seriatim.train.dial import Dial, Tuning
from seriatim.train.options import Options, fixing
from seriatim.train.parallel import World
from seriatim.train.report import Note, Report, Saved

MOST_BAD = 10  # bad steps in a row end even a run that skips them


def claim(out: Path, *, resume: bool) -> Path:
    """Check that a run may write to `out`: without `resume` there must be nothing in it.

    Raises:
        FileError: something is there, or it is no folder.
    """
    try:
        filled = out.exists() and any(out.iterdir())
    except OSError as error:
        raise FileError(f"{out} cannot be a run folder: {error.strerror}") from error
    if filled and not resume:
        fix = "resume that run, or name another folder"
        raise FileError(f"{out} is not empty", expected="an empty run folder", fix=fix)
    return out


def plan(options: Options) -> dict[str, Any]:
    """What the rate follows from."""
    steps, warmup = options.steps, options.warmup
    warmup = min(50, steps // 10) if warmup is None else warmup
    return {"steps": steps, "kind": options.schedule, "warmup": warmup, "decay": options.decay}


def fixed(options: Options, numbers: Dial | Tuning) -> dict[str, Any]:
    """What cannot change when a run goes on: all that its numbers follow from."""
    return vars(numbers) | fixing(options)


class BadSteps:
    """What becomes of a step whose loss or gradient is not finite, or too large."""

    def __init__(self, options: Options, folder: Path, say: Report) -> None:
        self.options, self.folder, self.say = options, folder, say
        self.row = 0

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


class Interrupt:
    """Turns the first Ctrl-C into `asked`, so that a step is finished before it is saved.

    A second one interrupts at once. Outside the main thread there is no signal to catch.
    """

    asked = False

    def __enter__(self) -> Self:
        self._before = None
        if current_thread() is main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.asked and kind is None:
            raise KeyboardInterrupt  # after the last step: nothing was lost

    def _note(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass(frozen=True)
class Maker:
    """Where a run's codec comes from: it is there, or it learns its ids.

    Attributes:
        codec: None until it is learned.
        learn: from texts and a vocabulary size.
        text: its objects are text, rather than any bytes.
        objects: it reads files of its own kind.
    """

    codec: Codec | None = None
    learn: Callable[[Iterable[str], int], Codec] | None = None
    text: bool = True
    objects: bool = False

    def make(self, texts: Iterable[str], vocab_size: int) -> Codec:
        """The codec; `texts` are read only by one that learns."""
        return self.codec or self.learn(texts, vocab_size)  # type: ignore[misc]


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
    module = registry.get("seriatim.codecs", name)
    if name == "byte":
        return _given(module.ByteCodec())
    if not hasattr(module, "train"):
        raise RequestError(
            f"codec {name} cannot be trained with", expected='"text", "code" or "byte"'
        )
    return Maker(learn=module.train)


def _given(codec: Codec) -> Maker:
    kinds = {type(raw) for raw in codec.examples()}
    objects = isinstance(codec, Records) or not kinds <= {str, bytes}
    return Maker(codec, text=kinds == {str}, objects=objects)


def digest(codec: Codec) -> str:
    """SHA-256 of the files that the codec writes."""
    with TemporaryDirectory() as folder:
        codec.save(Path(folder))
        files = sorted(Path(folder).iterdir())
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


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
        position: Mapping[str, Any],
        say: Report,
        *,
        keep: int,
    ) -> None:
        """Keep the state after `step` steps; `position` is where the next batch begins."""
        held = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        moments = {name: tensor.cpu() for name, tensor in optimizer.items()}
        now = self._json() | {"position": dict(position)}
        made = Checkpoint(step, held, moments, now)
        folder = save_checkpoint(self.out, made, keep=keep, world=self.world)
        say(Saved(step, folder))

    def restore(
        self,
        weights: Mapping[str, Tensor],
        optimizer: MutableMapping[str, Tensor],
        batches: Batches,
        say: Report,
    ) -> int:
        """Load the newest whole checkpoint, if any; the number of steps done.

        `batches` goes on where that run was.

        Raises:
            FileError: it belongs to a run with other data, codec, options or schedule.
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
                say(Note(f"on {now} {name}, {before} before: equal to rounding, not to the bit"))
        batches.seek(found.state.get("position", {}))
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(self.world.part(found.weights[name]))
            for name, tensor in optimizer.items():
                tensor.copy_(self.world.part(found.optimizer[name]))
        return found.step

    def _json(self) -> dict[str, Any]:
        same: dict[str, Any] = {"data": self.data, "codec": self.codec}
        same |= {"threads": torch.get_num_threads(), "ranks": self.world.size}
        return same | {"options": dict(self.options), "schedule": dict(self.schedule)}

    def _agree(self, found: Checkpoint) -> None:
        mine, theirs = self._json(), found.state
        for name in ("data", "codec"):
            if mine[name] != theirs[name]:
                raise FileError(
                    f"{self.out} was trained with another {name}",
                    expected="the same to resume",
                )
        for group in ("options", "schedule"):
            for name in sorted(mine[group].keys() | theirs[group].keys()):
                now, then = mine[group].get(name), theirs[group].get(name)
                if now != then and not (name == "steps" and self._level(found)):
                    raise FileError(
                        f"{self.out} was trained with {name} {then}, not {now}",
                        expected="the same to resume",
                    )

    def _level(self, found: Checkpoint) -> bool:
        """Whether both schedules were still level until here: then the length may change."""
        spans = (self.schedule, found.state["schedule"])
        falls = (s["steps"] - round(s["decay"] * s["steps"]) for s in spans)
        return self.schedule["kind"] == "wsd" and found.step <= min(falls)
