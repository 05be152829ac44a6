"""The forward pass on numpy, exact and quantised side by side: what each product is given.

Every window of ids runs twice, first as the model computes it, then as the quantised one does;
for each product's weight somebody says what stands for it, told the second moments of its inputs.
No cache, no logits: for those, and for what an op means to the bit, see `kernels/`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from seriatim.kernels.formats import Array, Blocks, expand
from seriatim.models.forward import forward
from seriatim.models.spec import Spec
from seriatim.quant.feedback import Moments
from seriatim.quant.rounding import grouped

Windows = Sequence[Sequence[int]] | np.ndarray
Choose = Callable[[str, Moments], Array]  # a weight's name and its inputs -> what stands for it
LAST = ("head.weight", "embed.weight")  # whose product nothing reads here


def run(
    spec: Spec,
    weights: Mapping[str, Array],
    windows: Windows,
    choose: Choose,
    *,
    embed: Array,
) -> None:
    """Run windows of ids, asking for each product's weight in the model's order.

    Args:
        spec: the model.
        weights: as the model has them, by name.
        windows: ids, each at most a context.
        choose: called once for each product.
        embed: what stands for the table that ids are looked up in.
    """
    forward(_Twins(windows, weights, choose, embed), spec, {name: name for name in weights})


class _Twins:
    """The op table on float32 [token, ...]: the exact half, then the quantised half.

    A weight is its name. Sequences do not meet, so only `embed` and `linear` know of the halves.
    """

    def __init__(
        self,
        windows: Windows,
        weights: Mapping[str, Array],
        choose: Choose,
        embed: Array,
    ) -> None:
        self.weights, self.choose, self.table = weights, choose, embed
        self.ids = np.concatenate([np.asarray(window, np.int64) for window in windows])
        lengths = [len(window) for window in windows]
        self.position = np.concatenate([np.arange(length) for length in lengths * 2])
        ends = np.cumsum(lengths * 2)
        self.sequences = [slice(e - n, e) for e, n in zip(ends, lengths * 2, strict=True)]
        self.seen: tuple[Any, Any] = (None, None)  # the latest input and its moments

    def embed(self, table: str, *, source: str) -> np.ndarray:
        if source == "position":
            return self._exact(table)[self.position]
        return np.concatenate([self._exact(table)[self.ids], values(self.table)[self.ids]])

    def linear(self, x: np.ndarray, weight: str, bias: str | None = None) -> np.ndarray:
        exact, rounded = np.split(x, 2)
        if self.seen[0] is not x:
            self.seen = x, (y := round_groups(rounded), _moments(exact, y))
        y, moments = self.seen[1]
        chosen = self.choose(weight, moments)
        if weight in LAST:
            return x[:, :0]
        y = y if isinstance(chosen, Blocks) else rounded
        out = np.concatenate([exact @ self._exact(weight).T, y @ values(chosen).T])
        return out if bias is None else out + self._exact(bias)

    def norm(self, x, weight: str | None, bias: str | None, *, kind: str, eps: float, heads=1):
        y = x.reshape(len(x), heads, -1)
        y = y - y.mean(-1, keepdims=True) if kind == "layer" else y
        y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + np.float32(eps))
        y = y if weight is None else y * self._exact(weight)
        return (y if bias is None else y + self._exact(bias)).reshape(x.shape)

    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> np.ndarray:
        turn = self.position[:, None] * np.array(frequencies)  # [token, pair]
        return (np.concatenate([np.cos(turn), np.sin(turn)], -1) * scale).astype(np.float32)

    def rope(self, x: np.ndarray, angles: np.ndarray, *, heads: int, layout: str) -> np.ndarray:
        y = x.reshape(len(x), heads, -1).copy()
        count = angles.shape[1] // 2
        half = layout == "half"
        first = slice(count) if half else slice(0, 2 * count, 2)
        second = slice(count, 2 * count) if half else slice(1, 2 * count, 2)
        a, b, (cos, sin) = y[..., first].copy(), y[..., second], np.split(angles[:, None], 2, -1)
        y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
        return y.reshape(x.shape)

    def attention(
        self, query, key, value, *, layer, heads, kv_heads, scale, visible="causal", window=0,
        softcap=0.0,
    ) -> np.ndarray:  # fmt: skip
        mixed = np.empty_like(query)
        for here in self.sequences:
            q, k, v = (
                x[here].reshape(here.stop - here.start, count, -1).swapaxes(0, 1)
                for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
            )
            back = np.subtract.outer(np.arange(q.shape[1]), np.arange(q.shape[1]))
            hidden = (back < 0) | (back >= window) if window else back < 0
            group = heads // kv_heads
            for head in range(heads):
                scores = (q[head] @ k[head // group].T) * np.float32(scale)
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                out = _softmax(np.where(hidden, -np.inf, scores)) @ v[head // group]
                channels = out.shape[1]
                mixed[here, head * channels : (head + 1) * channels] = out
        return mixed

    def gate(self, gate: np.ndarray, up: np.ndarray, *, activation: str) -> np.ndarray:
        return self.activate(gate, activation=activation) * up

    def activate(self, x: np.ndarray, *, activation: str) -> np.ndarray:
        return ACTIVATIONS[activation](x)

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return x + y

    def scale(self, x: np.ndarray, *, factor: float) -> np.ndarray:
        return x * np.float32(factor)

    def softcap(self, x: np.ndarray, *, cap: float) -> np.ndarray:
        return x

    def rows(self, x: np.ndarray) -> np.ndarray:
        return x

    def _exact(self, name: str) -> np.ndarray:
        return values(self.weights[name])


def values(weight: Array) -> np.ndarray:
    """A weight in float32."""
    return expand(weight) if isinstance(weight, Blocks) else weight.astype(np.float32, copy=False)


def round_groups(x: np.ndarray) -> np.ndarray:
    """Inputs as a product of blocks takes them: int8 with a scale for 32 (`reference.py`)."""
    parts = grouped(x)
    most = np.abs(parts).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        q = np.rint(parts * np.where(most > 0, 127 / most, 0).astype(np.float32))
    return (q * (most / 127)).reshape(len(x), -1)[:, : x.shape[1]]


def _moments(x: np.ndarray, y: np.ndarray) -> Moments:
    count = np.float32(len(y))
    return Moments((y.T @ y / count).astype(np.float64), ((x - y).T @ y / count).astype(np.float64))


def _softmax(scores: np.ndarray) -> np.ndarray:
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-np.clip(x, -80, 80)))


def _gelu(x: np.ndarray) -> np.ndarray:
    """By Abramowitz and Stegun's erf, 7.1.26, off by at most 1.5e-7."""
    size = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * size)
    terms = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    series = np.zeros_like(x)
    for term in terms:
        series = (series + np.float32(term)) * t
    return x * (1 + np.copysign(1 - series * np.exp(-size * size), x)) / 2


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3))) / 2


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
}
