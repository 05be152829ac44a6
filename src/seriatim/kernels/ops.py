"""The closed table of ops that a forward pass is written in, and the batch they all read.

Every op works on flat `[token, ...]` arrays: no padding, no batch axis. An op has a slow, clear
definition in `reference.py`; the op codes in `csrc/ops.h` are checked against this table by a test.

Axis letters: T tokens, R rows that need logits, S sequences, B blocks of a sequence, D width,
N outputs, F inner width of an MLP, V vocabulary, H query heads, G key/value heads, C channels of
one head, A rotated channels of one head.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

BLOCK = 64  # positions in one cache block, and keys in one attention chunk (contracts.md, 7)

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")  # an op carries the index
NORMS = ("rms", "layer")
LAYOUTS = (
    "half",
    "interleaved",
)  # rotary pairs: (i, i + A/2) as in GPT-NeoX, (2i, 2i + 1) as in GPT-J
SOURCES = ("ids", "position")  # what `embed` looks up
VISIBLE = ("causal",)  # which keys a query sees: room for bidirectional, prefix, cross
FINISHES = ("none", "add", "gate", "activate")  # y, residual + y, act(y) * y2, act(y)


@dataclass(frozen=True)
class Op:
    """One row of the table: attribute order is the order in which a plan stores their values."""

    name: str
    code: int
    inputs: tuple[str, ...]
    output: str
    ints: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()


OPS = {
    op.name: op
    for op in (
        Op("embed", 0, ("table[V,D]",), "[T,D]", ints=("source",)),
        Op("linear", 1, ("x[T,D]", "weight[N,D]", "bias[N]?"), "[T,N]"),
        Op("norm", 2, ("x[T,D]", "weight[D/heads]?", "bias[D/heads]?"), "[T,D]",
           ints=("kind", "heads"), floats=("eps",)),
        Op("rotary", 3, ("frequencies[A/2]",), "[T,A]", floats=("scale",)),
        Op("rope", 4, ("x[T,H*C]", "angles[T,A]"), "[T,H*C]", ints=("heads", "layout")),
        Op("attention", 5, ("query[T,H*C]", "key[T,G*C]", "value[T,G*C]"), "[T,H*C]",
           ints=("layer", "heads", "kv_heads", "visible", "window"), floats=("scale", "softcap")),
        Op("gate", 6, ("gate[T,F]", "up[T,F]"), "[T,F]", ints=("activation",)),
        Op("activate", 7, ("x[T,F]",), "[T,F]", ints=("activation",)),
        Op("add", 8, ("x[T,D]", "y[T,D]"), "[T,D]"),
        Op("scale", 9, ("x[T,D]",), "[T,D]", floats=("factor",)),
        Op("softcap", 10, ("x[T,D]",), "[T,D]", floats=("cap",)),
        Op("rows", 11, ("x[T,D]",), "[R,D]"),
    )
}  # fmt: skip

# Several of the above in one pass over memory, with the same bits: made by `fuse.py` only.
FUSED = {
    op.name: op
    for op in (
        Op("product", 12,
           ("x[T,D]", "residual[T,N]?", "norm_weight[D]?", "norm_bias[D]?", "weight[N,D]",
            "bias[N]?", "weight[N,D]?", "bias[N]?", "weight[N,D]?", "bias[N]?"), "[T,N]",
           ints=("norm", "finish", "activation"), floats=("eps",)),
        Op("attend", 13,
           ("projected[T,(H+2*G)*C]", "angles[T,A]?", "query_norm_weight[C]?",
            "query_norm_bias[C]?", "key_norm_weight[C]?", "key_norm_bias[C]?"), "[T,H*C]",
           ints=("layer", "heads", "kv_heads", "visible", "window", "norm", "layout"),
           floats=("scale", "softcap", "query_eps", "key_eps")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """One step's work: any mix of prompt chunks, decoding and scoring, laid end to end.

    Tokens of one sequence are consecutive and in ascending position. A runtime writes each token's
    key and value at `block_table[sequence, position // BLOCK]`, slot `position % BLOCK`, then
    attends over positions 0 .. position of that sequence.
    """

    ids: np.ndarray  # int32 [T]
    position: np.ndarray  # int32 [T]: index in the whole sequence
    sequence: np.ndarray  # int32 [T]: row of block_table
    block_table: np.ndarray  # int32 [S, B]: cache block of each BLOCK positions, -1 unused
    rows: np.ndarray  # int32 [R]: ascending indices into T of the tokens whose logits are wanted


class Ops(Protocol):
    """What `models/forward.py` calls: on tensors (reference) or buffer handles (recorder)."""

    def embed(self, table: Any, *, source: str) -> Any: ...
    def linear(self, x: Any, weight: Any, bias: Any | None = None) -> Any: ...
    def norm(
        self, x: Any, weight: Any | None, bias: Any | None, *, kind: str, eps: float, heads: int = 1
    ) -> Any: ...
    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> Any: ...
    def rope(self, x: Any, angles: Any, *, heads: int, layout: str) -> Any: ...
    def attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        scale: float,
        visible: str = "causal",
        window: int = 0,
        softcap: float = 0.0,
    ) -> Any: ...
    def gate(self, gate: Any, up: Any, *, activation: str) -> Any: ...
    def activate(self, x: Any, *, activation: str) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def scale(self, x: Any, *, factor: float) -> Any: ...
    def softcap(self, x: Any, *, cap: float) -> Any: ...
    def rows(self, x: Any) -> Any: ...


class Runtime(Protocol):
    """Runs steps of one model: the native plan, or the reference ops on a torch device."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def blocks(self) -> int:
        """How many cache blocks it holds."""
        ...

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block: keys and values of all layers."""
        ...

    @property
    def facts(self) -> str:
        """What computes: backend, instruction set or device, threads."""
        ...

    @property
    def arithmetic(self) -> str:
        """What decides the bits of results beside the model and `kv`: backend, instruction set."""
        ...

    @property
    def kv(self) -> str:
        """How keys and values are stored: "f32", "bf16" or "int8"."""
        ...

    def resize(self, blocks: int) -> None:
        """Make the cache hold `blocks` blocks, or as many as it holds if more; contents kept."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Copy one cache block onto another."""
        ...

    def read(self, block: int, positions: int) -> np.ndarray:
        """The first positions of a cache block: uint8 [block_bytes], zeros for the others."""
        ...

    def write(self, block: int, data: np.ndarray) -> None:
        """Give a cache block the contents that `read` gave: uint8 [block_bytes]."""
        ...

    def step(self, batch: Batch) -> np.ndarray:
        """Logits float32 [R, V], valid until the next step."""
        ...

    def finite(self) -> np.ndarray:
        """uint8 [R]: 1 where a row of the latest logits has neither NaN nor infinity."""
        ...

    def best(self) -> np.ndarray:
        """int32 [R]: the first id with the largest logit in each row of the latest step."""
        ...

    def trace(self, batch: Batch) -> str:
        """The same step again, slowly: the name of the first result that is not finite."""
        ...
