"""How a worker talks: its job is its only argument, in JSON; each line of stdin asks for one
measurement; each answer is a JSON object on a line. Between answers it sleeps.

A job: {"path", "threads", "seconds", "kind", "tokens", "batch", "context", "kv"}. The first line it
writes says that it is ready, and how many bytes its weights take; each answer holds "value", tokens
per second or what the row says.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Any

STEPS = 64  # generated after a prompt before it starts anew: every side at the same lengths
PROMPT = 16  # ids before the first generated one, where the row names no context
MIXED = 8  # sequences that run together have 1 to 8 times as many


def serve(prepare: Callable[[dict[str, Any]], tuple[int, Callable[[], dict[str, float]]]]) -> None:
    """Answers until stdin ends. Whatever the libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    weights, measure = prepare(json.loads(sys.argv[1]))
    print(json.dumps({"weights": weights}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


def starts(job: dict[str, Any]) -> list[int]:
    """How many ids each sequence has before its first generated one."""
    return [(job["context"] or PROMPT) * (1 + i % MIXED) for i in range(job["batch"])]


def until(seconds: float, least: int = 1) -> Iterator[int]:
    """Counts up while there is time, to `least` at least."""
    end = perf_counter() + seconds
    for step in count():
        if step >= least and perf_counter() > end:
            return
        yield step
