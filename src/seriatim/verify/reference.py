"""The forward pass once more, in numpy: what the runtime's logits are held against.

Written from the papers over a `Spec` and its weights, whole sequences at once: no cache, no plan,
no op table. Kept from the runtime is only what defines a result: inputs of products rounded to
bf16 for bf16 weights and to int8 groups for blocks, keys and values rounded as they are stored
(contracts.md, 2 and 6).
"""

from collections.abc import Mapping, Sequence
from math import erf, pi, sqrt
from typing import Any

import ml_dtypes
import numpy as np

from seriatim.kernels.formats import GROUP, Array, Blocks, expand
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec

Ids = Sequence[int] | np.ndarray

BF16 = np.dtype(ml_dtypes.bfloat16)
ERF = np.vectorize(erf, otypes=[np.float64])


def logits(
    spec: Spec, weights: Mapping[str, Array], ids: Ids, *, kv: str, rows: int = 0
) -> np.ndarray:
    """After each of `ids`: float64 [len(ids), vocabulary], or of the last `rows` of them."""
    pass_ = _Pass(weights, np.asarray(ids), kv)
    x = pass_.lookup("embed.weight", pass_.ids)  # [token, width]
    if spec.positions:
        x = x + pass_.lookup("position.weight", pass_.positions)
    for index, layer in enumerate(spec.layers):
        x = pass_.layer(layer, f"layers.{index}.", x)
    x = pass_.norm(spec.norm, "norm", x[-rows:])
    return pass_.linear("embed" if spec.tied else "head", x)


class _Pass:
    """One sequence through one set of weights."""

    def __init__(self, weights: Mapping[str, Array], ids: np.ndarray, kv: str) -> None:
        self.weights, self.ids, self.kv = weights, ids, kv
        self.positions = np.arange(len(ids))

    def lookup(self, name: str, rows: np.ndarray) -> np.ndarray:
        table = self.weights[name]
        return (expand(table) if isinstance(table, Blocks) else table)[rows].astype(np.float64)

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.weights[f"{name}.weight"], self.vector(f"{name}.bias")
        if isinstance(weight, Blocks):
            x, wide = groups(x), expand(weight)
        else:
            x = x.astype(np.float32).astype(BF16) if weight.dtype == BF16 else x
            wide = weight.astype(np.float32)
        y = x.astype(np.float32) @ wide.T if wide.size > 1 << 16 else x.astype(np.float64) @ wide.T
        return y.astype(np.float64) + bias

    def vector(self, name: str) -> np.ndarray:
        """float64; zero for a bias that is not there."""
        array = self.weights.get(name, np.zeros(()))
        return (expand(array) if isinstance(array, Blocks) else array).astype(np.float64)

    def norm(self, norm: Norm, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps) * weight
        return y + bias

    def layer(self, layer: Layer, at: str, x: np.ndarray) -> np.ndarray:
        normed = self.norm(layer.norm, f"{at}attention_norm", x)
        x = x + self.attend(layer.attention, at, normed)
        if not layer.parallel:
            normed = self.norm(layer.norm, f"{at}mlp_norm", x)
        return x + self.feed(layer.mlp, at, normed)

    def feed(self, mlp: MLP, at: str, x: np.ndarray) -> np.ndarray:
        up = self.linear(f"{at}up", x)
        act = ACTIVATIONS[mlp.activation]
        hidden = act(self.linear(f"{at}gate", x)) * up if mlp.gated else act(up)
        return self.linear(f"{at}down", hidden)

    def attend(self, a: Attention, at: str, x: np.ndarray) -> np.ndarray:
        q, k = self.heads(a, at, "query", a.heads, x), self.heads(a, at, "key", a.kv_heads, x)
        v = self.linear(f"{at}value", x).reshape(len(x), a.kv_heads, a.channels)
        k, v = stored(k, self.kv), stored(v, self.kv)
        back = self.positions[:, None] - self.positions  # how far back a key is
        seen = (back >= 0) & (back < a.window) if a.window else back >= 0
        mixed = np.empty((len(x), a.heads, a.channels))
        for head in range(a.heads):
            own = head // (a.heads // a.kv_heads)
            scores = np.where(seen, q[:, head] @ k[:, own].T * a.scale, -np.inf)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = weight @ v[:, own] / weight.sum(-1, keepdims=True)
        return self.linear(f"{at}output", mixed.reshape(len(x), -1))

    def heads(self, a: Attention, at: str, name: str, heads: int, x: np.ndarray) -> np.ndarray:
        """Queries or keys, normed and turned: [token, head, channel]."""
        y = self.linear(f"{at}{name}", x).reshape(len(x), heads, a.channels)
        if a.qk_norm:
            y = self.norm(a.qk_norm, f"{at}{name}_norm", y)
        return turned(y, a.rope, self.positions) if a.rope else y


def turned(x: np.ndarray, rope: Rope, positions: np.ndarray) -> np.ndarray:
    """Each pair of channels as a complex number, multiplied by e^(i angle) (arXiv:2104.09864)."""
    frequencies = np.array(rope.frequencies, np.float32)
    angle = (positions[:, None].astype(np.float32) * frequencies).astype(np.float64)
    turn = rope.scale * np.exp(1j * angle)[:, None]  # [token, 1, pair]
    pairs, y = len(frequencies), x.copy()
    first, second = (
        (slice(0, pairs), slice(pairs, 2 * pairs))
        if rope.layout == "half"
        else (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    )
    z = (x[..., first] + 1j * x[..., second]) * turn
    y[..., first], y[..., second] = z.real, z.imag
    return y


def stored(x: np.ndarray, kv: str) -> np.ndarray:
    """Keys or values as the cache keeps them; int8: one scale for each head of a token."""
    x = x.astype(np.float32)
    if kv == "int8":
        return _eighths(x)
    return (x.astype(BF16) if kv == "bf16" else x).astype(np.float64)


def groups(x: np.ndarray) -> np.ndarray:
    """Inputs of a product of blocks: int8, one scale for each 32."""
    x = x.astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, -x.shape[-1] % GROUP)))
    return _eighths(padded.reshape(len(x), -1, GROUP)).reshape(len(x), -1)[:, : x.shape[-1]]


def _eighths(x: np.ndarray) -> np.ndarray:
    """Multiples of the largest size / 127 along the last axis, halves to even."""
    most = abs(x).max(-1, keepdims=True)
    up = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return np.rint(x * up).astype(np.float64) * (most / np.float32(127))


def _tanh_gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Any] = {
    "silu": lambda x: x / (1 + np.exp(-np.clip(x, -700, None))),
    "gelu": lambda x: x / 2 * (1 + ERF(x / sqrt(2))),
    "gelu_tanh": _tanh_gelu,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}
