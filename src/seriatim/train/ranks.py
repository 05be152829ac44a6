"""Several processes as one run: torchrun starts them, torch.distributed carries their numbers.

What they agree on besides goes as JSON through torchrun's key-value store: torch's own object
collectives and its distributed checkpoints pickle. Each rank beats there, so that one that waits
knows a slow rank from a frozen one, and one that fails says which rank it missed.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, current_thread, main_thread
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from seriatim.codecs import Codec
from seriatim.errors import RequestError, SeriatimError
from seriatim.train import sharded
from seriatim.train.batches import Batch
from seriatim.train.holder import Holder, View
from seriatim.train.model import Model
from seriatim.train.options import Options
from seriatim.train.parallel import (
    Layout,
    Result,
    Whole,
    check_device,
    files_of,
    write_files,
)
from seriatim.train.report import Event as Record
from seriatim.train.report import Progress, Report

if TYPE_CHECKING:
    from seriatim.train.data import Prepared
    from seriatim.train.objectives import Objective

BEAT = 0.5  # seconds from one sign of life to the next
LISTEN = 3.0  # seconds of silence that tell, once something failed, which rank was lost
RETURN = "run again with resume to go on from the last checkpoint"


class Lost(RuntimeError):
    """Another rank is gone: as torch's own errors, which say no more than that."""


class Heart(Thread):
    """Shows that this process runs, by a connection of its own."""

    def __init__(self, store: c10d.Store, key: str) -> None:
        super().__init__(daemon=True)
        self._store, self._key, self._end = store, key, Event()
        self._beat(0)

    def run(self) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone: `is_alive` says so
            while not self._end.wait(BEAT):
                self._beat(number := number + 1)

    def stop(self) -> None:
        self._end.set()
        self.join(LISTEN)

    def _beat(self, number: int) -> None:
        self._store.set(self._key, str(number))


class Ranks:
    """A world of several processes, as `parallel.World` describes it.

    The first rank to fail says why; all others end with its exit code, by SystemExit.

    Args:
        rank, size: as torchrun counts.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.shards = rank, size, 1
        self._turns, self._done = 0, 0
        self._heart: Heart | None = None
        self._before: Any = None

    @property
    def main(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        try:
            if error is None:
                self._leave()
            elif not isinstance(error, KeyboardInterrupt):  # in which all ranks agree
                self._fail(error)
        except RuntimeError as late:
            self._fail(late)
            raise
        finally:
            self._close()

    # Meeting and parting.

    def join(self, options: Options) -> str:
        self._wait = timedelta(seconds=options.timeout)
        try:
            store, _, _ = next(rendezvous("env://", timeout=self._wait))
            run = store.add(f"runs.{self.rank}", 1)  # of this process: a program may train often
            self._store = c10d.PrefixStore(f"run.{run}", store)
            self._heart = Heart(
                self._store.clone(),  # pyright: ignore[reportAttributeAccessIssue]
                f"beat.{self.rank}",
            )
            self._heart.start()
            self._listen_to_the_end()
            device = self._device(options.device)
            backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
            dist.init_process_group(
                backend,
                store=c10d.PrefixStore("group", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=self._wait,
            )
        except RuntimeError as error:
            raise Lost(f"the {self.size} ranks did not meet: {error}") from error
        self._sharded = options.parallel == "fsdp"
        self.shards = self.size if self._sharded else 1
        if self._sharded and options.compile:
            raise RequestError("compile with parallel 'fsdp'", fix="use ddp, or do not compile")
        return device

    def _device(self, name: str) -> str:
        """Of this rank: its own of several.

        Raises:
            RequestError: there are fewer than ranks, or it cannot be shared.
        """
        check_device(name)
        if name == "cpu":
            return name
        here, there = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), torch.cuda.device_count()
        if name != "cuda":
            seen = f"device is {name!r} for {self.size} ranks"
            raise RequestError(seen, expected="'cuda', of which each takes its own, or 'cpu'")
        if here > there:
            raise RequestError(
                f"{here} ranks on a machine with {there} CUDA devices",
                expected="a device for each rank",
                fix=f"start it with --nproc-per-node {there}",
            )
        own = int(os.environ.get("LOCAL_RANK", self.rank))
        torch.cuda.set_device(own)
        return f"cuda:{own}"

    def _leave(self) -> None:
        """All ranks end together; the main rank, which may hold the store, as the last."""
        if self._heart is None:
            return
        self.gather(None)
        self._store.set(f"left.{self.rank}", "")
        for rank in range(self.size) if self.main else ():
            self._await(f"left.{rank}", rank)

    def _close(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._deafen()

    # What goes wrong.

    def _fail(self, error: BaseException) -> None:
        """Ends this rank: with its error if it is the first to fail, else silently."""
        if self._heart is None:  # before ranks meet, what is refused is refused by all of them
            if isinstance(error, Lost):
                raise SeriatimError(str(error)) from error
            if self.main:
                return
            raise SystemExit(getattr(error, "exit_code", 1))
        self._deafen(signal.SIG_IGN)
        cause = self._cause(error) if isinstance(error, RuntimeError) else error
        code = getattr(cause, "exit_code", 1)
        with_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        told = f"{0 if with_torchrun else self.rank} {code}"  # for when its store is gone
        with suppress(RuntimeError):
            told = self._store.compare_set("failed", "", f"{self.rank} {code}").decode()
        speaker, code = map(int, told.split())
        if speaker != self.rank:
            raise SystemExit(code) from None
        if cause is not error:
            raise cause from error

    def _cause(self, error: RuntimeError) -> BaseException:
        """What is behind an error that may be that another rank has gone."""
        try:
            if self._store.check(["failed"]):
                return error  # which another rank says
            lost = self._lost()
        except RuntimeError:
            return SeriatimError(f"torchrun, or the rank beside it, has ended{self._when()}")
        if lost:
            many = f"rank {lost[0]}" if len(lost) == 1 else f"ranks {', '.join(map(str, lost))}"
            seen = f"{many} of {self.size} ended or froze{self._when()}"
            return SeriatimError(seen, fix=RETURN)
        if isinstance(error, Lost):
            return SeriatimError(f"{error}{self._when()}", fix=RETURN)
        return error

    def _lost(self) -> list[int]:
        """The ranks that do not beat."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        before = [self._beat(rank) for rank in others]
        sleep(LISTEN)
        return [rank for rank, beat in zip(others, before, strict=True) if self._beat(rank) == beat]

    def _when(self) -> str:
        after = f" after step {self._done}" if self._done else ""
        return f"{after}, found at {datetime.now(UTC):%H:%M:%S} UTC"

    def _beat(self, rank: int) -> bytes:
        key = f"beat.{rank}"
        return self._store.get(key) if self._store.check([key]) else b""

    def _listen_to_the_end(self) -> None:
        """torchrun tells the others to end when one has: then we say so before we do."""
        if current_thread() is main_thread():
            self._before = signal.signal(signal.SIGTERM, self._told)

    def _deafen(self, then: Any = None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, then or self._before)

    def _told(self, *_: object) -> None:
        self._deafen(signal.SIG_IGN)
        raise Lost("the run was told to end (SIGTERM)")

    # What ranks tell each other.

    def _await(self, key: str, rank: int) -> bytes:
        """What a rank puts there.

        Raises:
            Lost: it, or another, failed meanwhile.
        """
        beat, since = self._beat(rank), monotonic()
        while not self._store.check([key]):
            with suppress(dist.DistStoreError):
                self._store.wait([key], timedelta(seconds=BEAT))
            if self._store.check(["failed"]):
                raise Lost("another rank failed")
            if beat != (beat := self._beat(rank)):
                since = monotonic()
            elif monotonic() - since > self._wait.total_seconds():
                raise Lost(f"rank {rank} did not answer for {self._wait.total_seconds():g} s")
        return self._store.get(key)

    def gather(self, value: Any) -> list[Any]:
        self._turns += 1
        key = f"turn.{self._turns}"
        self._store.set(f"{key}.{self.rank}", json.dumps(value))
        return [json.loads(self._await(f"{key}.{rank}", rank)) for rank in range(self.size)]

    def first(self, work: Callable[[], Result]) -> Result | None:
        result = work() if self.main else None
        self._turns += 1
        if self.main:
            self._store.set(f"turn.{self._turns}", "")
        self._await(f"turn.{self._turns}", 0)
        return result

    def sums(self, *numbers: float) -> list[float]:
        if self._heart is None or not self._heart.is_alive():
            raise Lost("the store of the ranks is gone")
        there = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(there)
        return there.tolist()

    def total(self, losses: Sequence[Tensor]) -> float:
        self.sums(0)  # all have come this far: to wait for a device is then to wait for no rank
        return self.sums(sum(loss.item() for loss in losses))[0]

    def say(self, report: Report) -> Report:
        def said(event: Record) -> None:
            if isinstance(event, Progress):
                self._done = event.step
            if self.main:
                report(event)

        return said

    # Whose is what.

    def rows(self, batch: Batch) -> Batch:
        count = len(batch.inputs)
        at = slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)
        return batch.rows(at)

    def part(self, whole: Tensor) -> Tensor:
        return sharded.part(whole, self.rank, self.size) if self._sharded else whole

    def hold(self, model: Model, task: "Objective", *, batch: int) -> Layout:
        if batch < self.size:
            raise RequestError(
                f"batch is {batch} for {self.size} ranks",
                expected="a row for each of them",
                fix=f"start fewer, or give batch={self.size}",
            )
        loss = partial(task.loss, model)
        if self._sharded:
            return sharded.Sharded(model, loss, rank=self.rank, size=self.size, sums=self.sums)
        held = Holder(model.weights)
        model.weights = dict(View(dict.fromkeys(model.weights, held)))
        # Weights are equal by their seed; NCCL and gloo sum alike on every rank, so they stay so.
        engine = torch.nn.parallel.DistributedDataParallel(held, gradient_as_bucket_view=True)
        ranks = {"ranks": self.size, "main": self.main}
        return Whole(model, partial(engine, loss), apart=engine.no_sync, **ranks)

    @contextmanager
    def turn(self, model: Model | None) -> Iterator[Model | None]:
        yield model
        self.first(lambda: None)

    def prepared(self, prepare: "Callable[..., Prepared]", *, codec: str | Codec) -> "Prepared":
        with TemporaryDirectory() as folder:
            made = self.first(lambda: prepare(codec=codec))
            if made is not None:
                made.codec.save(Path(folder))
            files = self.gather(files_of(Path(folder)) if made else None)[0]
            if made is not None:
                return made
            write_files(Path(folder), files)
            return prepare(codec=folder)
