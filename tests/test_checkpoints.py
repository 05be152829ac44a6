"""What a run leaves on the disk: whole whenever it is cut short, one run's, and nobody else's."""

import errno
import fcntl
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import kills
import numpy as np
import pytest
import torch

from seriatim.errors import FileError, NumericError, ResourceError
from seriatim.files import safetensors
from seriatim.train import checkpoint, loop
from seriatim.train.checkpoint import Checkpoint, newest, published, save_checkpoint
from seriatim.train.claim import claimed
from seriatim.train.report import Note, Progress, Saved, Started

TINY = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 2, "threads": 1}
TEXT = "The quick brown fox, née Zoë, jumps over the lazy dog.\n"
PATH = os.pathsep.join(p for p in sys.path if p)
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}

refusing: list = []  # what the hook below calls


def _hook(event: str, args: tuple) -> None:
    if refusing and event in EVENTS:
        refusing[0](event, args)


@pytest.fixture(scope="module", autouse=True)
def hooked():
    sys.addaudithook(_hook)  # it stays as long as the process: it does nothing outside `failing`


@contextmanager
def failing(place: Path, first: int, *, ever: bool, monkeypatch):
    """The `first` change below `place` (0 is the first) fails, or from there on each does."""
    seen = count()

    def refuse() -> None:
        number = next(seen)
        if number == first or (ever and number > first):
            raise OSError(errno.ENOSPC, "No space left on device")

    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (refuse(), sync(handle)))
    refusing[:] = [lambda event, args: refuse() if str(place) in str(args[0]) else None]
    try:
        yield seen
    finally:
        refusing.clear()
        monkeypatch.setattr(os, "fsync", sync)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text("".join(f"{n}. {TEXT}" for n in range(60)))
    return path


@pytest.fixture(scope="module")
def finished(book, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(book, out)
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(finished, tmp_path / "copied")


def run(book: Path, out: Path, steps: int = 8, report=None, **options) -> list:
    records: list = []
    loop.train(book, out=out, steps=steps, report=report or records.append,
               **(TINY | {"save_every": 2} | options))  # fmt: skip
    return records


def of(records: list, kind: type) -> list:
    return [record for record in records if isinstance(record, kind)]


def model(out: Path) -> dict[str, bytes]:
    return kills.files(out)


def state(step: int, size: int = 3) -> Checkpoint:
    weights = {"w": torch.full((size,), float(step))}
    return Checkpoint(step, weights, {"first.w": torch.zeros(size)}, {"data": "x"})


def steps(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


# Disks that refuse


@pytest.mark.parametrize("ever", [False, True], ids=["once", "from then on"])
def test_whatever_the_disk_refuses_the_checkpoint_before_stays(tmp_path, monkeypatch, ever):
    for n in range(200):
        out = tmp_path / str(n)
        save_checkpoint(out, state(4), keep=1)
        with failing(out, n, ever=ever, monkeypatch=monkeypatch) as seen:
            try:
                save_checkpoint(out, state(8), keep=1)
                failed = False
            except ResourceError as error:
                failed = True
                assert "step-8 was not written: No space left" in str(error)
                assert "make room, then run again with resume" in str(error)
        found, damaged = newest(out)
        assert found is not None
        assert found.weights["w"].tolist() == [float(found.step)] * 3
        assert (found.step in (4, 8)) if failed else found.step == 8
        assert failed or not damaged
        save_checkpoint(out, state(8), keep=1)  # room was made
        assert steps(out) == ["step-8"]
        if next(seen) <= n:
            break
    assert n > 15  # each of its steps was refused once


@pytest.mark.parametrize("ever", [False, True], ids=["once", "from then on"])
def test_whatever_the_disk_refuses_no_half_of_a_model_appears(tmp_path, monkeypatch, ever):
    names = ("config.json", "model.safetensors", "README.md")

    def write(out: Path) -> None:
        with published(out) as beside:
            assert beside.name == out.name
            for name in names:
                (beside / name).write_bytes(name.encode() * 1000)

    for n in range(200):
        out = tmp_path / str(n)
        out.mkdir()
        with failing(out, n, ever=ever, monkeypatch=monkeypatch) as seen:
            try:
                write(out)
            except ResourceError as error:
                assert "was not written: No space left" in str(error)
        for path in out.glob("*.*[!l]"):
            assert path.read_bytes() == path.name.encode() * 1000
        if (out / "config.json").exists():
            assert all((out / name).exists() for name in names)
        write(out)
        assert {p.name for p in out.iterdir()} == set(names)
        if next(seen) <= n:
            break
    assert n > 10


@pytest.mark.parametrize("ever", [False, True], ids=["once", "from then on"])
def test_whatever_the_disk_refuses_a_folder_is_claimed_or_left(tmp_path, monkeypatch, ever):
    for n in range(50):
        out = tmp_path / str(n) / "run"
        with failing(out.parent, n, ever=ever, monkeypatch=monkeypatch) as seen:
            try:
                with claimed(out, resume=False, again=""):
                    pass
            except ResourceError as error:
                assert "cannot be written: No space left" in str(error)
        with claimed(out, resume=False, again=""):
            assert (out / "checkpoints/lock").exists()
        if next(seen) <= n:
            break
    assert n >= 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_full_disk_is_a_resource_error_and_no_checkpoint(tmp_path, share):
    out, sizes = tmp_path / "out", tmp_path / "sizes"
    folder = save_checkpoint(sizes, state(8, 5000))
    most = max(p.stat().st_size for p in folder.iterdir())
    save_checkpoint(out, state(4, 5000))
    with smallest(int(most * share)), pytest.raises(ResourceError, match="step-8 was not written"):
        save_checkpoint(out, state(8, 5000))
    assert steps(out) == ["step-4"]
    assert newest(out)[0].step == 4
    save_checkpoint(out, state(8, 5000))
    assert newest(out)[0].step == 8


@contextmanager
def smallest(size: int):
    """No file may become larger: a real refusal of the kernel, also of what is not Python."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 40, 2_000, 30_000, 60_000, 90_000])
def test_a_run_on_a_full_disk_is_one_clear_error_and_can_go_on(book, finished, tmp_path, size):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("{}\n" + json.dumps({"text": "not learned from"}) + "\n")
    out, options = tmp_path / "out", {"validation": lines}
    run(book, tmp_path / "whole", **options)
    with smallest(size), pytest.raises(ResourceError):
        run(book, out, **options)
    assert not list(out.glob("*.json"))
    run(book, out, resume=True, **options)
    assert model(out) == model(tmp_path / "whole")


def test_what_was_refused_is_not_lost_on_a_full_disk(tmp_path, monkeypatch):
    from seriatim.train.data import write_refused

    with smallest(10), pytest.raises(ResourceError, match=r"refused.jsonl was not written"):
        write_refused(tmp_path, [("a.jsonl", "line 7", "not JSON")] * 10)


# Kills


def killed(mode: str, book: Path, folder: Path, number: int) -> int:
    program = Path(kills.__file__)
    command = [sys.executable, str(program), mode, str(book), str(folder), str(number)]
    here = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_bits(book, tmp_path):
    assert killed("random", book, tmp_path, 4) >= 4


def test_a_run_that_is_killed_while_it_saves_ends_with_the_same_bits(book, tmp_path):
    assert killed("saving", book, tmp_path, 61) >= 1


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_change_no_bit(book, tmp_path):
    assert killed("random", book, tmp_path, 100) >= 100


@pytest.mark.slow
def test_a_kill_before_each_change_of_the_run_folder_changes_no_bit(book, tmp_path):
    assert killed("saving", book, tmp_path, 1) >= 100


# One run in a folder


def test_a_second_run_in_a_folder_is_refused_by_name(book, tmp_path):
    out = tmp_path / "out"
    with claimed(out, resume=False, again=""):
        for resume in (False, True):
            with pytest.raises(FileError, match=r"another run is writing in .*out"):
                run(book, out, resume=resume)
        assert steps(out) == ["lock"]
    assert not out.exists()


def test_of_runs_that_begin_at_once_one_goes_on(tmp_path):
    out, began, results = tmp_path / "a/b", threading.Barrier(8), []
    leave = threading.Event()

    def begin() -> None:
        began.wait()
        try:
            with claimed(out, resume=False, again=""):
                results.append("in")
                leave.wait(60)
        except FileError as error:
            results.append(str(error))
        if len(results) == 8:
            leave.set()

    for _ in range(20):
        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(results) < 8:
            pass
        leave.set()
        for thread in threads:
            thread.join()
        assert results.count("in") == 1
        assert sum("another run is writing" in result for result in results) == 7
        assert not (out / "checkpoints/lock").exists()
        results.clear()
        leave.clear()


def test_a_lock_without_its_holder_is_no_lock(tmp_path):
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    (tmp_path / "out/checkpoints/lock").touch()
    with claimed(tmp_path / "out", resume=False, again=""):
        pass
    assert (tmp_path / "out").is_dir()  # it was there before


def test_the_lock_is_the_kernels(tmp_path):
    with (
        claimed(tmp_path, resume=False, again=""),
        (tmp_path / "checkpoints/lock").open() as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_file_in_the_way_of_the_run_folder_is_named(tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("precious")
    for resume in (False, True):
        with (
            pytest.raises(FileError, match=r"cannot be a run folder|is not empty"),
            claimed(out, resume=resume, again=""),
        ):
            pass
    assert (out / name).read_text() == "precious"


# Which checkpoint goes on


def test_the_newest_whole_one_is_chosen_and_damaged_ones_are_named(tmp_path):
    for step in (2, 4, 6, 10):
        save_checkpoint(tmp_path, state(step), keep=9)
    at = tmp_path / "checkpoints"
    (at / "step-6/manifest.json").write_text("{")
    (at / "step-10/optimizer.safetensors").unlink()
    (at / "step-12").mkdir()
    (at / "step-14").write_text("a file")
    (at / "step-16.partial").mkdir()
    (at / "step-018").mkdir()
    (at / "step-x").mkdir()
    found, damaged = newest(tmp_path)
    assert found.step == 4
    assert damaged == ["step-14", "step-12", "step-10", "step-6"]


def test_those_of_later_steps_do_not_count_among_the_last_that_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        save_checkpoint(tmp_path, state(step), keep=9)
    (tmp_path / "checkpoints/step-8/state.json").write_text("")
    for step in (5, 7):
        save_checkpoint(tmp_path, state(step), keep=2)
    assert steps(tmp_path) == ["step-6", "step-7", "step-8"]
    assert newest(tmp_path)[0].step == 7


def signed(folder: Path) -> None:
    """Make the manifest agree with what lies there, as anybody can."""
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    sums = {name: checkpoint._digest(folder / name) for name in names}
    (folder / "manifest.json").write_text(json.dumps(sums))


def said(folder: Path, **change) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def tensors(folder: Path, change) -> None:
    for path in (folder / "model.safetensors", folder / "optimizer.safetensors"):
        found = {name: array.copy() for name, array in safetensors.read(path).tensors.items()}
        safetensors.write(path, change(found), {})


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


def linked_file(folder: Path) -> None:
    (folder / "state.json").rename(folder.parent / "s")
    (folder / "state.json").symlink_to("../s")


HOSTILE = {
    "newer": (lambda f: said(f, format=2), r"another format, 2; expected format 1"),
    "older": (lambda f: said(f, format=None), r"another format, None"),
    "step": (lambda f: said(f, step=7), r"is of step 7; expected 8"),
    "no step": (lambda f: said(f, step=None), r"is of step None"),
    "true step": (lambda f: said(f, step="8"), r"is of step '8'"),
    "nan step": (lambda f: said(f, step=float("nan")), r"NaN"),
    "deep": (lambda f: (f / "state.json").write_text("[" * 10**5), r"nested too deep"),
    "list": (lambda f: (f / "state.json").write_text("[]"), r"JSON list"),
    "huge": (lambda f: os.truncate(f / "state.json", 1 << 25), r"has 33554432 bytes"),
    "options": (lambda f: said(f, options=[1]), r"options of .* are \[1\]"),
    "no schedule": (lambda f: said(f, schedule=None), r"schedule of .* are None"),
    "steps": (lambda f: said(f, schedule=SCHEDULE | {"steps": "x"}), r"steps x, not 8"),
    "much": (lambda f: said(f, schedule=SCHEDULE | {"steps": 10**30}), r"steps 1000.*, not 8"),
    "position": (lambda f: said(f, position={"taken": [-1]}), r"data position is"),
    "no position": (lambda f: said(f, position=None), r"data position is"),
    "bad": (lambda f: said(f, bad=-1), r"bad steps are -1"),
    "bad text": (lambda f: said(f, bad=True), r"bad steps are True"),
    "data": (lambda f: said(f, data=None), r"another data"),
    "less": (
        lambda f: tensors(f, lambda t: dict(list(t.items())[1:])),
        r"weights of the checkpoint are others: embed.weight missing for",
    ),
    "name": (
        lambda f: tensors(f, lambda t: {"../" + name: array for name, array in t.items()}),
        r"weights of the checkpoint are others: \.\./embed",
    ),
    "more": (
        lambda f: tensors(f, lambda t: t | {"zzz": np.zeros(1, np.float32)}),
        r"others: zzz \(1,\) for nothing",
    ),
    "shape": (lambda f: tensors(f, lambda t: {n: a[:1] for n, a in t.items()}), r"others: embed"),
    "dtype": (
        lambda f: tensors(f, lambda t: {n: a.astype(np.float64) for n, a in t.items()}),
        r"in float64; expected float32",
    ),
    "header": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), r"header has"),
    "link": (linked, r"step-8 is a symbolic link"),
    "linked file": (linked_file, r"state.json is a symbolic link"),
}  # fmt: skip
SCHEDULE = {"steps": 8, "kind": "wsd", "warmup": 0, "decay": 0.5}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_that_no_run_wrote_is_refused_and_nothing_is_copied(book, copied, name):
    change, message = HOSTILE[name]
    folder = copied / "checkpoints/step-8"
    change(folder)
    if "link" not in name:
        signed(folder)
    before = model(copied)
    with pytest.raises(FileError, match=message):
        run(book, copied, resume=True)
    assert model(copied) == before
    assert not (copied / "checkpoints/lock").exists()


@pytest.mark.parametrize("kind", ["pipe", "huge", "folder"])
def test_a_file_that_cannot_be_read_is_damage(book, copied, kind):
    path = copied / "checkpoints/step-8/manifest.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    records = run(book, copied, resume=True)
    assert of(records, Started)[0].first == 6
    assert [n.text for n in of(records, Note) if "damaged" in n.text] == [
        "step-8 is damaged and was passed over"
    ]


def test_the_bad_steps_in_a_row_are_counted_over_a_resume(book, tmp_path):
    options = {"norm_limit": 1e-9, "bad_step": "skip", "save_every": 1}
    with pytest.raises(NumericError, match=r"^step 9: "):
        run(book, tmp_path / "whole", 30, **options)

    class Enough(Exception):
        pass

    def stop(record) -> None:
        if isinstance(record, Saved) and record.step == 6:
            raise Enough

    with pytest.raises(Enough):
        run(book, tmp_path / "cut", 30, report=stop, **options)
    with pytest.raises(NumericError, match=r"^step 9: "):
        run(book, tmp_path / "cut", 30, resume=True, **options)


def test_a_half_written_model_is_finished_by_a_resume(book, finished, copied):
    (copied / "config.json").unlink()
    (copied / "README.md").unlink()
    (copied / "model.partial/x").mkdir(parents=True)
    run(book, copied, resume=True)
    assert model(copied) == model(finished)
    assert (copied / "README.md").read_text().startswith("# copied\n")
    assert not (copied / "model.partial").exists()


# Stopping


def started(book: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    options = TINY | {"out": out, "steps": 3000, "save_every": 5000}
    flags = [word for k, v in options.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    command = [sys.executable, "-m", "seriatim", "train", str(book), *flags, *words]
    here = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_saves_and_says_how_to_go_on(book, tmp_path, number, code):
    out = tmp_path / "two  words"
    process = started(book, out)
    for line in process.stderr:
        if line.startswith("step 10/"):
            process.send_signal(number)
            break
    rest = process.stderr.read().splitlines()
    assert process.wait() == code
    step = int(re.search(r"stopped after step (\d+) of 3000", "\n".join(rest))[1])
    assert newest(out)[0].step == step
    words = shlex.split(rest[-1].removeprefix("to go on: "))
    assert words[:2] == ["seriatim", "train"]
    assert "--resume" in words
    assert str(out) in words
    assert "Traceback" not in "".join(rest)
    again = [sys.executable, "-m", *words]
    here = os.environ | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(again, stderr=subprocess.PIPE, text=True, env=here) as process:
        assert any(f"step {step} of 3000" in line for line in process.stderr if "ids" in line)
        process.kill()


def test_a_second_interrupt_ends_at_once(book, tmp_path):
    out, records = tmp_path / "out", []

    def press(record) -> None:
        records.append(record)
        if isinstance(record, Progress) and record.step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(book, out, report=press, save_every=4)
    assert [s.step for s in of(records, Saved)] == [4]
    assert caught.value.__notes__[0].startswith("to go on: seriatim train")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (out / "checkpoints/lock").exists()


def test_a_termination_before_the_first_step_leaves_nothing(book, tmp_path):
    def stop(record) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run(book, tmp_path / "out", report=stop)
    assert caught.value.code == 143
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Data that is none


def test_a_line_far_beyond_memory_is_refused_without_being_read_into_it(tmp_path):
    code = (
        "import resource, sys\n"
        "from seriatim.train.loop import train\n"
        "from seriatim.errors import FileError\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[2:]:\n"
        "    try: train(path, size='0.02M', steps=1, out=sys.argv[1], vocab_size=300)\n"
        "    except FileError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)\n"
    )
    paths = [tmp_path / "a.txt", tmp_path / "a.jsonl"]
    for path in paths:
        path.touch()
        os.truncate(path, 1 << 29)  # a sparse line of 512 MiB; one of 10 GB takes as much memory
    command = [sys.executable, "-c", code, str(tmp_path / "out"), *map(str, paths)]
    here = os.environ | {"PYTHONPATH": PATH}
    whole, line, used = subprocess.check_output(
        command, text=True, env=here, stderr=subprocess.DEVNULL
    ).splitlines()
    assert re.search(r"a.txt has no place to cut .* at most 67,108,864 bytes", whole)
    assert re.search(r"a.jsonl holds no document: line 1 is longer than 67,108,864 bytes", line)
    assert int(used) < 400 << 10  # KiB
    assert not (tmp_path / "out").exists()


def test_an_empty_file_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(FileError, match=r"empty.txt is empty"):
        run(tmp_path / "empty.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
