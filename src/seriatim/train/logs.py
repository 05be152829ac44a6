"""What a run keeps of its records: log.csv, samples.jsonl and, if asked, TensorBoard's event files.

Every record is on disk when the call returns and nothing stays open, so a killed run loses none. A
resumed run drops what was logged after the checkpoint it goes on from: each step stands once.

    say = Logs(folder, first=0, say=say)
"""

import json
import math
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from seriatim.errors import FileError, RequestError
from seriatim.train.report import Event, Note, Progress, Report, Sample, Score, Started, indented

TABLE, SAMPLES, BOARD = "log.csv", "samples.jsonl", "tensorboard"


class Row(NamedTuple):
    """A step in log.csv; a field without a value is empty there and None here."""

    step: int
    loss: float | None = None  # nats per id
    norm: float | None = None
    rate: float | None = None  # share of the full one
    ids_per_s: float | None = None
    seconds: float | None = None  # spent on the steps up to here, in all starts of the run
    bits_per_unit: float | None = None  # of a validation after this step
    error: float | None = None
    scored: int | None = None  # ids that the validation rests on


HEADER = (",".join(Row._fields) + "\n").encode()


def check(tensorboard: bool) -> None:
    """Refuse, before any work, event files that cannot be written.

    Raises:
        RequestError: tensorboard is not installed.
    """
    if not tensorboard:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        seen = "tensorboard is asked for, which is not installed"
        raise RequestError(seen, fix="pip install 'seriatim[tensorboard]'") from error


class Logs:
    """A `report` that passes every record on to `say` and keeps it in the run folder.

    A disk that refuses ends the logs with one note, not the run.

    Args:
        folder: of the run; made if it is not there.
        first: steps done before this run begins, 0 unless it is resumed.
        tensorboard: write event files too.
        say: what records are passed on to.
        clock: seconds, from any origin.

    Raises:
        RequestError: tensorboard is not installed.
        FileError: the folder's log.csv is of another version.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first: int,
        say: Report,
        tensorboard: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        check(tensorboard)
        self._say = say
        self._keepers: list[_Table | _Samples | _Board] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            last = first or -1  # from 0 on, all is said again
            table = _Table(folder / TABLE, last, clock)
            self._keepers = [table, _Samples(folder / SAMPLES, last)]
            if tensorboard:
                self._keepers.append(_Board(folder / BOARD, first))
        except OSError as error:
            self._end(error)
        else:
            if missing := first - table.steps:
                say(Note(f"{folder / TABLE} lacks {missing:,} of the {first:,} steps before"))

    def __call__(self, event: Event) -> None:
        self._say(event)
        try:
            for keeper in self._keepers:
                keeper.keep(event)
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> None:
        self._keepers = []
        self._say(Note(f"the logs end here, the run goes on: {error.strerror or error}"))


def read(folder: Path) -> list[Row]:
    """The rows of a run's log.csv, in the order of their steps; empty if there is none."""
    return _kept(_body(folder / TABLE), _row)[0]


def read_samples(folder: Path) -> list[Sample]:
    """What the model said along the way."""
    path = folder / SAMPLES
    return _kept(path.read_bytes(), _sample)[0] if path.exists() else []


class _Table:
    """log.csv: a row is written with its step and again, longer, with that step's validation."""

    def __init__(self, path: Path, last: int, clock: Callable[[], float]):
        self._path, self._clock = path, clock
        rows, whole = _kept(_body(path), _row, last)
        self._end = len(HEADER) + whole
        if rows:
            os.truncate(path, self._end)
        else:
            path.write_bytes(HEADER)
        self._last = rows[-1] if rows else Row(-1)
        self._at = self._end - len(_line(self._last))
        self.steps = sum(row.loss is not None for row in rows)
        self._before = max((row.seconds or 0.0 for row in rows), default=0.0)
        self._origin = clock()

    def keep(self, event: Event) -> None:
        match event:
            case Started():
                self._origin = self._clock()
            case Progress():
                spent = round(self._before + self._clock() - self._origin, 3)
                speed = round(event.tokens_per_s, 1)
                self._write(Row(event.step, event.loss, event.norm, event.rate, speed, spent))
            case Score():
                same = self._last if self._last.step == event.step else Row(event.step)
                score = {"bits_per_unit": event.bits_per_unit, "error": event.error}
                self._write(same._replace(**score, scored=event.ids))

    def _write(self, row: Row) -> None:
        line = _line(row)
        again = row.step == self._last.step
        at = self._at if again else self._end
        try:
            with self._path.open("r+b") as file:
                file.seek(at)
                file.write(line)
                if again:
                    file.truncate()
        except OSError:
            os.truncate(self._path, at)  # half a row is none
            raise
        self._last, self._at, self._end = row, at, at + len(line)


class _Samples:
    """samples.jsonl: step and text."""

    def __init__(self, path: Path, last: int):
        self._path = path
        if path.exists():
            os.truncate(path, _kept(path.read_bytes(), _sample, last)[1])

    def keep(self, event: Event) -> None:
        if isinstance(event, Sample):
            with self._path.open("ab") as file:
                file.write(json.dumps(vars(event)).encode() + b"\n")


class _Board:
    """TensorBoard's event files, one for each start of the run.

    torch's `SummaryWriter` makes the same records, but writes them in a thread that prints its own
    traceback when the disk is full.
    """

    def __init__(self, folder: Path, first: int):
        self._proto = import_module("tensorboard.compat.proto.event_pb2")
        self._writer = import_module("tensorboard.summary.writer.record_writer").RecordWriter
        self._text = import_module("torch.utils.tensorboard.summary").text
        folder.mkdir(exist_ok=True)
        started = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self._path = folder / f"events.out.tfevents.{started:010d}.seriatim"
        self._write(file_version="brain.Event:2")
        # Readers forget what earlier files say of these steps.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(step=first + 1, session_log=start)

    def keep(self, event: Event) -> None:
        match event:
            case Progress():
                numbers = {"loss": event.loss, "norm": event.norm, "rate": event.rate}
                numbers |= {"ids_per_s": event.tokens_per_s}
                self._scalars(event.step, {f"train/{name}": v for name, v in numbers.items()})
            case Score():
                numbers = {f"validation/bits_per_{event.unit}": event.bits_per_unit}
                error = {} if event.error is None else {"validation/error": event.error}
                self._scalars(event.step, numbers | error)
            case Sample():
                self._write(step=event.step, summary=self._text("sample", indented(event.text)))

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        values = [{"tag": tag, "simple_value": float(number)} for tag, number in numbers.items()]
        self._write(step=step, summary={"value": values})

    def _write(self, **fields: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **fields)
        with self._path.open("ab") as file:
            self._writer(file).write(event.SerializeToString())


def _line(row: Row) -> bytes:
    fields = (f if isinstance(f, int) else "" if f is None else float(f) for f in row)
    return (",".join(map(str, fields)) + "\n").encode()


def _row(line: bytes) -> Row:
    step, *numbers, scored = line.decode().rstrip("\n").split(",")
    if len(numbers) != len(Row._fields) - 2:
        raise ValueError("not a whole row")
    read = [float(number) if number else None for number in numbers]
    return Row(int(step), *read, scored=int(scored) if scored else None)


def _sample(line: bytes) -> Sample:
    known = json.loads(line)
    if type(known["step"]) is not int or not isinstance(known["text"], str):
        raise TypeError("not a sample")
    return Sample(known["step"], known["text"])


def _body(path: Path) -> bytes:
    """What follows the header of log.csv; b"" where there is nothing."""
    data = path.read_bytes() if path.exists() else b""
    if not data.startswith(HEADER) and not HEADER.startswith(data):  # a part of it: cut short
        seen = f"{path} has other columns than this version writes"
        raise FileError(seen, expected=HEADER.decode(), fix="move it elsewhere")
    return data[len(HEADER) :]


def _kept(
    data: bytes, parse: Callable[[bytes], Any], last: float = math.inf
) -> tuple[list[Any], int]:
    """The whole records up to step `last`, one to a line, and the bytes that they take."""
    found, size = [], 0
    for line in data.splitlines(keepends=True):
        try:
            record = parse(line)
        except (ValueError, KeyError, TypeError):
            break
        if record.step > last or not line.endswith(b"\n"):
            break
        found.append(record)
        size += len(line)
    return found, size
