"""What this machine can do right now, measured by numpy alone: the ceilings that kernels run under.

Machines are shared and drift, so limits are measured beside whatever is compared with them. It is
not a benchmark of seriatim: nothing of it runs here.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from seriatim.kernels import native

_READ = 256 << 20  # bytes: far more than any cache holds
_SIDE = 1536
_TRIES = 3  # the best of them: a ceiling


@dataclass(frozen=True)
class Limits:
    """Ceilings of the processors granted to this process.

    Attributes:
        processors: how many there are.
        read_gb_s: reading memory, GB/s: the better of one thread and all.
        f32_gflop_s: a square f32 matrix product by numpy's own library, GFLOP/s.
        int8_gop_s: `f32_gflop_s` times what an instruction does more in int8, Gop/s: 4 times where
            there is a dot product of bytes (AVX-512 VNNI and its kin), else 2.
    """

    processors: int
    read_gb_s: float
    f32_gflop_s: float
    int8_gop_s: float


def limits() -> Limits:
    """Measure: about half a second, and 256 MB while it lasts.

    Example:
        >>> limits().read_gb_s > 0
        True
    """
    processors = native.available_cpus()
    flops = _product()
    dots = any("vnni" in feature or "dotprod" in feature for feature in native.features())
    return Limits(processors, _read(processors), flops, flops * (4 if dots else 2))


def _read(processors: int) -> float:
    memory = np.ones(_READ // 8, np.int64)
    parts = np.array_split(memory, processors)
    with ThreadPoolExecutor(processors) as pool:
        times = [_best(memory.max), _best(lambda: list(pool.map(np.max, parts)))]
    return memory.nbytes / 1e9 / min(times)


def _product() -> float:
    a = np.ones((_SIDE, _SIDE), np.float32)
    return 2 * _SIDE**3 / 1e9 / _best(lambda: a @ a)


def _best(call: Callable[[], object]) -> float:
    return min(_seconds(call) for _ in range(_TRIES))


def _seconds(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin
