"""The only forward pass, written over the op table (`kernels/ops.py`).

With the reference ops it runs and differentiates in torch; with the recorder it yields the plan
that the C++ runtime executes. It is never edited for speed: fusion is a pass over the plan.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from seriatim.kernels.ops import Ops
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec

Apply = Callable[[Callable[[Any], Any], int, Any], Any]  # (layer, its number, its input)


def forward(ops: Ops, spec: Spec, weights: Mapping[str, Any]) -> Any:
    """Logits [R, V] of the rows the batch asks for.

    Args:
        ops: reference ops (torch tensors) or the recorder (buffer handles).
        spec: the model.
        weights: by the names of `spec.weights(spec)`, as `ops` takes them.
    """
    return head(ops, spec, weights, trunk(ops, spec, weights))


def trunk(
    ops: Ops,
    spec: Spec,
    weights: Mapping[str, Any],
    apply: Apply = lambda layer, index, x: layer(x),
) -> Any:
    """What the last layer gives [token, width]; training may `apply` layers in its own way."""
    x = ops.embed(weights["embed.weight"], source="ids")  # [token, width]
    if spec.positions:
        x = ops.add(x, ops.embed(weights["position.weight"], source="position"))
    ropes = dict.fromkeys(l.attention.rope for l in spec.layers if l.attention.rope)
    angles = {rope: ops.rotary(rope.frequencies, scale=rope.scale) for rope in ropes}
    for index, layer in enumerate(spec.layers):
        scope = _Scope(weights, f"layers.{index}.")
        x = apply(partial(_layer, ops, layer, scope, index, angles), index, x)
    return x


def head(ops: Ops, spec: Spec, weights: Mapping[str, Any], x: Any) -> Any:
    """Logits [row, vocab] from what the last layer gave."""
    root = _Scope(weights, "")
    x = _norm(ops, spec.norm, root, "norm", ops.rows(x))  # [row, width]
    return root.linear(ops, "embed" if spec.tied else "head", x)  # [row, vocab]


class _Scope:
    """The weights below one prefix."""

    def __init__(self, weights: Mapping[str, Any], prefix: str) -> None:
        self.weights, self.prefix = weights, prefix

    def get(self, name: str) -> Any | None:
        return self.weights.get(self.prefix + name)

    def linear(self, ops: Ops, name: str, x: Any) -> Any:
        return ops.linear(x, self.weights[f"{self.prefix}{name}.weight"], self.get(f"{name}.bias"))


def _layer(
    ops: Ops, layer: Layer, w: _Scope, index: int, angles: Mapping[Rope, Any], x: Any
) -> Any:
    normed = _norm(ops, layer.norm, w, "attention_norm", x)
    x = ops.add(x, _attention(ops, layer.attention, w, normed, index, angles))
    if layer.parallel:
        return ops.add(x, _mlp(ops, layer.mlp, w, normed))
    normed = _norm(ops, layer.norm, w, "mlp_norm", x)
    return ops.add(x, _mlp(ops, layer.mlp, w, normed))


def _norm(ops: Ops, norm: Norm, w: _Scope, name: str, x: Any, heads: int = 1) -> Any:
    weight, bias = w.get(f"{name}.weight"), w.get(f"{name}.bias")
    return ops.norm(x, weight, bias, kind=norm.kind, eps=norm.eps, heads=heads)


def _attention(
    ops: Ops, a: Attention, w: _Scope, x: Any, index: int, angles: Mapping[Rope, Any]
) -> Any:
    def project(name: str, heads: int) -> Any:
        y = w.linear(ops, name, x)  # [token, head * channel]
        if a.qk_norm:
            y = _norm(ops, a.qk_norm, w, f"{name}_norm", y, heads)
        return ops.rope(y, angles[a.rope], heads=heads, layout=a.rope.layout) if a.rope else y

    mixed = ops.attention(
        project("query", a.heads),
        project("key", a.kv_heads),
        w.linear(ops, "value", x),
        layer=index,
        heads=a.heads,
        kv_heads=a.kv_heads,
        scale=a.scale,
        window=a.window,
    )
    return w.linear(ops, "output", mixed)


def _mlp(ops: Ops, m: MLP, w: _Scope, x: Any) -> Any:
    if m.gated:
        gate = w.linear(ops, "gate", x)
        hidden = ops.gate(gate, w.linear(ops, "up", x), activation=m.activation)
    else:
        hidden = ops.activate(w.linear(ops, "up", x), activation=m.activation)
    return w.linear(ops, "down", hidden)
