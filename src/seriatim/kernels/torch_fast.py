"""Fast differentiable forms of the ops for equal-length sequences: what training runs.

Every form is tested against `reference.py`, values and gradients, and falls back to it for what it
does not cover. It is not the invariant form: no cache, no paging, torch's own order of additions.
What is fused for a CPU is in `torch_attention.py` and `torch_fused.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.reference import Expanded, LowRank, ReferenceOps
from seriatim.kernels.torch_attention import causal_attention
from seriatim.kernels.torch_fused import cross_entropy as cross_entropy
from seriatim.kernels.torch_fused import head_loss, rms_norm, silu_gate


class TorchOps(ReferenceOps):
    """The op table for B sequences of L ids, each from position 0, with a logit for every id.

    Args:
        ids: int64 [sequence, position], on the device where the forward pass runs.
        head, targets: the weight of the last product, and int64 [token], below 0 where there is
            nothing to learn. With them the forward pass gives the loss, mean nats per target,
            instead of logits, which never stand whole.

    Example:
        >>> ops = TorchOps(torch.tensor([[3, 1], [2, 0]]))
        >>> ops.embed(torch.eye(4), source="ids").argmax(-1).tolist()
        [3, 1, 2, 0]
    """

    def __init__(
        self, ids: Tensor, *, head: Tensor | None = None, targets: Tensor | None = None
    ) -> None:
        self.head, self.targets = head, targets
        self.count, self.length = ids.shape
        self.ids, device = ids.reshape(-1), ids.device
        self.span = torch.arange(self.length, device=device)
        self.position = self.span.repeat(self.count)
        self.sequence = torch.arange(self.count, device=device).repeat_interleave(self.length)
        self.cache = None

    def linear(
        self, x: Tensor, weight: Tensor | Expanded | LowRank, bias: Tensor | None = None
    ) -> Tensor:
        """One product in the weight's type; under `torch.autocast` in the type it chooses."""
        if isinstance(weight, Expanded | LowRank):
            return super().linear(x, weight, bias)
        if weight is self.head and self.targets is not None:
            return head_loss(x, weight, bias, self.targets[self.targets >= 0])
        return F.linear(x, weight, bias)

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
        shape = y.shape[-1:]
        if kind == "layer":
            return F.layer_norm(y, shape, weight, bias, eps).flatten(-2).to(x.dtype)
        if bias is not None:
            return super().norm(x, weight, bias, kind=kind, eps=eps, heads=heads)
        if weight is not None and _wide(x) and _fused(x):
            return rms_norm(y, weight, eps=eps).flatten(-2)
        return F.rms_norm(y, shape, weight, eps).flatten(-2).to(x.dtype)

    def rotary(self, frequencies: tuple[float, ...], *, scale: float) -> Tensor:
        """Angles of one sequence [position, A]: the others turn by the same."""
        f = torch.tensor(frequencies, dtype=torch.float32, device=self.span.device)
        turn = (self.span[:, None].float() * f).double()  # [position, pair]
        return (torch.cat([turn.cos(), turn.sin()], -1) * scale).float()

    def rope(self, x: Tensor, angles: Tensor, *, heads: int, layout: str) -> Tensor:
        if layout != "half" or angles.shape[-1] * heads != x.shape[-1]:
            return super().rope(x, angles.repeat(self.count, 1), heads=heads, layout=layout)
        cos, sin = angles[:, None].to(x.dtype).chunk(2, -1)  # [position, 1, pair]
        y = x.view(self.count, self.length, heads, -1)
        return _Turn.apply(y, cos, sin).view_as(x)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if options.get("window") or options.get("softcap"):
            return super().attention(query, key, value, **options)
        heads, kv_heads = options["heads"], options["kv_heads"]
        if all(_wide(x) and _fused(x) for x in (query, key, value)):
            shape = (self.count, self.length, kv_heads)
            q = query.reshape(*shape, heads // kv_heads, -1)
            k, v = key.reshape(*shape, -1), value.reshape(*shape, -1)
            return causal_attention(q, k, v, scale=options["scale"]).view(query.shape)
        q, k, v = (
            self._split(query, heads),
            self._split(key, kv_heads),
            self._split(value, kv_heads),
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options["scale"], enable_gqa=heads != kv_heads
        )
        return mixed.transpose(1, 2).reshape(query.shape)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[token, head * channel] as [sequence, head, position, channel]."""
        return x.view(self.count, self.length, heads, -1).transpose(1, 2)

    def gate(self, gate: Tensor, up: Tensor, *, activation: str) -> Tensor:
        if activation == "silu" and _fused(gate):
            return silu_gate(gate, up)
        return super().gate(gate, up, activation=activation)

    def rows(self, x: Tensor) -> Tensor:
        """Every row, or those that have a target."""
        if self.targets is None or (there := self.targets >= 0).all():
            return x
        return x[there]


def _fused(x: Tensor) -> bool:
    """Whether the forms for a CPU are the fast ones; `torch.compile` makes its own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _wide(x: Tensor) -> bool:
    """Whether sums may be taken in x's own type."""
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


class _Turn(torch.autograd.Function):
    """Rotary turn of all channels, halves paired: its gradient is the turn backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    y = torch.empty_like(x)
    ya, yb = y.chunk(2, -1)
    torch.mul(a, cos, out=ya).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=yb).addcmul_(a, sin)
    return y
