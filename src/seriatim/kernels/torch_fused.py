"""Element-wise ops of training with their gradients, in pieces that stay in a CPU's cache.

Each array is read from memory once for all that is done with it on the way forward, and once on
the way back, where torch's own forms read and write it at every step.
"""

from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 18  # numbers worked on at once: 1 MB of f32, and a few such arrays
LOGITS = 1 << 20  # logits worked on at once: 4 MB stay in cache, and keep their products large
silu = torch.ops.aten.silu.out


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of one shape; nothing but the inputs is kept for the way back."""
    return _Gate.apply(gate.contiguous(), up.contiguous())


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        for a, b, out in _pieces(gate, up, y):
            silu(a, out=out).mul_(b)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        into, one = (torch.empty_like(gate), torch.empty_like(up)), gate.new_ones(())
        for g, a, b, da, db in _pieces(grads[0].contiguous(), gate, up, *into):
            share = torch.sigmoid(a)
            torch.mul(a, share, out=db)  # silu
            torch.lerp(share, one, db, out=da).mul_(g).mul_(b)  # its slope: s + silu (1 - s)
            db.mul_(g)
        return into


def _pieces(*arrays: Tensor) -> Any:
    return zip(*(x.view(-1).split(PIECE) for x in arrays), strict=True)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """x / sqrt(mean of squares + eps) * weight, along the last axis (arXiv:1910.07467)."""
    return _Norm.apply(x.contiguous(), weight, eps)


class _Norm(torch.autograd.Function):
    """With r = 1 / rms: dx = r (g w) - x r^3 mean(g w x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = torch.empty_like(x)
        rms = x.new_empty(*x.shape[:-1], 1)
        for part, r, out in _rows(x.shape[-1], x, rms, y):
            torch.linalg.vector_norm(part, dim=-1, keepdim=True, out=r)
            r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            torch.mul(part, r, out=out).mul_(weight)
        ctx.save_for_backward(x, weight, rms)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rms = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        for g, part, r, out in _rows(x.shape[-1], grads[0].contiguous(), x, rms, dx):
            torch.mul(g, part, out=out)
            dw.addmv_(out.mT, r[:, 0])
            share = torch.mv(out, weight)[:, None].mul_(r).mul_(r).div_(-x.shape[-1])
            torch.mul(g, weight, out=out).addcmul_(part, share).mul_(r)
        return dx, dw, None


def _rows(width: int, *arrays: Tensor) -> Any:
    some = max(1, PIECE // width)
    return zip(*(x.view(-1, x.shape[-1]).split(some) for x in arrays), strict=True)


def head_loss(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Mean nats per id of the last product's logits, which never stand whole.

    Args:
        x: [token, width].
        weight, bias: [vocab, width], [vocab].
        targets: int64 [token].

    Example:
        >>> table = torch.zeros(4, 2, requires_grad=True)
        >>> round(head_loss(torch.ones(3, 2), table, None, torch.tensor([0, 1, 3])).item(), 4)
        1.3863
    """
    return _HeadLoss.apply(x, weight, bias, targets)


class _HeadLoss(torch.autograd.Function):
    """The gradients are made on the way forward, while a piece of logits is in cache."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        losses = torch.empty_like(targets, dtype=_wide(x))
        dx = torch.empty_like(x)
        dw = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # an adapter's is frozen
        db = None if bias is None else torch.zeros_like(bias)
        for at in range(0, len(x), some := max(1, LOGITS // len(weight))):
            piece = slice(at, at + some)
            logits = torch.nn.functional.linear(x[piece], weight, bias).to(losses.dtype)
            losses[piece] = _gradient(logits, targets[piece], len(x))
            if any(ctx.needs_input_grad):
                _spread(logits, x[piece], weight, (dx[piece], dw, db))
        ctx.save_for_backward(dx, dw, db)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if t is None else t * grads[0] for t in ctx.saved_tensors), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _spread(
    push: Tensor, x: Tensor, weight: Tensor, into: tuple[Tensor, Tensor | None, Tensor | None]
) -> None:
    """Add what logits' gradient `push` [token, vocab] means for x, weight and bias."""
    dx, dw, db = into
    dx.copy_(push @ weight)
    if dw is not None and torch.is_autocast_enabled(x.device.type):  # no products in place there
        dw += push.mT @ x
    elif dw is not None:
        dw.addmm_(push.mT, x)
    if db is not None:
        db += push.sum(0)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per id; *overwrites* `logits` [token, vocab] with their gradient to save memory.

    Args:
        logits: [token, vocab], the last value of the forward pass and used nowhere else.
        targets: int64 [token].
    """
    return _CrossEntropy.apply(logits, targets)


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradient in one walk over the largest array of the step, in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        some = max(1, LOGITS // logits.shape[1])
        pairs = zip(logits.split(some), targets.split(some), strict=True)
        losses = torch.cat([_gradient(rows, wanted, len(targets)) for rows, wanted in pairs])
        ctx.save_for_backward(logits)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits = ctx.saved_tensors[0]
        return logits if grads[0] == 1 else logits * grads[0], None


def _gradient(logits: Tensor, targets: Tensor, count: int) -> Tensor:
    """Nats [token]; `logits` [token, vocab] become the gradient of the sum of nats / `count`."""
    logits -= logits.amax(-1, keepdim=True)
    picked = logits.gather(1, targets[:, None])
    total = logits.exp_().sum(-1, keepdim=True)
    logits /= total * count
    logits.scatter_add_(1, targets[:, None], torch.full_like(total, -1 / count))
    return (total.log() - picked)[:, 0]
