"""Which share of a run is this process's: all of it, or that of one rank among several.

The loop asks its `World` and holds its weights by a `Layout`; both are trivial for one process, in
which nothing of torch.distributed is used. Several ranks, which torchrun starts, are in `ranks.py`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from seriatim.codecs import Codec
from seriatim.errors import RequestError
from seriatim.train.batches import Batch
from seriatim.train.model import Model
from seriatim.train.optim import whole_turned
from seriatim.train.options import Options
from seriatim.train.report import Report

if TYPE_CHECKING:
    from seriatim.train.data import Prepared
    from seriatim.train.objectives import Objective

Result = TypeVar("Result")


class Layout(Protocol):
    """Where the weights of a model lie, and how gradients come to them."""

    @property
    def own(self) -> Mapping[str, Tensor]:
        """The part of each weight that this rank updates; after `clip` its `.grad` is set."""
        ...

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of the whole weights."""
        ...

    def backward(self, part: Batch, learned: int, *, last: bool) -> Tensor:
        """Adds the gradients of a part's loss over `learned`, the targets of the whole step.

        Args:
            last: of the parts of a step.

        Returns:
            This rank's share of the step's loss.
        """
        ...

    def clip(self, limit: float) -> float:
        """Scales the gradients to a norm of `limit` at most; what it was, of all ranks."""
        ...

    def turned(self, moves: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """`optim.orthogonal` of whole matrices of one `shape`, from own parts to own parts."""
        ...

    def whole(self) -> Model | None:
        """The model with whole weights, to look at; on the main rank only."""
        ...


class World(Protocol):
    """The ranks of a run, seen from one of them; a context that ends all when one fails.

    Attributes:
        rank, size: which one this is, of how many.
        shards: files that a checkpoint's tensors are divided into.
    """

    rank: int
    size: int
    shards: int

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes, says and scores."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def join(self, options: Options) -> str:
        """Meets the other ranks; the device of this one.

        Raises:
            RequestError: these ranks and the options do not go together.
        """
        ...

    def say(self, report: Report) -> Report:
        """`report` on the main rank, silence on others."""
        ...

    def first(self, work: Callable[[], Result]) -> Result | None:
        """Only the main rank does it; others wait, however long, as long as it is alive."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave here, as JSON can hold it."""
        ...

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over the ranks."""
        ...

    def total(self, losses: Sequence[Tensor]) -> float:
        """All losses of all ranks."""
        ...

    def rows(self, batch: Batch) -> Batch:
        """This rank's rows of a batch of all."""
        ...

    def part(self, whole: Tensor) -> Tensor:
        """What this rank keeps of a tensor."""
        ...

    def hold(self, model: Model, task: "Objective", *, batch: int) -> Layout:
        """Lays the model's weights out over the ranks, which divide `batch` rows.

        Raises:
            RequestError: there are fewer rows than ranks.
        """
        ...

    def turn(self, model: Model | None) -> AbstractContextManager[Model | None]:
        """The main rank has the model meanwhile; others get None and leave when it has left."""
        ...

    def prepared(self, prepare: Callable[..., "Prepared"], *, codec: str | Codec) -> "Prepared":
        """`prepare(codec=codec)`: the main rank encodes, others then find all in the cache."""
        ...


class Alone:
    """A world of one process."""

    rank, size, shards, main = 0, 1, 1, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def join(self, options: Options) -> str:
        if options.parallel:
            raise RequestError(
                f"parallel is {options.parallel!r} in a single process",
                fix="start it with torchrun --standalone --nproc-per-node N -m seriatim train",
            )
        check_device(options.device)
        return options.device

    def say(self, report: Report) -> Report:
        return report

    def first(self, work: Callable[[], Result]) -> Result:
        return work()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sums(self, *numbers: float) -> list[float]:
        return [*numbers]

    def total(self, losses: Sequence[Tensor]) -> float:
        return sum(loss.item() for loss in losses)

    def rows(self, batch: Batch) -> Batch:
        return batch

    def part(self, whole: Tensor) -> Tensor:
        return whole

    def hold(self, model: Model, task: "Objective", *, batch: int) -> Layout:
        return Whole(model, partial(task.loss, model))

    @contextmanager
    def turn(self, model: Model | None) -> Iterator[Model | None]:
        yield model

    def prepared(self, prepare: Callable[..., "Prepared"], *, codec: str | Codec) -> "Prepared":
        return prepare(codec=codec)


class Whole:
    """Each rank has all weights and, after the last part of a step, all gradients.

    Args:
        model: its weights are updated.
        loss: of a part of a batch.
        ranks: over which gradients are averaged after the last part.
        apart: the context in which they are not.
        main: whether this rank is to look at the model.
    """

    def __init__(
        self,
        model: Model,
        loss: Callable[[Batch], Tensor],
        *,
        ranks: int = 1,
        apart: Callable[[], AbstractContextManager[None]] = nullcontext,
        main: bool = True,
    ) -> None:
        self.own, self.shapes = model.weights, {n: w.shape for n, w in model.weights.items()}
        self._model, self._loss, self._ranks = model if main else None, loss, ranks
        self._apart = apart

    def backward(self, part: Batch, learned: int, *, last: bool) -> Tensor:
        with nullcontext() if last else self._apart():
            loss = self._loss(part) / learned
            (loss * self._ranks).backward()  # of a mean over ranks this makes the sum
        return loss.detach()

    def clip(self, limit: float) -> float:
        return torch.nn.utils.clip_grad_norm_(self.own.values(), limit).item()

    def turned(self, moves: Sequence[Tensor], shape: torch.Size) -> Tensor:
        return whole_turned(moves, shape)

    def whole(self) -> Model | None:
        return self._model


def check_device(name: str) -> None:
    """Refuse a device that torch does not have here.

    Raises:
        RequestError: it has not.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        seen = f"device is {name!r}"
        raise RequestError(seen, expected="a device that torch has here") from error


def world() -> World:
    """The world that this process is started in: torchrun tells it by environment variables."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Alone()
    from seriatim.train.ranks import Ranks

    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def files_of(folder: Path) -> dict[str, str]:
    """The files of a folder, as JSON can hold them."""
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """The reverse of `files_of`."""
    for name, content in files.items():
        (folder / Path(name).name).write_bytes(bytes.fromhex(content))
