"""What this machine can do right now: read bandwidth and f32 arithmetic, by numpy alone."""

import os
from time import perf_counter

import numpy as np


def limits() -> dict[str, float]:
    """GB/s of reading 512 MB with one thread, GFLOP/s of a 1536-wide f32 product with all."""
    big = np.ones(128 << 20, np.float32)
    a = np.ones((1536, 1536), np.float32)
    return {
        "processors": float(len(os.sched_getaffinity(0))),
        "read_gb_s": big.nbytes / 1e9 / min(_time(big.max) for _ in range(3)),
        "f32_gflop_s": 2 * 1536**3 / 1e9 / min(_time(lambda: a @ a) for _ in range(3)),
    }


def _time(call) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin
