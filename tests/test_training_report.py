"""What a training run shows and leaves: lines, the live display, logs, the picture, the report."""

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from seriatim.codecs.byte import ByteCodec
from seriatim.errors import FileError, RequestError
from seriatim.progress import Bar
from seriatim.train import card, evaluate, logs, loop, memory, picture, summary
from seriatim.train.dial import dial
from seriatim.train.options import Options
from seriatim.train.report import (
    Event,
    Forecast,
    Measured,
    Note,
    Progress,
    Sample,
    Saved,
    Score,
    Started,
    describe,
    to_stderr,
)

DIAL = dial("1M", 512)
WILD = "a\x1b[2J *b* <i>c</i>\r\n![d](e)\u202e\n"


def started(first: int = 0, steps: int = 6) -> Started:
    return Started(DIAL, DIAL.parameters, steps, first, 10, 9000, ("a.txt", "b.txt"), "byte", 0.02)


def step(number: int, steps: int = 6, loss: float | None = None) -> Progress:
    loss = 1 / 3 + 5 / number if loss is None else loss
    return Progress(number, steps, loss, 0.1 * number, 1.0, 41234.56, 7.5)


def score(number: int, bits: float = 2.5, error: float | None = 0.01) -> Score:
    return Score(number, bits, error, "byte", 1.7, 512, 2048)


def events(first: int, last: int, *, every: int = 2) -> list[Event]:
    """A run's records, with a checkpoint, a score and a sample now and then."""
    found: list[Event] = [started(first)]
    for number in range(first + 1, last + 1):
        found.append(step(number))
        if number % every == 0:
            found += [Saved(number, Path(f"step-{number}")), score(number, 5 / number)]
            found.append(Sample(number, f"{number}: {WILD}"))
    return found


def ticks() -> Iterator[float]:
    """Two seconds pass between any two looks at the clock."""
    return iter(range(100, 10_000, 2))


def log(folder: Path, told: list[Event], *, first: int = 0, **options) -> list:
    """The records that were passed on, among them notes of the logs' own."""
    said: list = []
    keep = logs.Logs(folder, first=first, say=said.append, clock=ticks().__next__, **options)
    for event in told:
        keep(event)
    return said


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps_of(folder: Path) -> list[int]:
    return [int(row["step"]) for row in table(folder)]


# Records as lines


def test_a_score_says_its_error_and_what_it_rests_on():
    line = describe(score(80))
    assert line == (
        "step 80: 2.5000 ± 0.0100 bits per byte (1.7000 nats per id) on 512 of 2,048 held-out ids"
    )
    assert "± one standard error" in score(80).sentence
    alone = Score(3, 2.5, None, "note", 1.7, 40, 40)
    assert alone.sentence == (
        "2.5000 bits per note (of one window: no standard error) on 40 held-out ids"
    )


def test_a_score_of_some_windows_says_of_how_many_ids():
    documents = [np.arange(100, dtype=np.int32), np.arange(40, dtype=np.int32)]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(ids.numel(), 257)

    whole, some = (
        evaluate.score(logits, documents, ByteCodec(), context=16, step=1, most=most)
        for most in (None, 3)
    )
    assert (whole.ids, whole.out_of) == (138, 138)
    assert some.ids < some.out_of == 138
    assert " of " not in whole.basis


@pytest.mark.parametrize("event", [Note(WILD), Sample(3, WILD), Saved(3, Path(WILD))])
def test_a_line_moves_no_cursor(event, capsys):
    to_stderr(event)
    shown = capsys.readouterr().err
    assert "\\x1b[2J" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_what_was_foreseen_stands_beside_what_it_took():
    forecast = Forecast(2e12, 300.0, 812_000_000, 70_000)
    assert "70,000 ids" in describe(forecast)
    line = describe(Measured(360.0, 900_000_000, 70_000, forecast))
    assert line == (
        "took 6.0 min and 900.0 MB of memory; foreseen were 5.0 min and 812.0 MB of memory"
    )
    assert describe(Measured(1.0, 5, 7)) == "took 1.0 s and 5 bytes of memory"


# log.csv and samples.jsonl


def test_the_log_holds_every_step_exactly(tmp_path):
    told = events(0, 6)
    assert log(tmp_path, told) == told
    rows = table(tmp_path)
    for row, event in zip(rows, (e for e in told if isinstance(e, Progress)), strict=True):
        assert int(row["step"]) == event.step
        assert (float(row["loss"]), float(row["norm"])) == (event.loss, event.norm)
        assert (float(row["rate"]), float(row["ids_per_s"])) == (1.0, 41234.6)
    assert [float(row["seconds"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["bits_per_unit"] for row in rows] == ["", "2.5", "", "1.25", "", repr(5 / 6)]
    assert [row["error"] for row in rows] == ["", "0.01"] * 3
    assert [row["scored"] for row in rows] == ["", "512"] * 3


def test_what_was_read_is_what_was_logged(tmp_path):
    log(tmp_path, events(0, 4))
    rows = logs.read(tmp_path)
    assert [row.step for row in rows] == [1, 2, 3, 4]
    assert rows[2] == logs.Row(3, step(3).loss, step(3).norm, 1.0, 41234.6, 6.0)
    assert (rows[3].bits_per_unit, rows[3].error, rows[3].scored) == (1.25, 0.01, 512)
    assert logs.read_samples(tmp_path) == [Sample(n, f"{n}: {WILD}") for n in (2, 4)]
    assert logs.read(tmp_path / "none") == logs.read_samples(tmp_path / "none") == []


def test_every_record_is_on_disk_when_it_was_told(tmp_path):
    keep = logs.Logs(tmp_path, first=0, say=lambda event: None)
    for event in events(0, 4):
        keep(event)
        data = (tmp_path / "log.csv").read_bytes()
        assert data.endswith(b"\n")
        if isinstance(event, Progress):
            assert steps_of(tmp_path) == list(range(1, event.step + 1))
        if isinstance(event, Score):
            assert table(tmp_path)[-1]["bits_per_unit"]
        if isinstance(event, Sample):
            assert len(logs.read_samples(tmp_path)) == event.step // 2


def test_numbers_of_other_kinds_are_logged_as_numbers(tmp_path):
    odd = Progress(1, 2, math.nan, math.inf, 1, np.float32(3.0), 0.0)
    said = log(tmp_path, [odd, score(1, np.float64(1.1), None)])
    (row,) = logs.read(tmp_path)
    assert math.isnan(row.loss or 0.0)
    assert (row.norm, row.rate, row.bits_per_unit, row.error) == (math.inf, 1.0, 1.1, None)
    assert not [e for e in said if isinstance(e, Note)]


def test_a_score_before_the_first_step_has_its_own_row(tmp_path):
    for _ in range(2):  # a run that begins again says all of it again
        log(tmp_path, [started(), score(0), Sample(0, "x"), step(1)])
    assert steps_of(tmp_path) == [0, 1]
    assert table(tmp_path)[0]["loss"] == ""
    assert len(logs.read_samples(tmp_path)) == 1


@pytest.mark.parametrize("killed", [4, 5, 6])
def test_a_resumed_run_logs_every_step_once(tmp_path, killed):
    log(tmp_path, events(0, killed))
    said = log(tmp_path, events(4, 6), first=4)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [float(row["seconds"]) for row in table(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert [s.step for s in logs.read_samples(tmp_path)] == [2, 4, 6]
    assert not [e for e in said if isinstance(e, Note)]


def test_a_finished_run_resumed_changes_nothing(tmp_path):
    log(tmp_path, events(0, 6))
    before = (tmp_path / "log.csv").read_bytes()
    log(tmp_path, [started(6), score(6, 5 / 6)], first=6)
    assert (tmp_path / "log.csv").read_bytes() == before
    log(tmp_path, [score(6, 0.5)], first=6)  # shorter than what it replaces
    assert table(tmp_path)[-1]["bits_per_unit"] == "0.5"
    assert len(table(tmp_path)) == 6


def test_steps_that_the_log_lost_are_counted(tmp_path):
    log(tmp_path, events(0, 3))
    path = tmp_path / "log.csv"
    path.write_bytes(path.read_bytes()[:-9])  # half of the third row
    notes = [e.text for e in log(tmp_path, events(4, 6), first=4) if isinstance(e, Note)]
    assert notes == [f"{path} lacks 2 of the 4 steps before"]
    assert steps_of(tmp_path) == [1, 2, 5, 6]


def test_a_log_cut_within_its_header_is_begun_again(tmp_path):
    (tmp_path / "log.csv").write_bytes(logs.HEADER[:7])
    log(tmp_path, events(0, 2))
    assert steps_of(tmp_path) == [1, 2]


def test_a_log_with_other_columns_is_refused_and_left(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,2.5\n")
    with pytest.raises(FileError, match=r"other columns.*expected step,loss,norm"):
        log(tmp_path, [])
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,2.5\n"


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: as a full disk, a write fails halfway."""
    resource = pytest.importorskip("resource", reason="POSIX limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_ends_the_log_with_one_note_and_whole_rows(tmp_path, room):
    said: list = []
    keep = logs.Logs(tmp_path, first=0, say=said.append)
    for event in events(0, 3):
        keep(event)
    with file_limit((tmp_path / "log.csv").stat().st_size + room):
        for event in events(3, 6):
            keep(event)
    notes = [e.text for e in said if isinstance(e, Note)]
    assert len(notes) == 1
    assert "the run goes on" in notes[0]
    assert steps_of(tmp_path) == [1, 2, 3]
    assert sum(isinstance(e, Progress) for e in said) == 6


def test_a_log_that_was_removed_ends_with_one_note(tmp_path):
    said: list = []
    keep = logs.Logs(tmp_path, first=0, say=said.append)
    keep(step(1))
    (tmp_path / "log.csv").unlink()
    for event in events(1, 4):
        keep(event)
    assert [e.text for e in said if isinstance(e, Note)] == [
        "the logs end here, the run goes on: No such file or directory"
    ]


def test_a_folder_that_cannot_be_made_is_a_note(tmp_path):
    (tmp_path / "file").write_text("")
    said = log(tmp_path / "file" / "run", events(0, 2))
    assert isinstance(said[0], Note)
    assert said[1:] == events(0, 2)


# TensorBoard


def board(folder: Path):
    reason = "tensorboard is not installed"
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    read = module.EventAccumulator(str(folder), size_guidance={module.TENSORS: 0})
    return read.Reload()


def numbers(read, tag: str) -> dict[int, float]:
    found = {event.step: event.value for event in read.Scalars(tag)}
    assert len(found) == len(read.Scalars(tag))
    return found


def test_tensorboard_reads_what_was_told(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    log(tmp_path, events(0, 4), tensorboard=True)
    read = board(tmp_path / "tensorboard")
    assert numbers(read, "train/loss") == pytest.approx({n: step(n).loss for n in (1, 2, 3, 4)})
    assert numbers(read, "train/norm") == pytest.approx({n: step(n).norm for n in (1, 2, 3, 4)})
    assert set(numbers(read, "train/rate").values()) == {1.0}
    assert numbers(read, "train/ids_per_s")[4] == pytest.approx(41234.56)
    assert numbers(read, "validation/bits_per_byte") == {2: 2.5, 4: 1.25}
    assert numbers(read, "validation/error") == pytest.approx({2: 0.01, 4: 0.01})
    (tag,) = read.Tags()["tensors"]
    texts = [event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)]
    assert texts[0].startswith("    2: a\\x1b[2J *b* <i>c</i>\n    ![d]")


def test_tensorboard_forgets_the_steps_that_a_resumed_run_repeats(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    log(tmp_path, [step(n, loss=9.0) for n in range(1, 6)], tensorboard=True)
    log(tmp_path, [step(n, loss=n) for n in range(4, 7)], first=3, tensorboard=True)
    read = board(tmp_path / "tensorboard")
    assert numbers(read, "train/loss") == {1: 9, 2: 9, 3: 9, 4: 4, 5: 5, 6: 6}


def test_tensorboard_on_a_full_disk_is_one_note(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    said: list = []
    keep = logs.Logs(tmp_path, first=0, say=said.append, tensorboard=True)
    with file_limit(400):
        for number in range(1, 6):
            keep(step(number))
    assert sum(isinstance(e, Note) for e in said) == 1
    assert board(tmp_path / "tensorboard").Scalars("train/loss")


def test_a_missing_tensorboard_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    logs.check(tensorboard=False)
    with pytest.raises(RequestError, match=r"not installed; pip install 'seriatim\[tensorboard\]'"):
        logs.check(tensorboard=True)
    with pytest.raises(RequestError):
        log(tmp_path / "out", [], tensorboard=True)
    assert not (tmp_path / "out").exists()


# The picture


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_the_picture_is_the_same_for_equal_logs_whatever_a_user_prefers(tmp_path, matplotlib):
    log(tmp_path, events(0, 6))
    path = picture.draw(tmp_path, unit="byte", say=pytest.fail)
    assert path == tmp_path / "loss.png"
    first = path.read_bytes()
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 40}):
        picture.draw(tmp_path, unit="byte", say=pytest.fail)
        assert matplotlib.rcParams["font.size"] == 40
    assert path.read_bytes() == first
    width, height = png_size(path)
    assert width == 1000
    assert height > 500


def test_the_picture_shows_the_logs_numbers(tmp_path, matplotlib):
    log(tmp_path, events(0, 6))
    figure = picture.curves(logs.read(tmp_path), unit="byte", title="verse")
    loss, scores, rate = figure.axes
    raw, mean = loss.lines
    assert raw.get_ydata().tolist() == [step(n).loss for n in range(1, 7)]
    assert raw.get_alpha() < 1
    assert mean.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert scores.lines[0].get_xydata().tolist() == [[2, 2.5], [4, 1.25], [6, 5 / 6]]
    band = scores.collections[0].get_paths()[0].vertices
    assert (2, 2.51) in [tuple(np.round(point, 9)) for point in band]
    labels = loss.get_ylabel(), scores.get_ylabel(), rate.get_ylabel(), rate.get_xlabel()
    for label, unit in zip(labels, ("nats per id", "bits per byte", "share", "step"), strict=True):
        assert unit in label


@pytest.mark.parametrize("count", [1, 30, 9000])
def test_any_length_and_odd_numbers_are_drawn(matplotlib, count):
    rows = [logs.Row(n, math.nan if n % 7 == 3 else 2.0, 1.0, 0.5) for n in range(1, count + 1)]
    figure = picture.curves(rows, unit="byte", title="a $ _ b")
    assert len(figure.axes) == 2  # no score, no axes for it
    mean = figure.axes[0].lines[1].get_ydata()
    assert len(mean) <= picture.POINTS
    assert np.nanmax(np.abs(mean - 2.0)) < 1e-9
    figure.savefig(io.BytesIO())


def test_without_matplotlib_a_note_says_how_to_get_it(tmp_path, monkeypatch):
    log(tmp_path, events(0, 2))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list = []
    assert picture.draw(tmp_path, unit="byte", say=said.append) is None
    (note,) = said
    assert "pip install 'seriatim[plot]'" in note.text
    assert not (tmp_path / "loss.png").exists()


def test_without_a_step_there_is_a_note_and_no_picture(tmp_path):
    said: list = []
    assert picture.draw(tmp_path, unit="byte", say=said.append) is None
    assert "no step" in said[0].text


# The report


def report(folder: Path, *, first: int = 0, score: Score | None = None, **options) -> str:
    """What is written after a run of 6 steps; `score` None is a run that was stopped."""
    done = started(first)
    facts: dict = {"command": "seriatim train a.txt", "started": done, "say": lambda event: None}
    facts |= {"measured": Measured(12.0, 900_000_000, (6 - first) * 3072)}
    summary.write_report(folder, score=score, **(facts | options))
    return (folder / "report.md").read_text(encoding="utf-8")


def test_the_report_tells_the_run(tmp_path):
    log(tmp_path, events(0, 6))
    forecast = Forecast(2e12, 10.0, 1_000_000_000, 6 * 3072)
    measured = Measured(12.0, 900_000_000, 6 * 3072, forecast)
    text = report(tmp_path, score=score(6, 5 / 6), measured=measured, refused=3)
    assert f"{DIAL.parameters:,} parameters, 6 of 6 steps of 3,072 ids" in text
    assert "0.8333 ± 0.0100 bits per byte (± one standard error) on 512 of 2,048 held-out" in text
    assert "    seriatim train a.txt\n" in text
    assert "| ids | 18,432 | 18,432 | +0% |" in text
    assert "| time | 10.0 s | 12.0 s | +20% |" in text
    assert "| peak memory | 1.0 GB | 900.0 MB | -10% |" in text
    assert "2e+12 operations were foreseen" in text
    mean = (step(3).loss + step(4).loss) / 2
    assert f"| 4 | {mean:.4f} | 1.2500 | 0.0100 | 512 | 8.0 s |" in text
    assert "3 records refused, listed in checkpoints/refused.jsonl" in text
    assert "a.txt, b.txt" in text
    assert torch.__version__ in text
    assert f"    seriatim generate --model {tmp_path}\n" in text
    assert "--resume" not in text


def test_the_report_shows_the_picture_only_if_there_is_one(tmp_path, monkeypatch):
    log(tmp_path, events(0, 6))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "loss.png" not in report(tmp_path)
    monkeypatch.undo()
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "](loss.png)" in report(tmp_path)


def test_nothing_in_a_sample_is_taken_for_markup(tmp_path):
    log(tmp_path, events(0, 6))
    text = report(tmp_path)
    assert "\n    2: a\\x1b[2J *b* <i>c</i>\n    ![d](e)\\u202e\n" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    outside = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not [line for line in outside if "<i>" in line or "![d]" in line]


def test_equal_runs_have_equal_reports(tmp_path):
    texts = []
    for name in "ab":
        log(tmp_path / name / "run", events(0, 6))
        text = report(tmp_path / name / "run", score=score(6))
        texts.append(text.replace(str(tmp_path / name), ""))
    assert texts[0] == texts[1]


def test_a_stopped_run_says_how_to_go_on(tmp_path):
    log(tmp_path, events(0, 4))
    text = report(tmp_path)
    assert "4 of 6 steps" in text
    assert "stopped before the end" in text
    assert f"    seriatim train a.txt --resume --threads {torch.get_num_threads()}\n" in text
    assert "generate" not in text


def test_a_resumed_run_says_from_where_it_was_measured(tmp_path):
    log(tmp_path, events(0, 6))
    assert "From step 4 on, where it was resumed." in report(tmp_path, first=4, score=score(6))
    nothing = report(tmp_path, score=score(6), measured=Measured(0.0, 1, 0))
    assert "Every step had been taken before." in nothing


def test_many_scores_and_samples_are_shown_in_part_and_counted(tmp_path):
    told: list[Event] = []
    for number in range(1, 101):
        told += [step(number), score(number), Sample(number, "x")]
    log(tmp_path, told)
    text = report(tmp_path)
    assert "40 of the 100 in log.csv" in text
    assert "8 of the 100 in samples.jsonl" in text
    assert len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 40
    assert "After step 1:" in text
    assert "After step 100:" in text


def test_a_report_that_cannot_be_written_is_a_note(tmp_path):
    log(tmp_path, events(0, 2))
    (tmp_path / "report.md").mkdir()
    said: list = []
    with pytest.raises(IsADirectoryError):
        report(tmp_path, say=said.append)
    assert any("no report.md" in e.text for e in said)


def test_the_peak_of_memory_covers_what_is_held():
    held = np.ones(30_000_000, np.uint8)
    assert memory.peak_bytes("cpu") > held.nbytes


# A whole run


def test_a_real_run_leaves_logs_and_a_report(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"{n}. The quick brown fox.\n" for n in range(200)))
    said: list = []
    keep = logs.Logs(tmp_path / "logs", first=0, say=said.append)
    options: dict = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 2, "threads": 1}
    loop.train(book, out=tmp_path / "out", steps=8, save_every=4, report=keep, **options)
    rows = logs.read(tmp_path / "logs")
    assert [row.loss for row in rows] == [e.loss for e in said if isinstance(e, Progress)]
    scores = [e for e in said if isinstance(e, Score)]
    assert [row.bits_per_unit for row in rows if row.scored] == [s.bits_per_unit for s in scores]
    begun = next(e for e in said if isinstance(e, Started))
    text = report(tmp_path / "logs", score=scores[-1], started=begun)
    assert scores[-1].sentence in text
    assert scores[-1].sentence in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_command_leaves_out_what_changes_no_number():
    options = Options(size="1M", out="o", steps=5, keep=3, seed=7)
    command = card.command(["a b"], options)
    assert command == "seriatim train 'a b' --size 1M --steps 5 --out o --seed 7"


# The live display


class Terminal:
    """A terminal of some width, and what it shows of what was written to it."""

    def __init__(self, width: int = 80):
        self.file = io.StringIO()
        environment = {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "30"}
        self.console = Console(
            file=self.file, force_terminal=True, width=width, height=30, _environ=environment
        )

    @property
    def lines(self) -> list[str]:
        lines, at, column = [""], 0, 0
        pattern = r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)"
        for count, kind, back, end, text in re.findall(pattern, self.file.getvalue()):
            if kind == "A":
                at -= int(count or 1)
            elif kind == "K":
                lines[at] = ""
            elif back:
                column = 0
            elif end:
                at, column = at + 1, 0
                lines += [""] * (at + 1 - len(lines))
            elif text:
                lines[at] = lines[at][:column].ljust(column) + text
                column += len(text)
        return [line.rstrip() for line in lines]


def shown(told: list[Event], width: int = 80) -> list[str]:
    """What stands on the terminal after a run during which the clock stood still."""
    terminal = Terminal(width)
    with Bar(terminal.console, clock=lambda: 5.0) as bar:
        for event in told:
            bar(event)
    return terminal.lines


def test_the_display_shows_where_the_run_is():
    lines = shown([*events(0, 4), Note("half of it")], width=120)
    screen = "\n".join(lines)
    assert "step 4/6 · 0:00:00 passed · 0:00:07 left · 41,235 ids/s" in lines
    assert "1.2500 ± 0.0100 bits per byte at 4 · saved at 4" in lines
    assert "norm 0.40 · rate 1.000" in screen
    assert "half of it" in lines
    assert any(line.endswith("67%") for line in lines)
    assert sum("ids/s" in line for line in lines) == 1  # only below, where it is replaced
    assert [line[:7] for line in lines if "held-out ids" in line] == ["step 2:", "step 4:"]


def test_the_display_smooths_the_loss():
    told = [step(n, 999, loss=2.0 + (-1) ** n) for n in range(1, 200)]
    (line,) = (line for line in shown([started(steps=999), *told]) if line.startswith("loss"))
    assert float(line.split()[1]) == pytest.approx(2.0, abs=0.05)


def test_a_resumed_run_is_shown_from_its_step():
    lines = shown([started(first=3)])
    assert any(line.startswith("step 3/6 ·") for line in lines)
    assert any(line.endswith("50%") for line in lines)


@pytest.mark.parametrize("width", [10, 24, 40, 200])
def test_the_display_fits_any_width_and_parts_no_number(width):
    lines = shown(events(0, 4), width)
    assert max(map(len, lines)) <= width
    assert any("norm 0.40" in line for line in lines)


def test_nothing_that_is_shown_moves_the_cursor():
    terminal = Terminal()
    with Bar(terminal.console) as bar:
        for event in [*events(0, 2), Note(WILD), Saved(2, Path(WILD))]:
            bar(event)
    assert "\x1b[2J" not in terminal.file.getvalue()
    assert "\u202e" not in terminal.file.getvalue()
    assert "\\x1b[2J *b*" in terminal.file.getvalue()


def test_before_the_first_step_the_display_says_that_it_prepares():
    terminal = Terminal()
    with Bar(terminal.console) as bar:
        bar(Note("3 files"))
        assert any(line.endswith("preparing") for line in terminal.lines)
    assert [line for line in terminal.lines if line] == ["3 files"]


@pytest.mark.parametrize("dumb", [True, False])
def test_where_there_is_no_terminal_there_are_plain_lines(dumb, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb" if dumb else "xterm")
    console = Console(file=io.StringIO(), force_terminal=True) if dumb else None
    told = [*events(0, 6), Sample(6, "[red]x[/]")]
    with Bar(console) as bar:
        for event in told:
            bar(event)
    lines = "\n".join(text for event in told if (text := describe(event)))
    assert capsys.readouterr().err == f"{lines}\n"


def test_samples_are_json_that_any_reader_takes(tmp_path):
    log(tmp_path, events(0, 2))
    lines = (tmp_path / "samples.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 2, "text": f"2: {WILD}"}]
    assert os.listdir(tmp_path).count("tensorboard") == 0
