"""The C++ runtime (csrc/bind.cpp), whose only caller is `kernels/native.py`, and the sampler
(csrc/bind_sampler.cpp), whose only caller is `engine/sampler.py`.
"""

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
    def read(self, block: int, positions: int) -> np.ndarray:
        """The first positions' bytes of a cache block, zeros for the others: uint8 [bytes]."""

    def write(self, block: int, bytes: np.ndarray) -> None:
        """What `read` gave becomes a block's contents."""

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

class Chain:
    """`engine.sampling.Sampling`, checked: a `ValueError` says what is out of range.

    Args:
        dry: multiplier, base, allowed length, range.
        biased: ids whose logits `biases` are added to.
        allowed: the only ids that may come; None: all.
        temperature: itself, dynatemp_range, dynatemp_exponent.
        shares: typical_p, top_p, min_p.
        xtc: probability, threshold.
        order: places in `sampling.FILTERS`; what is left out is off.
    """

    def __init__(
        self,
        *,
        repetition: float,
        presence: float,
        frequency: float,
        dry: tuple[float, float, int, int],
        breakers: Sequence[int],
        biased: Sequence[int],
        biases: Sequence[float],
        allowed: Sequence[int] | None,
        banned: Sequence[int],
        temperature: tuple[float, float, float],
        top_k: int,
        shares: tuple[float, float, float],
        xtc: tuple[float, float],
        order: Sequence[int],
    ) -> None: ...

class Sampler:
    """What `engine/sampler_reference.py` defines; every refusal is a `ValueError`.

    Args:
        isa: one of `Sampler.isas()`; None: the best. No result depends on it.
    """

    def __init__(self, isa: str | None = None) -> None: ...
    @staticmethod
    def isas() -> list[str]: ...
    def pick(
        self,
        logits: np.ndarray,
        chain: Chain,
        ids: Sequence[int],
        prompt: int,
        seed: int,
        sample: int,
        forbidden: Sequence[int],
        masks: Sequence[np.ndarray],
    ) -> int:
        """The id drawn, or -1 if none is left.

        Args:
            logits: float32 [V], C-contiguous, read in place; or float64 [V], to which penalties
                and biases have been applied.
            chain: how it is drawn.
            ids: all before it, the first `prompt` of them given.
            forbidden: ids that cannot come here.
            masks: uint32 words of bits; all must allow an id.
        """

    def likeliest(self, logits: np.ndarray, count: int) -> list[int]:
        """Ids of the highest, by falling logit, equals by rising id."""

    def log_sum(self, logits: np.ndarray) -> np.ndarray:
        """Float64 [R] of float32 [R, V], from the exact sums of integer weights."""

    def weights(self, z: np.ndarray) -> list[int]:
        """round(exp(z) * 2^40) of float64 z <= 0: for tests."""

    def words(self, run: int, seed: int, position: int, sample: int) -> list[int]:
        """Philox's words for the ids 64 run .. 64 run + 63: for tests."""

def exp(x: np.ndarray) -> np.ndarray:
    """The maths of csrc/mathematics.h on float64 [N], value by value: for tests."""

def log(x: np.ndarray) -> np.ndarray: ...
