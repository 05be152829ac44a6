"""A model is data: frozen records that say everything the forward pass needs, and nothing else.

A family (`families/*.py`) turns a foreign config into a `Spec`; `forward.py` reads it. If code
ever asks for a model's *name*, a field is missing here.

Axis letters as in `kernels/ops.py`. Weight names are `weights(spec)`'s keys, the same for every
family; a family maps them to the names on disk.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Norm:
    """`kind` is "rms" (x / sqrt(mean x^2 + eps)) or "layer" (centred first)."""

    kind: str
    eps: float
    bias: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv:2104.09864): pair i of a head turns by position * frequencies[i]."""

    frequencies: tuple[float, ...]  # [A/2], scaling already applied, exact in float32
    layout: str = "half"
    scale: float = 1.0  # multiplies cos and sin (YaRN's attention factor)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention: `heads` queries share `kv_heads` keys and values of `channels`."""

    heads: int
    kv_heads: int
    channels: int
    scale: float  # of query . key
    rope: Rope | None = None
    window: int = 0  # keys seen, the query's own included; 0 is all
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Norm | None = None  # over each head's channels, before rope


@dataclass(frozen=True)
class MLP:
    """`down(activation(gate(x)) * up(x))` when gated, else `down(activation(up(x)))`."""

    width: int
    activation: str
    gated: bool
    bias: bool = False


@dataclass(frozen=True)
class Layer:
    """x += attention(norm(x)); x += mlp(norm(x)); parallel: both of one norm, added together."""

    attention: Attention
    mlp: MLP
    norm: Norm
    parallel: bool = False


@dataclass(frozen=True)
class Spec:
    """A decoder: embedding, layers, final norm, head."""

    vocab_size: int
    width: int
    context: int
    layers: tuple[Layer, ...]
    norm: Norm
    tied: bool  # the head is the embedding
    positions: int = 0  # rows of a learned position table; 0 is none
    head_bias: bool = False


def weights(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Every weight the forward pass reads, with its shape; a product's weight is [out, in]."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, spec.width)}
    if spec.positions:
        shapes["position.weight"] = (spec.positions, spec.width)
    for index, layer in enumerate(spec.layers):
        named = _attention(layer, spec.width) | _mlp(layer, spec.width)
        shapes |= {f"layers.{index}.{name}": shape for name, shape in named.items()}
    shapes |= _norm("norm", spec.norm, spec.width)
    if not spec.tied:
        shapes |= _linear("head", spec.width, spec.vocab_size, spec.head_bias)
    return shapes


def _norm(name: str, norm: Norm, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)}
    return shapes | ({f"{name}.bias": (width,)} if norm.bias else {})


def _linear(name: str, inner: int, outer: int, bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (outer, inner)}
    return shapes | ({f"{name}.bias": (outer,)} if bias else {})


def _attention(layer: Layer, width: int) -> dict[str, tuple[int, ...]]:
    a = layer.attention
    inner, shared = a.heads * a.channels, a.kv_heads * a.channels
    shapes = _norm("attention_norm", layer.norm, width)
    shapes |= _linear("query", width, inner, a.qkv_bias)
    shapes |= _linear("key", width, shared, a.qkv_bias)
    shapes |= _linear("value", width, shared, a.qkv_bias)
    if a.qk_norm:
        shapes |= _norm("query_norm", a.qk_norm, a.channels)
        shapes |= _norm("key_norm", a.qk_norm, a.channels)
    return shapes | _linear("output", inner, width, a.output_bias)


def _mlp(layer: Layer, width: int) -> dict[str, tuple[int, ...]]:
    m = layer.mlp
    shapes = {} if layer.parallel else _norm("mlp_norm", layer.norm, width)
    if m.gated:
        shapes |= _linear("gate", width, m.width, m.bias)
    shapes |= _linear("up", width, m.width, m.bias)
    return shapes | _linear("down", m.width, width, m.bias)
