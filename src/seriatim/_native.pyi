"""The C++ runtime (csrc/bind.cpp). `kernels/native.py` is its only caller."""

from collections.abc import Sequence

import numpy as np

def isas() -> list[tuple[str, list[str]]]:
    """Every instruction set with kernels, best first, and what the processor lacks for it."""

def features() -> list[str]:
    """What the processor has, of the features that kernels may use."""

def op_codes() -> dict[str, int]: ...
def tables() -> dict[str, list[str]]:
    """The words of each enumerated attribute, in order."""

def set_flush_to_zero(on: bool) -> None:
    """Spoil (or mend) the calling thread's floating-point mode: for tests."""

class Plan:
    """Records over slots, checked when added; every refusal is a `ValueError` that names it.

    Args:
        isa: one of `isas()` for which nothing is lacking.
        threads: workers, the caller included.
        kv: how keys and values are stored, "f32" or "bf16".
        layers: (kv heads, channels) of each attention layer.
        slots: (axis "T" or "R", floats in a row) of each buffer.
        spin: wait briefly without sleeping; only with a processor for every worker.
    """

    def __init__(
        self,
        isa: str,
        threads: int,
        kv: str,
        layers: Sequence[tuple[int, int]],
        slots: Sequence[tuple[str, int]],
        spin: bool = True,
    ) -> None: ...
    def tensor(self, array: np.ndarray, dtype: str) -> int:
        """Register a tensor; its number. A matrix is used in place, and its array kept alive.

        Args:
            array: C-contiguous, 1-D or 2-D: float32 "f32", float16 "f16", uint16 bits "bf16".
        """

    def add(
        self,
        op: int,
        inputs: Sequence[int],
        tensors: Sequence[int],
        output: int,
        ints: Sequence[int],
        floats: Sequence[float],
    ) -> None:
        """Append a record: slots read, tensors read (-1: absent), slot written, attributes."""

    def matrix(self, data: np.ndarray, kind: str, rows: int, columns: int) -> int: ...
    def resize(self, blocks: int) -> None: ...
    def copy(self, source: int, target: int) -> None: ...
    def poison(self, block: int) -> None:
        """Fill a cache block with NaN."""

    def step(
        self,
        ids: np.ndarray,
        position: np.ndarray,
        sequence: np.ndarray,
        block_table: np.ndarray,
        rows: np.ndarray,
    ) -> np.ndarray:
        """The last record's result, float32 [R, V]; valid until the next step. Arrays are int32."""

    def trace(
        self,
        ids: np.ndarray,
        position: np.ndarray,
        sequence: np.ndarray,
        block_table: np.ndarray,
        rows: np.ndarray,
    ) -> int:
        """Index of the first record whose result is not finite, or -1."""

    def best(self) -> np.ndarray: ...
    def finite(self) -> np.ndarray:
        """uint8 [R]: 1 where the latest step's row is finite."""

    @property
    def blocks(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def bytes(self) -> int:
        """Memory of buffers, scratch and cache."""
