"""seriatim's own loop: each answer is a run of a few steps, data from the cache.

A job: {"data", "codec", "size", "threads", "steps", "precision", "optimizer", "shape"}; "shape" has
the numbers of the dial. Answers hold "value", ids per second by the median step, and "cpu", ids per
processor second. The first step is not counted.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from lines import serve

from seriatim import train
from seriatim.train.report import Event, Progress


class Enough(Exception):
    """The steps are done: what follows is not measured."""


def prepare(job: dict[str, Any]) -> tuple[int, Callable[[], dict[str, float]]]:
    cache = tempfile.TemporaryDirectory()
    return 0, lambda: measure(job, cache.name)


def measure(job: dict[str, Any], cache: str) -> dict[str, float]:
    stamps: list[tuple[float, float]] = []

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            stamps.append((perf_counter(), process_time()))
            if len(stamps) > job["steps"]:
                raise Enough

    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        train(
            job["data"],
            out=Path(folder) / "run",
            cache=cache,
            report=note,
            steps=2 * job["steps"],
            save_every=2 * job["steps"],
            **{k: job[k] for k in ("codec", "size", "threads", "precision", "optimizer")},
            **job["shape"],
        )
    return rates(stamps, job["shape"]["batch"] * job["shape"]["context"])


def rates(stamps: list[tuple[float, float]], ids: int) -> dict[str, float]:
    """From (seconds, processor seconds) after each step."""
    pairs = list(pairwise(stamps))
    wall, cpu = (median(after[i] - before[i] for before, after in pairs) for i in (0, 1))
    return {"value": ids / wall, "cpu": ids / cpu}


if __name__ == "__main__":
    serve(prepare)
