"""The bridge to the C++ runtime: hand over a plan and weights once, then one call per step.

Holds no maths: results are defined by `reference.py`, and to the bit by csrc. Weights stay where
they are (a mapped file); only vectors and transposed views are copied.
"""

import math
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from seriatim.errors import ModelError, RequestError, ResourceError, SeriatimError
from seriatim.kernels.formats import Array, Blocks
from seriatim.kernels.fuse import fuse
from seriatim.kernels.ops import Batch
from seriatim.kernels.record import Buffer, Plan, Weight

if TYPE_CHECKING:
    from seriatim import _native

_DTYPES = {
    np.dtype(np.float32): ("f32", np.float32),
    np.dtype(np.float16): ("f16", np.float16),
    np.dtype(ml_dtypes.bfloat16): ("bf16", np.uint16),  # buffers have no name for bfloat16
}


class NativeRuntime:
    """A `Runtime` (`kernels/ops.py`) on the CPU.

    Args:
        plan: from `kernels/record.py`.
        weights: every tensor the plan names: float32, float16 or bfloat16, matrices [out, in].
        threads: workers; `None` is one for each processor granted.
        kv: how keys and values are stored, "f32", "bf16" or "int8".
        isa: an instruction set of `isas()`; `None` is the best.
        fused: several ops at once (`fuse.py`): faster, the same bits.
        names: what weights are called on disk, for `trace`.

    Raises:
        RequestError: `threads`, `kv` or `isa` cannot be honoured.
        ModelError: a weight is missing, or of another shape or type than the plan says.
        SeriatimError: the extension was not built.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, Array],
        *,
        threads: int | None = None,
        kv: str = "f32",
        isa: str | None = None,
        fused: bool = True,
        names: Mapping[str, str] | None = None,
    ) -> None:
        if fused:
            plan = fuse(plan, {name: _kind(array) for name, array in weights.items()})
        self.vocab_size = plan.logits.width
        self.threads = _checked_threads(threads)
        self.kv, self.isa = _checked("kv", kv, ("f32", "bf16", "int8")), _checked_isa(isa)
        self._records, self._names, self.weights = plan.records, names or {}, weights
        self._plan = _module().Plan(
            self.isa,
            self.threads,
            self.kv,
            _layers(plan),
            _slots(plan),
            spin=self.threads <= available_cpus(),
        )
        self._add_records(plan, _Tensors(self._plan, plan, weights))

    def _add_records(self, plan: Plan, tensors: "_Tensors") -> None:
        slot = dict(zip((r.output for r in plan.records), plan.slots(), strict=True))
        for record in plan.records:
            code, inputs = record.row.code, record.inputs
            buffers = [slot[b] for b in inputs if isinstance(b, Buffer)]
            numbers = [tensors.number(w) for w in inputs if not isinstance(w, Buffer)]
            output = slot[record.output]
            self._plan.add(code, buffers, numbers, output, record.ints(), record.floats())

    @property
    def facts(self) -> str:
        return f"native {self.isa}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def arithmetic(self) -> str:
        return f"native {self.isa}"

    @property
    def block_bytes(self) -> int:
        return self._plan.block_bytes

    @property
    def blocks(self) -> int:
        return self._plan.blocks

    @property
    def bytes(self) -> int:
        """Memory held for results and for keys and values; weights are not counted."""
        return self._plan.bytes

    def resize(self, blocks: int) -> None:
        """Make the cache hold `blocks` blocks, or as many as it holds if more; contents kept.

        Raises:
            ResourceError: the memory is not there; the cache is as it was.
        """
        try:
            self._plan.resize(max(blocks, self.blocks))
        except MemoryError:
            size = blocks * self.block_bytes
            raise ResourceError(
                f"no memory for {blocks} cache blocks, {size:,} bytes", fix="lower cache_bytes"
            ) from None

    def copy(self, source: int, target: int) -> None:
        self._plan.copy(source, target)

    def read(self, block: int, positions: int) -> np.ndarray:
        return self._plan.read(block, positions)

    def write(self, block: int, data: np.ndarray) -> None:
        self._plan.write(block, data)

    def poison(self, block: int) -> None:
        """Fill a block with NaN: whoever reads it before writing it will be found out."""
        self._plan.poison(block)

    def step(self, batch: Batch) -> np.ndarray:
        """Logits float32 [R, V], valid until the next step; `finite()` says if they are sound."""
        b = batch
        return self._plan.step(b.ids, b.position, b.sequence, b.block_table, b.rows)

    def finite(self) -> np.ndarray:
        """uint8 [R]: 1 where a row of the latest step's logits has neither NaN nor infinity."""
        return self._plan.finite()

    def best(self) -> np.ndarray:
        """int32 [R]: the first id with the largest logit in each row of the latest step."""
        return self._plan.best()

    def trace(self, batch: Batch) -> str:
        """Run the step again, looking at every result: the name of the first that is not finite."""
        b = batch
        found = self._plan.trace(b.ids, b.position, b.sequence, b.block_table, b.rows)
        return "" if found < 0 else self._name(found)

    def _name(self, index: int) -> str:
        """The record's first weight that is not finite; all of its matrices, if they are."""
        record = self._records[index]
        weights = [w for w in record.inputs if isinstance(w, Weight)]
        bad = [w for w in weights if w.name in self.weights and not _finite(self.weights[w.name])]
        found = bad[:1] or [w for w in weights if len(w.shape) == 2] or weights
        names = [self._names.get(w.name, w.name) for w in found]
        return f"{' or '.join(names) or f'result {index}'} ({record.op})"


class _Tensors:
    """Registers each weight the first time a record names it."""

    def __init__(self, native: "_native.Plan", plan: Plan, weights: Mapping[str, Array]) -> None:
        self._native, self._plan, self._weights = native, plan, weights
        self._numbers: dict[str, int] = {}

    def number(self, weight: Weight | None) -> int:
        if weight is None:
            return -1
        if weight.name not in self._numbers:
            self._numbers[weight.name] = self._register(weight)
        return self._numbers[weight.name]

    def _register(self, weight: Weight) -> int:
        if weight.name in self._plan.constants:
            return self._native.tensor(
                np.array(self._plan.constants[weight.name], dtype=np.float32), "f32"
            )
        array = _checked_weight(weight, self._weights.get(weight.name))
        if isinstance(array, Blocks):
            return self._native.matrix(array.data, array.kind, *array.shape)
        dtype, storage = _DTYPES[array.dtype]
        return self._native.tensor(np.ascontiguousarray(array).view(storage), dtype)


def isas() -> list[str]:
    """Instruction sets with kernels that run on this processor, best first."""
    return [name for name, lacks in _module().isas() if not lacks]


def why() -> str:
    """Which instruction set is the best here, and what the processor lacks for better ones."""
    best, *_ = isas()
    better = takewhile(lambda choice: choice[1], _module().isas())
    needs = [f"{name} needs {', '.join(lacks)}" for name, lacks in better]
    return "; ".join([f"{best}: the best here", *needs])


def features() -> list[str]:
    """What the processor has, of the features that kernels may use."""
    return _module().features()


def available_cpus() -> int:
    """Processors granted to this process: its affinity, cut by a container's quota, at least 1."""
    try:
        granted = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        granted = os.cpu_count() or 1
    return max(1, math.ceil(min(granted, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors' worth of time that the tightest cgroup around us allows (v2, else v1's root)."""
    group = next((l[3:] for l in _read(own).splitlines() if l.startswith("0::")), "/")
    inner = root / group.strip("/")
    limits = [_read(folder / "cpu.max") for folder in (inner, *inner.parents)]
    limits.append(" ".join(_read(root / f"cpu/cpu.cfs_{n}_us") for n in ("quota", "period")))
    return min(map(_cpus, limits))


def _cpus(limit: str) -> float:
    """`quota period` in microseconds; the quota is "max" or -1 where there is none."""
    quota, period, *_ = (*limit.split(), "", "")
    limited = quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0
    return int(quota) / int(period) if limited else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _module():
    try:
        from seriatim import _native
    except ImportError as error:
        raise SeriatimError(
            f"the native runtime cannot be loaded ({error})",
            expected="the compiled extension seriatim._native",
            fix="install the package with `pip install .`, or use backend='torch'",
        ) from None
    return _native


def _layers(plan: Plan) -> list[tuple[int, int]]:
    """(kv heads, channels) of each layer, in order."""
    layers = {}
    for record in plan.records:
        if record.op in ("attention", "attend"):
            channels = record.output.width // record.attributes["heads"]
            layers[record.attributes["layer"]] = (record.attributes["kv_heads"], channels)
    return [layers[i] for i in sorted(layers)]


def _slots(plan: Plan) -> list[tuple[str, int]]:
    """Axis and largest width of each slot."""
    slots: dict[int, tuple[str, int]] = {}
    for record, slot in zip(plan.records, plan.slots(), strict=True):
        width = max(record.output.width, slots.get(slot, ("", 0))[1])
        slots[slot] = (record.output.axis, width)
    return [slots[i] for i in range(len(slots))]


def _finite(array: Array) -> bool:
    values = array.scales if isinstance(array, Blocks) else array
    return bool(np.isfinite(values).all())


def _kind(array: Array) -> str:
    return array.kind if isinstance(array, Blocks) else array.dtype.name


def _checked_weight(weight: Weight, array: Array | None) -> Array:
    if array is None:
        raise ModelError(f"weight {weight.name} is missing", expected=f"shape {weight.shape}")
    kind = _kind(array)
    known = isinstance(array, Blocks) or array.dtype in _DTYPES
    if array.shape != weight.shape or not known:
        raise ModelError(
            f"weight {weight.name} is {kind} {array.shape}",
            expected=f"float32, float16, bfloat16 or blocks {weight.shape}",
        )
    return array


def _checked(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise RequestError(f"{name} is {value!r}", expected=" or ".join(choices))
    return value


def _checked_isa(isa: str | None) -> str:
    return isas()[0] if isa is None else _checked("isa", isa, tuple(isas()))


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return available_cpus()
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise RequestError(f"threads is {threads!r}", expected="a whole number from 1 to 1024")
    return threads
