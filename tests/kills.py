"""A program that kills training runs: each run is a fork of it, which has imported torch once.

    python kills.py random BOOK FOLDER COUNT    kills at random moments
    python kills.py saving BOOK FOLDER EVERY    kills before each EVERY-th change of the run folder

Every run that was killed is resumed, in the first mode to be killed again, until it ends; then its
files must be those of a run that was left alone. It prints how many kills there were.
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch

from seriatim.train import checkpoint, loop
from seriatim.train.report import Progress

OPTIONS = {"codec": "byte", "size": "0.02M", "context": 16, "batch": 2, "threads": 1}
STEPS, INTERVAL = 12, 2
MODEL = {".json", ".safetensors"}
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def begun(book: Path, out: Path, progress: int, last: int = 0) -> int:
    """The process of a run, which writes its steps to `progress` and dies at change `last`."""
    if process := os.fork():
        return process
    seen = count(1)

    def hook(event: str, args: tuple) -> None:
        if event in CHANGES and str(out) in str(args[0]) and next(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def report(event: object) -> None:
        if isinstance(event, Progress):
            os.write(progress, bytes([event.step]))

    code = 1
    try:
        if last:
            sys.addaudithook(hook)
        options = OPTIONS | {"steps": STEPS, "save_every": INTERVAL, "resume": True}
        loop.train(book, out=out, report=report, **options)
        code = 0
    finally:
        os._exit(code)


def ended(process: int) -> bool:
    """Whether it came to its end, rather than being killed.

    Raises:
        RuntimeError: it failed.
    """
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with {code}")
    return code == 0


def files(out: Path) -> dict[str, bytes]:
    """Those of the model, but for the card, which is titled by the folder."""
    return {p.name: p.read_bytes() for p in out.glob("*") if p.suffix in MODEL}


def check(out: Path, done: int, whole: dict[str, bytes], *, finished: bool) -> None:
    """At most one interval is lost, and no file of the model is there but whole.

    Raises:
        RuntimeError: otherwise.
    """
    newest, damaged = checkpoint.newest(out)
    kept, there = newest.step if newest else 0, files(out)
    if damaged or kept < (done - 1) // INTERVAL * INTERVAL:
        raise RuntimeError(f"after {done} steps {kept} are kept; damaged: {damaged}")
    if any(data != whole[name] for name, data in there.items()):
        raise RuntimeError(f"{out} holds others than the run that was left alone")
    if (finished or "config.json" in there) and there.keys() != whole.keys():
        raise RuntimeError(f"{out} holds only {sorted(there)}")


def main(mode: str, book: Path, folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    read, write = os.pipe()
    os.set_blocking(read, False)
    begin = time.monotonic()
    ended(begun(book, folder / "whole", write))
    length = time.monotonic() - begin
    os.read(read, 1 << 16)
    whole, draw, kills = files(folder / "whole"), random.Random(number), 0
    for run in count(1):
        out, done, before = folder / f"run-{run}", 0, kills
        finished = False
        while not finished:
            here = mode == "saving" and kills == before
            process = begun(book, out, write, run * number if here else 0)
            if mode == "random":
                time.sleep(draw.random() * length)
                os.kill(process, signal.SIGKILL)
            finished = ended(process)
            kills += not finished
            with suppress(BlockingIOError):
                done = max(done, *os.read(read, 1 << 16))
            check(out, done, whole, finished=finished)
        if kills >= number if mode == "random" else kills == before:
            break
    print(kills)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
