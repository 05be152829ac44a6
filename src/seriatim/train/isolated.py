"""Ops for rows of several documents that must not see each other: attention and positions restart.

Slower than `TorchOps`: attention under a mask of a row by a row is not the fused causal form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.reference import ReferenceOps
from seriatim.kernels.torch_fast import TorchOps


class IsolatedOps(TorchOps):
    """The op table for B rows of L ids, each of several documents in order.

    Args:
        ids: int64 [row, position].
        segments: int64 [row, position], the number of the document, which never falls.

    Example:
        >>> ops = IsolatedOps(torch.tensor([[3, 1, 2, 0]]), torch.tensor([[0, 0, 1, 1]]))
        >>> ops.position.tolist()
        [0, 1, 0, 1]
    """

    def __init__(self, ids: Tensor, segments: Tensor) -> None:
        super().__init__(ids)
        begins = torch.zeros_like(segments)
        begins[:, 1:] = torch.where(segments[:, 1:] != segments[:, :-1], self.span[1:], 0)
        self.position = (self.span - begins.cummax(1).values).reshape(-1)
        self.sequence = self.sequence * self.length + segments.reshape(-1)
        same = segments[:, :, None] == segments[:, None, :]  # [row, position, position]
        self.seen = torch.tril(same)[:, None]

    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> Tensor:
        """Angles of every id [token, A]: positions differ between rows."""
        f = torch.tensor(frequencies, dtype=torch.float32, device=self.position.device)
        turns = (self.position[:, None].float() * f).double()  # [token, pair]
        return (torch.cat([turns.cos(), turns.sin()], -1) * scale).float()

    def rope(self, x: Tensor, angles: Tensor, *, heads: int, layout: str) -> Tensor:
        return ReferenceOps.rope(self, x, angles, heads=heads, layout=layout)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if options.get("window") or options.get("softcap"):
            return super().attention(query, key, value, **options)
        heads, kv_heads = options["heads"], options["kv_heads"]
        q, k, v = (
            self._split(x, n) for x, n in ((query, heads), (key, kv_heads), (value, kv_heads))
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.seen, scale=options["scale"], enable_gqa=heads != kv_heads
        )
        return mixed.transpose(1, 2).reshape(query.shape)
