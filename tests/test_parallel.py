"""Several ranks: losses and bits, checkpoints that move between them, and ranks that end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch

from seriatim.errors import RequestError
from seriatim.train import loop
from seriatim.train.checkpoint import newest
from seriatim.train.parallel import world
from seriatim.train.report import Note, Progress, Started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

TEXT = "The quick brown fox, née Zoë, jumps over the lazy dog.\r\n\r\nAnd then? It rests.\n"
TINY = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 5, "depth": 2, "threads": 1}
TINY |= {"steps": 4, "save_every": 2, "keep": 9}
# What else a run may be: an average, parts of a batch, layers computed again.
OTHER = {"optimizer": "adamw", "ema": 0.9, "accumulate": 2, "recompute": True}
# Beyond the rounding of sums in another order, after four steps; what was seen is below 1e-6.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def book(place: Path) -> Path:
    path = place / "book.txt"
    path.write_bytes("".join(f"{n}. {TEXT}" for n in range(60)).encode())
    return path


@pytest.fixture(scope="module")
def alone(book, place):
    """Two runs of a single process."""
    return {name: single(book, place / name, **options) for name, options in KINDS.items()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({"muon": "fsdp", "adamw": "ddp"}, id="some"),
        pytest.param({"muon": "ddp", "adamw": "fsdp"}, id="others", marks=pytest.mark.slow),
    ],
)
def ways(request) -> dict[str, str]:
    """How each kind of run is done by two ranks."""
    return request.param


@pytest.fixture(scope="module")
def pairs(book, alone, place, ways):
    """What two ranks, started once, saw of runs, by the names of their folders."""
    runs = {}
    for (name, options), way in zip(KINDS.items(), ways.values(), strict=True):
        for number in (1, 2):
            runs[f"{name}-{way}-{number}"] = options | {"parallel": way}
        for before, after in moves(way):
            source = place / (f"{name}-{before}-1" if before else name) / STEP
            out = f"{name}-{before}-to-{after}"
            copied = {"copied": [source, place / out / STEP], "resume": True}
            runs[out] = options | copied | {"parallel": after}
    asked = [TINY | {"out": place / name} | options for name, options in runs.items()]
    main, other = ranks.together(book, asked)
    assert [run["error"] for run in main + other] == [""] * 2 * len(runs)
    assert not any(run["losses"] for run in other), "only the main rank says"
    return dict(zip(runs, main, strict=True))


@pytest.fixture(scope="module")
def refused(book, place):
    """What both ranks, started once, saw of runs that cannot be, and of one that can."""
    (place / "filled").mkdir()
    (place / "filled/mine.txt").write_text("precious")
    here = {"cache": place / "cache"}
    runs = {"learned": LEARNED} | {name: options for name, (options, _) in REFUSED.items()}
    asked = [TINY | {"out": place / name} | here | options for name, options in runs.items()]
    return dict(zip(runs, zip(*ranks.together(book, asked), strict=True), strict=True))


KINDS = {"muon": {}, "adamw": OTHER}
STEP = "checkpoints/step-2"
LEARNED = {"codec": "text", "vocab_size": 280, "steps": 1}
REFUSED = {
    "few": ({"batch": 1}, "RequestError: batch is 1 for 2 ranks; expected a row for each"),
    "filled": ({}, "FileError: "),
    "compiled": ({"parallel": "fsdp", "compile": True}, "RequestError: compile with parallel"),
    "bad": ({"norm_limit": 0.01}, "NumericError: step 0: loss"),
}


def moves(way: str) -> list[tuple[str, str]]:
    """From which ranks to which a run goes on; "" is a single process."""
    return [(way, way), (way, "ddp" if way == "fsdp" else "fsdp"), ("", way)]


def single(book: Path, out: Path, **options) -> dict:
    """A run of this process."""
    records: list = []
    loop.train(book, report=records.append, **(TINY | {"out": out} | options))
    progress = [r for r in records if isinstance(r, Progress)]
    return {
        "losses": [p.loss for p in progress],
        "norms": [p.norm for p in progress],
        "notes": [r.text for r in records if isinstance(r, Note)],
        "first": next(r.first for r in records if isinstance(r, Started)),
    }


def final(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_two_ranks_learn_as_one_process_and_twice_to_the_same_bits(alone, pairs, place, ways, name):
    folders = [f"{name}-{ways[name]}-{number}" for number in (1, 2)]
    one, two = (pairs[folder] for folder in folders)
    assert len(one["losses"]) == TINY["steps"]
    assert one["losses"] == pytest.approx(alone[name]["losses"], rel=CLOSE)
    assert one["norms"] == pytest.approx(alone[name]["norms"], rel=CLOSE)
    assert one["losses"] == two["losses"]
    assert final(place / folders[0]) == final(place / folders[1])


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_of_ranks_is_that_of_one_process_divided_or_not(pairs, place, ways, name):
    way = ways[name]
    mine, theirs = (newest(place / run)[0] for run in (name, f"{name}-{way}-1"))
    assert mine is not None
    assert theirs is not None
    for part in ("weights", "optimizer"):
        tensors, others = getattr(mine, part), getattr(theirs, part)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.allclose(tensor, others[key], rtol=1e-3, atol=1e-5), key
    folder = place / f"{name}-{way}-1" / "checkpoints/step-4"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert set(manifest) | {"manifest.json"} == {path.name for path in folder.iterdir()}
    assert len(manifest) == {"ddp": 3, "fsdp": 5}[way]


@pytest.mark.parametrize("name", KINDS)
def test_runs_go_on_with_equal_ranks_to_the_same_bits_and_with_others_to_rounding(
    alone, pairs, place, ways, name
):
    for before, after in moves(ways[name]):
        out = f"{name}-{before}-to-{after}"
        seen = pairs[out]
        assert seen["losses"] == pytest.approx(alone[name]["losses"][2:], rel=CLOSE)
        assert ("on 2 ranks, 1 before" in " ".join(seen["notes"])) == (not before)
        if before == after:
            assert final(place / out) == final(place / f"{name}-{before}-1")


@pytest.mark.parametrize("name", KINDS)
def test_a_single_process_goes_on_where_two_ranks_were(book, alone, pairs, place, ways, name):
    out = place / f"{name}-{ways[name]}-to-single"
    shutil.copytree(place / f"{name}-{ways[name]}-1" / STEP, out / STEP)
    seen = single(book, out, resume=True, **KINDS[name])
    assert seen["first"] == 2
    assert seen["losses"] == pytest.approx(alone[name]["losses"][2:], rel=CLOSE)
    assert any("on 1 ranks, 2 before" in note for note in seen["notes"])


def test_a_damaged_shard_makes_a_checkpoint_damaged(pairs, place, ways):
    name = next(f"{name}-fsdp-1" for name, way in ways.items() if way == "fsdp")
    out = place / f"{name}-damaged"
    shutil.copytree(place / name, out)
    path = out / "checkpoints/step-4/model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    found, damaged = newest(out)
    assert found is not None
    assert (found.step, damaged) == (2, ["step-4"])
    (out / "checkpoints/step-2/optimizer-00001-of-00002.safetensors").unlink()
    assert newest(out) == (None, ["step-4", "step-2"])


@pytest.mark.slow
def test_every_objective_is_learned_by_ranks_as_by_one_process(book, place):
    options = {
        "fim": {"codec": "code", "vocab_size": 300},
        "scheduled": {"own_share": 0.5, "own_ramp": 8},
        "ahead": {"ahead": 2, "isolate": True},
    }
    runs = {
        (name, way): options[name] | {"objective": name, "parallel": way}
        for name in options
        for way in ("ddp", "fsdp")
    }
    asked = [TINY | {"out": place / "-".join(run)} | more for run, more in runs.items()]
    found = dict(zip(runs, ranks.together(book, asked)[0], strict=True))
    for name, more in options.items():
        expected = single(book, place / f"{name}-single", objective=name, **more)["losses"]
        for way in ("ddp", "fsdp"):
            assert found[name, way]["losses"] == pytest.approx(expected, rel=1e-4), (name, way)


def test_only_the_main_rank_learns_a_vocabulary_and_encodes(refused):
    main, other = refused["learned"]
    assert main["counts"] == {"train": 1, "encode": 2}  # what is trained on, what is held out
    assert other["counts"] == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said_by_one_rank(refused, name):
    said, silent = sorted((run["error"] for run in refused[name]), key=lambda e: "SystemExit" in e)
    assert said.startswith(REFUSED[name][1])
    assert silent.startswith("SystemExit")


def test_a_way_without_ranks_is_refused(book, tmp_path):
    with pytest.raises(RequestError, match=r"parallel is 'ddp' in a single process; .*torchrun"):
        single(book, tmp_path / "out", parallel="ddp")
    assert not (tmp_path / "out").exists()


def test_more_ranks_than_devices_are_refused(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("seriatim.train.ranks.check_device", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RequestError, match=r"3 ranks on a machine with 2 CUDA devices.*per-node 2"):
        world()._device("cuda")
    with pytest.raises(RequestError, match="device is 'cuda:1' for 3 ranks"):
        world()._device("cuda:1")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_row_of_a_weight_has_one_owner(size):
    from seriatim.train.sharded import part, split

    for length in (1, 2, 5, 6, 7, 8):
        whole = torch.arange(length)
        parts = [part(whole, rank, size) for rank in range(size)]
        assert torch.equal(torch.cat(parts), whole)
        chunks = [len(chunk) for chunk in whole.chunk(size)]
        assert split(length, size) == chunks + [0] * (size - len(chunks))


# Ranks that end.


def left(book: Path, out: Path, rank: int, how: signal.Signals) -> tuple[int, list[str]]:
    """Exit code and lines of stderr of the other rank, when one gets a signal as they train."""
    command = ["-m", "seriatim", "train", book, "--out", out, "--steps", 10**6, "--timeout", 6]
    command += ["--save-every", 5, "--codec", "byte", "--size", "0.02M", "--context", 16]
    with ranks.started(*command, "--batch", 4, "--threads", 1) as found:
        since = time.monotonic()
        while not list(out.glob("checkpoints/step-*[05]")):
            assert time.monotonic() - since < 100
            assert [process.poll() for process in found] == [None, None]
            time.sleep(0.05)
        found[rank].send_signal(how)
        said = found[1 - rank].communicate(timeout=60)[1]
        found[rank].kill()
        return found[1 - rank].returncode, said.splitlines()


@pytest.mark.parametrize(
    ("rank", "how"),
    [
        pytest.param(1, signal.SIGKILL, id="killed"),
        pytest.param(1, signal.SIGSTOP, id="frozen"),
        pytest.param(0, signal.SIGSTOP, id="main-frozen", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_ends_or_freezes_ends_the_others_with_one_line(book, tmp_path, rank, how):
    out = tmp_path / "out"
    code, lines = left(book, out, rank, how)
    errors = [line for line in lines if line.startswith("seriatim:")]
    assert code == 1
    assert len(errors) == 1
    assert f"rank {rank} of 2 ended or froze after step" in errors[0]
    assert "UTC; run again with resume" in errors[0]
    assert "Traceback" not in "".join(lines)
    found, damaged = newest(out)
    assert found is not None
    assert not damaged


@pytest.mark.slow
def test_torchrun_trains_and_ends_with_a_killed_rank(book, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "seriatim", "train", str(book), "--codec", "byte", "--size", "0.02M"]
    command += ["--context", "16", "--batch", "4", "--parallel", "fsdp", "--out"]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    whole = subprocess.run(
        [*command, tmp_path / "whole", "--steps", "4"], env=here, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == f"{tmp_path / 'whole'}\n"
    out = tmp_path / "out"
    asked = [*command, out, "--steps", "1000000", "--save-every", "5"]
    with subprocess.Popen(asked, env=here, stderr=subprocess.PIPE, text=True) as run:
        while not list(out.glob("checkpoints/step-*[05]")):
            assert run.poll() is None
            time.sleep(0.05)
        workers = subprocess.run(
            ["pgrep", "-P", str(run.pid)], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert len([line for line in said.splitlines() if line.startswith("seriatim:")]) == 1
