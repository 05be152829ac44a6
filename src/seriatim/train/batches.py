"""Batches from packed documents of one or several groups, and where a run stands in them.

A position is how many rows came from each group and where each group's epoch stands; a batch is a
function of the position, the seed and the data, so a run goes on anywhere with the very same batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from seriatim.errors import FileError, RequestError
from seriatim.train.packing import Plan, plan
from seriatim.train.shards import Corpus, learned, read

NOTHING = -1  # a target where there is nothing to learn


@dataclass(frozen=True)
class Batch:
    """Rows of a step.

    Attributes:
        inputs: int64 [row, context]; 0 where nothing fills the row.
        targets: int64 [row, context]: the id after each input; -1 where nothing fills the row,
            and where the id is only to be read.
        segments: int64 [row, context]: number of the document in its row, from 0; what nothing
            fills is one more.
        numbers: int64 [row]: which row of the run it is, from 0: what is drawn for a row is drawn
            from this, and so does not depend on how a batch is divided.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    numbers: np.ndarray

    @property
    def learned(self) -> int:
        """How many targets there are."""
        return int((self.targets != NOTHING).sum())

    def rows(self, which: slice) -> "Batch":
        """Some of the rows."""
        return Batch(*(array[which] for array in vars(self).values()))

    def parts(self, count: int) -> list["Batch"]:
        """The rows in `count` parts as equal as can be, none of them empty."""
        ends = [len(self.inputs) * n // count for n in range(count + 1)]
        return [self.rows(slice(*ends)) for ends in pairwise(ends) if ends[0] < ends[1]]


@dataclass(frozen=True)
class Group:
    """Documents that are drawn from together.

    Attributes:
        name: as asked for.
        weight: share of the rows, before all shares are made to add up to 1.
        corpus: what `starts` and `ends` count in.
        starts, ends: positions of its documents: int64 [document].
    """

    name: str
    weight: float
    corpus: Corpus
    starts: np.ndarray
    ends: np.ndarray

    @property
    def pairs(self) -> int:
        """Ids that can be learned to follow another."""
        return int((self.ends - self.starts - 1).sum())


class Batches:
    """Rows of groups in turn, so that at any time each has its share of the rows within one.

    Args:
        groups: at least one.
        context: pairs in a row.
        windows: rows in a batch.
        seed: of cuts and order.
        folder: where plans lie while they are used.
        room: ids that an objective may add to each document of a row.

    Raises:
        RequestError: less data than one batch, or a context with no room for anything else.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        context: int,
        windows: int,
        seed: int,
        folder: Path,
        room: int = 0,
    ) -> None:
        if context <= room:
            expected = f"more than the {room} ids that the objective may add to a document"
            raise RequestError(f"context is {context}", expected=expected)
        _check_length(groups, context=context, windows=windows)
        self.groups, self.context, self.windows = groups, context, windows
        self.seed, self.folder, self.room = seed, folder, room
        whole = sum(group.weight for group in groups)
        self._shares = np.array([group.weight / whole for group in groups])
        self._taken = [0] * len(groups)
        self._epoch = [0] * len(groups)
        self._index = [0] * len(groups)
        self._plans: dict[int, tuple[int, Plan]] = {}

    @property
    def position(self) -> dict[str, list[int]]:
        """Where the next batch begins, as JSON can hold it."""
        return {"taken": [*self._taken], "epoch": [*self._epoch], "index": [*self._index]}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on from a `position`.

        Raises:
            FileError: it is none of these groups.
        """
        match position:
            case {"taken": list(taken), "epoch": list(epoch), "index": list(index)}:
                numbers = [*taken, *epoch, *index]
                sizes = {len(taken), len(epoch), len(index)}
                if sizes == {len(self.groups)} and all(type(n) is int and n >= 0 for n in numbers):
                    self._taken, self._epoch, self._index = [*taken], [*epoch], [*index]
                    return
        raise FileError(f"the data position is {position!r:.80}", expected="one of this data")

    def take(self) -> Batch:
        """The next batch."""
        numbers = sum(self._taken) + np.arange(self.windows)
        rows = [self._next() for _ in range(self.windows)]
        inputs, targets, segments = (np.stack(part) for part in zip(*rows, strict=True))
        return Batch(inputs, targets, segments, numbers)

    def peek(self) -> Batch:
        """The next batch, which stays the next."""
        position = self.position
        try:
            return self.take()
        finally:
            self.seek(position)

    @property
    def padding(self) -> float:
        """Share of this epoch's rows that nothing fills."""
        plans = [self.plan_of(group) for group in range(len(self.groups))]
        return float(self._shares @ [plan.padding for plan in plans])

    def plan_of(self, group: int) -> Plan:
        """The plan of the epoch in which a group stands."""
        epoch, found = self._plans.get(group, (-1, None))
        if found is None or epoch != self._epoch[group]:
            self._plans.pop(group, None)  # its files go before the next are written
            epoch, mine = self._epoch[group], self.groups[group]
            key = (self.seed, group, epoch)
            found = plan(
                mine.starts,
                mine.ends,
                context=self.context,
                key=key,
                folder=self.folder,
                room=self.room,
            )
            self._plans[group] = epoch, found
        return found

    def _next(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        owed = self._shares * (sum(self._taken) + 1) - self._taken
        group = int(np.argmax(owed))
        if self._index[group] >= len(self.plan_of(group)):
            self._epoch[group] += 1
            self._index[group] = 0
        pieces = self.plan_of(group).row(self._index[group])
        self._taken[group] += 1
        self._index[group] += 1
        return self._row(self.groups[group].corpus, pieces)

    def _row(self, corpus: Corpus, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = np.zeros(self.context, np.int64)
        targets = np.full(self.context, NOTHING, np.int64)
        segments = np.full(self.context, len(pieces), np.int64)
        at = 0
        for number, (start, length) in enumerate(pieces.tolist()):
            ids, span = corpus.ids(start, length + 1), slice(at, at + length)
            inputs[span] = read(ids[:-1])
            targets[span] = np.where(learned(ids[1:]), ids[1:], NOTHING)
            segments[at : (at := at + length + self.room)] = number
        return inputs, targets, segments


def _check_length(groups: Sequence[Group], *, context: int, windows: int) -> None:
    pairs = [group.pairs for group in groups]
    if min(pairs) < 1:
        name = groups[pairs.index(min(pairs))].name
        raise RequestError(f"{name} holds nothing to train on", expected="at least two ids")
    if sum(pairs) < windows * context:
        raise RequestError(
            f"the data holds {sum(pairs):,} ids to train on",
            expected=f"at least one batch, {windows} windows of {context}",
            fix="give more data, a smaller batch or a smaller context",
        )
