"""Every op, slow and clear, in plain torch: the definition the fast forms are tested against.

It differentiates, so training uses it too; `Cache` is the paged store, `None` while training
(every key then comes from the batch itself). Runs on any torch device.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.formats import GROUP
from seriatim.kernels.ops import BLOCK, Batch


class Cache:
    """Keys and values of every layer: [layer][block, slot, head, channel], 64 slots a block.

    At torch.int8 they are kept as the values they stand for (`round_heads`), in float32.
    """

    def __init__(self, shapes: list[tuple[int, int]], dtype: torch.dtype, device: str) -> None:
        self.int8 = dtype == torch.int8
        kept = torch.float32 if self.int8 else dtype

        def empty() -> list[Tensor]:
            return [torch.empty(0, BLOCK, *s, dtype=kept, device=device) for s in shapes]

        self.keys, self.values = empty(), empty()

    def resize(self, blocks: int) -> None:
        for store in (self.keys, self.values):
            store[:] = [torch.cat([t, t.new_zeros(blocks - len(t), *t.shape[1:])]) for t in store]

    def copy(self, source: int, target: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def read(self, block: int, positions: int) -> Tensor:
        """The first positions of a block as bytes, zeros for the others: uint8 [block bytes]."""
        kept = [t[block].clone() for t in (*self.keys, *self.values)]
        for tensor in kept:
            tensor[positions:] = 0
        return torch.cat([t.view(torch.uint8).flatten() for t in kept])

    def restore(self, block: int, data: Tensor) -> None:
        """Give a block the contents that `read` gave."""
        stores = [t[block] for t in (*self.keys, *self.values)]
        sizes = [t.numel() * t.element_size() for t in stores]
        for tensor, part in zip(stores, data.split(sizes), strict=True):
            tensor[:] = part.view(tensor.dtype).view_as(tensor)

    def write(self, layer: int, block: Tensor, slot: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep keys and values [token, head, channel] at a block and slot for each token."""
        k, v = (round_heads(t) for t in (k, v)) if self.int8 else (k, v)
        self.keys[layer][block, slot] = k.to(self.keys[layer].dtype)
        self.values[layer][block, slot] = v.to(self.values[layer].dtype)


class Expanded(NamedTuple):
    """A weight kept in blocks (`formats.py`), as the values it stands for: float32 [N, D]."""

    values: Tensor


class LowRank(NamedTuple):
    """A weight and a product of low rank beside it: weight + scale * up down."""

    weight: Tensor  # [N, D]
    down: Tensor  # [rank, D]
    up: Tensor  # [N, rank]
    scale: float

    def linear(self, ops: "ReferenceOps", x: Tensor, bias: Tensor | None) -> Tensor:
        """The product with the sum, which is never made."""
        y = ops.linear(x, self.weight, bias)
        return y + ops.linear(ops.linear(x, self.down), self.up) * self.scale


class ReferenceOps:
    """The op table on torch tensors, for one batch.

    Args:
        batch: the step's work.
        device: where the tensors of the forward pass live.
        cache: paged keys and values, or `None` to attend within the batch only.
    """

    def __init__(self, batch: Batch, device: str = "cpu", cache: Cache | None = None) -> None:
        def index(array) -> Tensor:
            return torch.as_tensor(array, dtype=torch.long, device=device)

        self.ids, self.position = index(batch.ids), index(batch.position)
        self.sequence, self.block_table = index(batch.sequence), index(batch.block_table)
        self.row_index = index(batch.rows)
        self.cache = cache

    def embed(self, table: Tensor | Expanded, *, source: str) -> Tensor:
        table = table.values if isinstance(table, Expanded) else table
        return F.embedding(self.ids if source == "ids" else self.position, table).to(_wide(table))

    def linear(
        self, x: Tensor, weight: Tensor | Expanded | LowRank, bias: Tensor | None = None
    ) -> Tensor:
        """Inputs are rounded to bf16 for bf16 weights; the sum is wide (contracts.md, 2).

        For weights in blocks they are rounded to int8, with one scale for 32 of them.
        """
        if isinstance(weight, LowRank):
            return weight.linear(self, x, bias)
        if isinstance(weight, Expanded):
            return self.linear(round_groups(x), weight.values, bias)
        wide = _wide(weight)
        x = x.to(weight.dtype) if weight.dtype == torch.bfloat16 else x
        return F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))

    def norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        kind: str,
        eps: float,
        heads: int = 1,
    ) -> Tensor:
        y = x.unflatten(-1, (heads, -1))  # [token, head, channel]
        if kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).flatten(-2).to(x.dtype)

    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> Tensor:
        """cos then sin of position * frequency, the product rounded to f32 as transformers does."""
        f = torch.tensor(frequencies, dtype=torch.float32, device=self.position.device)
        turn = (self.position[:, None].float() * f).double()  # [token, pair]
        return (torch.cat([turn.cos(), turn.sin()], -1) * scale).float()

    def rope(self, x: Tensor, angles: Tensor, *, heads: int, layout: str) -> Tensor:
        y = x.unflatten(-1, (heads, -1))  # [token, head, channel]
        turned, kept = y[..., : angles.shape[-1]], y[..., angles.shape[-1] :]
        cos, sin = angles[:, None].to(x.dtype).chunk(2, -1)  # [token, 1, pair]
        if layout == "half":
            a, b = turned.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        return torch.cat([turned, kept], -1).flatten(-2)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        scale: float,
        visible: str = "causal",
        window: int = 0,
        softcap: float = 0.0,
    ) -> Tensor:
        """Softmax over the visible keys, sequence by sequence; write first, then read."""
        q = query.unflatten(-1, (heads, -1))  # [token, head, channel]
        k, v = (t.unflatten(-1, (kv_heads, -1)) for t in (key, value))
        if self.cache is not None:
            self._write(layer, k, v)
        mixed = torch.empty_like(q)
        for s in self.sequence.unique().tolist():
            mine = self.sequence == s
            here = self.position[mine]
            keys, values, there = (
                (k[mine], v[mine], here) if self.cache is None else self._read(layer, s, here)
            )
            back = here[:, None] - there  # [query, key]: how far back the key is
            hidden = (back < 0) | (back >= window) if window else back < 0
            mixed = mixed.index_put((mine,), _attend(q[mine], keys, values, hidden, scale, softcap))
        return mixed.flatten(-2)

    def _write(self, layer: int, k: Tensor, v: Tensor) -> None:
        assert self.cache is not None
        block, slot = self.block_table[self.sequence, self.position // BLOCK], self.position % BLOCK
        self.cache.write(layer, block, slot, k, v)

    def _read(self, layer: int, sequence: int, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.cache is not None
        length = int(here.max()) + 1
        blocks = self.block_table[sequence, : math.ceil(length / BLOCK)]
        stored = (self.cache.keys[layer], self.cache.values[layer])
        k, v = (t[blocks].flatten(0, 1)[:length].float() for t in stored)
        return k, v, torch.arange(length, device=here.device)

    def gate(self, gate: Tensor, up: Tensor, *, activation: str) -> Tensor:
        return self.activate(gate, activation=activation) * up

    def activate(self, x: Tensor, *, activation: str) -> Tensor:
        match activation:
            case "silu":
                return F.silu(x)
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "relu":
                return F.relu(x)
            case "relu2":
                return F.relu(x).square()
        raise AssertionError(activation)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def scale(self, x: Tensor, *, factor: float) -> Tensor:
        return x * factor

    def softcap(self, x: Tensor, *, cap: float) -> Tensor:
        return cap * torch.tanh(x / cap)

    def rows(self, x: Tensor) -> Tensor:
        return x[self.row_index]


def round_groups(x: Tensor) -> Tensor:
    """Each group of 32 along the last axis to whole multiples of its largest size / 127."""
    groups = F.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    return round_heads(groups).flatten(-2)[..., : x.shape[-1]]


def round_heads(x: Tensor) -> Tensor:
    """Values along the last axis to whole multiples of their largest size / 127."""
    most = x.abs().amax(-1, keepdim=True)
    q = (x * (127 / most).nan_to_num(posinf=0)).round()  # half to even
    return q * (most / 127)


def _wide(table: Tensor) -> torch.dtype:
    return torch.float64 if table.dtype == torch.float64 else torch.float32


def _attend(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, softcap: float
) -> Tensor:
    """softmax(scale q k) v of one sequence: q [query, head, channel], k, v [key, kv head, ...]."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.to(q.dtype).repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhc,khc->hqk", q, k) * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    weight = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khc->qhc", weight, v)
