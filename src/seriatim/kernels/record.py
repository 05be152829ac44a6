"""Recording ops: run the forward pass once on handles and get a flat plan.

A plan is op records over buffers whose first axis is a symbol (T tokens or R rows), so one plan
serves every batch. It lives in memory only. `native.py` hands it to the C++ runtime.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from seriatim.kernels.ops import (
    ACTIVATIONS,
    FINISHES,
    FUSED,
    LAYOUTS,
    NORMS,
    OPS,
    SOURCES,
    VISIBLE,
    Op,
)

ENUMS = {
    "activation": ACTIVATIONS,
    "finish": FINISHES,
    "kind": NORMS,
    "layout": LAYOUTS,
    "norm": NORMS,
    "source": SOURCES,
    "visible": VISIBLE,
}


@dataclass(frozen=True)
class Buffer:
    """A result of the step: `axis` is "T" or "R", `width` floats for each."""

    id: int
    axis: str
    width: int


@dataclass(frozen=True)
class Weight:
    """A tensor that outlives the step, by name."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One op: what it reads, what it writes, its attributes.

    Absent optional weights are `None`; absent optional buffers are left out.
    """

    op: str
    inputs: tuple[Buffer | Weight | None, ...]
    output: Buffer
    attributes: Mapping[str, Any]

    @property
    def row(self) -> Op:
        """Its row of the op table."""
        return OPS[self.op] if self.op in OPS else FUSED[self.op]

    def ints(self) -> list[int]:
        """Integer attributes in the table's order; words become their index, None -1."""
        return [_integer(name, self.attributes[name]) for name in self.row.ints]

    def floats(self) -> list[float]:
        return [self.attributes[name] for name in self.row.floats]


def _integer(name: str, value: int | str | None) -> int:
    if value is None:
        return -1
    return value if isinstance(value, int) else ENUMS[name].index(value)


@dataclass(frozen=True)
class Plan:
    """The records in order, the constants they name, and the buffer that holds the logits."""

    records: tuple[Record, ...]
    constants: Mapping[str, tuple[float, ...]]
    logits: Buffer

    def slots(self) -> list[int]:
        """Slot of each buffer: buffers whose lives do not overlap share one, within an axis."""
        last = {b: i for i, r in enumerate(self.records) for b in r.inputs if isinstance(b, Buffer)}
        last[self.logits] = len(self.records)
        free: dict[str, list[int]] = {"T": [], "R": []}
        slot: dict[Buffer, int] = {}
        for i, record in enumerate(self.records):
            out = record.output
            slot[out] = free[out.axis].pop() if free[out.axis] else len(set(slot.values()))
            for b in {b for b in record.inputs if isinstance(b, Buffer)} | {out}:
                if last.get(b, i) == i:
                    free[b.axis].append(slot[b])
        return [slot[r.output] for r in self.records]


class Recorder:
    """The op table on handles: each call appends a record and returns its output buffer."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.constants: dict[str, tuple[float, ...]] = {}

    def _record(self, op: str, *inputs: Any, width: int, axis: str = "T", **attributes) -> Buffer:
        output = Buffer(len(self.records), axis, width)
        self.records.append(Record(op, inputs, output, attributes))
        return output

    def _like(self, op: str, x: Buffer, *more: Any, **attributes) -> Buffer:
        return self._record(op, x, *more, width=x.width, axis=x.axis, **attributes)

    def embed(self, table: Weight, *, source: str) -> Buffer:
        return self._record("embed", table, width=table.shape[1], source=source)

    def linear(self, x: Buffer, weight: Weight, bias: Weight | None = None) -> Buffer:
        return self._record("linear", x, weight, bias, width=weight.shape[0], axis=x.axis)

    def norm(
        self,
        x: Buffer,
        weight: Weight | None,
        bias: Weight | None,
        *,
        kind: str,
        eps: float,
        heads: int = 1,
    ) -> Buffer:
        return self._like("norm", x, weight, bias, kind=kind, eps=eps, heads=heads)

    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> Buffer:
        constant = Weight(f"frequencies.{len(self.constants)}", (len(frequencies),))
        self.constants[constant.name] = frequencies
        return self._record("rotary", constant, width=2 * len(frequencies), scale=scale)

    def rope(self, x: Buffer, angles: Buffer, *, heads: int, layout: str) -> Buffer:
        return self._like("rope", x, angles, heads=heads, layout=layout)

    def attention(
        self,
        query: Buffer,
        key: Buffer,
        value: Buffer,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        scale: float,
        visible: str = "causal",
        window: int = 0,
        softcap: float = 0.0,
    ) -> Buffer:
        return self._like(
            "attention",
            query,
            key,
            value,
            layer=layer,
            heads=heads,
            kv_heads=kv_heads,
            visible=visible,
            window=window,
            scale=scale,
            softcap=softcap,
        )

    def gate(self, gate: Buffer, up: Buffer, *, activation: str) -> Buffer:
        return self._like("gate", gate, up, activation=activation)

    def activate(self, x: Buffer, *, activation: str) -> Buffer:
        return self._like("activate", x, activation=activation)

    def add(self, x: Buffer, y: Buffer) -> Buffer:
        return self._like("add", x, y)

    def scale(self, x: Buffer, *, factor: float) -> Buffer:
        return self._like("scale", x, factor=factor)

    def softcap(self, x: Buffer, *, cap: float) -> Buffer:
        return self._like("softcap", x, cap=cap)

    def rows(self, x: Buffer) -> Buffer:
        return self._record("rows", x, width=x.width, axis="R")


def record(
    forward: Callable[[Recorder, Mapping[str, Weight]], Buffer],
    shapes: Mapping[str, tuple[int, ...]],
) -> Plan:
    """The plan of a forward pass over weights of the given shapes."""
    recorder = Recorder()
    logits = forward(recorder, {name: Weight(name, shape) for name, shape in shapes.items()})
    return Plan(tuple(recorder.records), recorder.constants, logits)
