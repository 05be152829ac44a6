"""Fusion: several records of a plan as one, which reads and writes memory once. The same bits.

    norm -> linears of one input -> product, their results side by side
    linear -> add                -> product that adds
    two linears -> gate          -> product that gates; linear -> activate likewise
    norms, ropes -> attention    -> attend, on query, key and value side by side

A record is folded into another only where nothing else reads its result. Weights side by side must
have one type. What fits no pattern stays as it is. A layer of a Llama becomes five records.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from seriatim.kernels.record import Buffer, Plan, Record, Weight


def fuse(plan: Plan, types: Mapping[str, str]) -> Plan:
    """The plan in fewer records.

    Args:
        plan: from `record.py`.
        types: of each weight, such as "bf16" or "int4".
    """
    return _Fusion(plan, types).run()


class _Fusion:
    """Replaces records in place: `None` where one was folded into a later one."""

    def __init__(self, plan: Plan, types: Mapping[str, str]) -> None:
        self.plan, self.types = plan, types
        self.records: list[Record | None] = list(plan.records)
        self.made = {r.output: i for i, r in enumerate(plan.records)}
        read = [b for r in plan.records for b in r.inputs if isinstance(b, Buffer)]
        self.uses = Counter([*read, plan.logits])
        self.next = len(plan.records)  # the id of the next new buffer

    def run(self) -> Plan:
        for i, record in enumerate(self.plan.records):
            fold = getattr(self, f"_{record.op}", None)
            if fold is not None:
                fold(i, record)
        for i, record in enumerate(self.records):
            if record is not None and record.op == "linear":
                self._product(i, record.output, [record])
        for i, record in enumerate(self.records):
            if record is not None and record.op == "product":
                self._norm_into(i, record)
        return replace(self.plan, records=tuple(r for r in self.records if r is not None))

    def _only(self, buffer: Any, *ops: str) -> Record | None:
        """What made a buffer that nothing else reads, if it is one of `ops`."""
        if not isinstance(buffer, Buffer) or self.uses[buffer] != 1:
            return None
        record = self.records[self.made[buffer]]
        return record if record is not None and record.op in ops else None

    def _drop(self, *records: Record | None) -> None:
        for record in records:
            if record is not None:
                self.records[self.made[record.output]] = None

    def _product(self, i: int, output: Buffer, linears: list[Record], **attributes: Any) -> None:
        """Put a product of these linears at place `i`, and take them out."""
        self._drop(*linears)
        x, residual = linears[0].inputs[0], attributes.pop("residual", ())
        weights = [w for linear in linears for w in linear.inputs[1:]]
        inputs = (x, *residual, None, None, *weights, *[None] * (6 - len(weights)))
        settings = {"norm": None, "eps": 0.0, "finish": "none", "activation": "silu"} | attributes
        self.records[i] = Record("product", inputs, output, settings)

    def _add(self, i: int, record: Record) -> None:
        """residual + linear; the linear must be the second, as in x + f(x)."""
        residual, linear = record.inputs[0], self._only(record.inputs[1], "linear")
        if linear is not None and residual is not record.inputs[1]:
            self._product(i, record.output, [linear], finish="add", residual=(residual,))

    def _gate(self, i: int, record: Record) -> None:
        pair = [self._only(b, "linear") for b in record.inputs]
        linears = [linear for linear in pair if linear is not None]
        if len(linears) == 2 and self._together(linears):
            self._product(i, record.output, linears, finish="gate", **record.attributes)

    def _activate(self, i: int, record: Record) -> None:
        linear = self._only(record.inputs[0], "linear")
        if linear is not None:
            self._product(i, record.output, [linear], finish="activate", **record.attributes)

    def _together(self, linears: list[Record]) -> bool:
        """Whether they read one buffer and their weights have one type."""
        weights = [r.inputs[1] for r in linears]
        types = {self.types[w.name] for w in weights if isinstance(w, Weight)}
        return len({r.inputs[0] for r in linears}) == 1 and len(types) == 1

    def _attention(self, i: int, record: Record) -> None:
        """linear -> norm? -> rope? of query and key, linear of value: one product, one attend."""
        paths = [self._path(b) for b in record.inputs]
        found = [path for path in paths if path is not None]
        if len(found) != 3:
            return
        (query, query_norm, query_rope), (key, key_norm, key_rope), (value, *rest) = found
        linears = [query, key, value]
        if (
            any(rest)
            or not self._together(linears)
            or not _alike(query_rope, key_rope, ("layout",))
        ):
            return
        if not _alike(query_norm, key_norm, ("kind",)):
            return
        width = sum(linear.output.width for linear in linears)
        side_by_side = Buffer(self.next, "T", width)
        self.next += 1
        self._drop(query_norm, query_rope, key_norm, key_rope)
        place = self.made[query.output]
        self._product(place, side_by_side, linears)
        self.made[side_by_side], self.uses[side_by_side] = place, 1
        angles = (query_rope.inputs[1],) if query_rope else ()
        norms = [w for norm in (query_norm, key_norm) for w in _norm_weights(norm)]
        attributes = {
            **record.attributes,
            "norm": query_norm.attributes["kind"] if query_norm else None,
            "layout": query_rope.attributes["layout"] if query_rope else None,
            "query_eps": query_norm.attributes["eps"] if query_norm else 0.0,
            "key_eps": key_norm.attributes["eps"] if key_norm else 0.0,
        }
        inputs = (side_by_side, *angles, *norms)
        self.records[i] = Record("attend", inputs, record.output, attributes)

    def _path(self, buffer: Any) -> tuple[Record, Record | None, Record | None] | None:
        """The linear, norm and rope that made a head's input, the latter two if there are any."""
        rope = self._only(buffer, "rope")
        norm = self._only(rope.inputs[0] if rope else buffer, "norm")
        before = norm.inputs[0] if norm else rope.inputs[0] if rope else buffer
        linear = self._only(before, "linear")
        return None if linear is None else (linear, norm, rope)

    def _norm_into(self, i: int, record: Record) -> None:
        """A norm of whole rows, read by this product alone (by all its linears)."""
        norm = self.records[self.made[record.inputs[0]]] if record.inputs[0] in self.made else None
        if norm is None or norm.op != "norm" or norm.attributes["heads"] != 1:
            return
        readers = [r for r in self.records if r is not None and norm.output in r.inputs]
        if len(readers) != 1 or norm.output == self.plan.logits:
            return
        self._drop(norm)
        at = len(record.inputs) - 8  # the norm's two weights stand before three linears'
        inputs = list(record.inputs)
        inputs[0], inputs[at : at + 2] = norm.inputs[0], norm.inputs[1:]
        settings = {"norm": norm.attributes["kind"], "eps": norm.attributes["eps"]}
        self.records[i] = replace(
            record, inputs=tuple(inputs), attributes={**record.attributes, **settings}
        )


def _alike(a: Record | None, b: Record | None, keys: tuple[str, ...]) -> bool:
    """Both absent, or both there with equal attributes and the same other inputs' buffers."""
    if a is None or b is None:
        return a is b
    same = [x for x in a.inputs[1:] if isinstance(x, Buffer)]
    return all(a.attributes[k] == b.attributes[k] for k in keys) and same == [
        x for x in b.inputs[1:] if isinstance(x, Buffer)
    ]


def _norm_weights(norm: Record | None) -> tuple[Any, ...]:
    return (None, None) if norm is None else norm.inputs[1:]
