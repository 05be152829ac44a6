"""Causal attention on a CPU by blocks of queries: for training, equal lengths, plain softmax.

Torch's own form for a CPU multiplies head by head; this one keeps products large and their scores
in cache, and takes 0.65 to 0.95 of its processor time (LOG.md).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

QUERIES = 64  # positions in a block: more waste products above the diagonal, fewer are slow
SCORES = 1 << 19  # of a block's scores at once: 2 MB of f32, and two such arrays stay in cache

Block = tuple[slice, slice, Tensor]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k) v over the keys up to each query's position.

    Args:
        query: [sequence, position, kv head, query head of it, channel].
        key, value: [sequence, position, kv head, channel].

    Example:
        >>> x = torch.eye(2).view(1, 2, 1, 2)
        >>> causal_attention(x[:, :, :, None], x, x, scale=0.0).flatten().tolist()
        [1.0, 0.0, 0.5, 0.5]
    """
    return _Causal.apply(query, key, value, scale)


class _Causal(torch.autograd.Function):
    """Keeps no scores: the way back computes them again, which costs one product of seven."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        mixed = torch.empty_like(query)
        for some in _groups(query):
            q, k, v = (_flat(t[some]) for t in (query, key, value))
            y = torch.empty_like(q)
            for rows, seen, mask in _blocks(query):
                shares = _shares(q[:, rows], k[:, seen], mask, scale)
                y[:, rows] = torch.bmm(shares, v[:, seen])
            _put(y, mixed[some])
        ctx.save_for_backward(query, key, value, mixed)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed = ctx.saved_tensors
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for some in _groups(query):
            q, k, v, y, g = (_flat(t[some]) for t in (query, key, value, mixed, grads[0]))
            into = _pushed(q, k, v, y, g, _blocks(query), ctx.scale)
            for part, whole in zip(into, found, strict=True):
                _put(part, whole[some])
        return *found, None


def _pushed(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, g: Tensor, blocks: Iterator[Block], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [batch, row, channel], given that g of the output y."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    inner = -torch.linalg.vecdot(g, y)[..., None]  # what softmax takes off each row
    for rows, seen, mask in blocks:
        shares = _shares(q[:, rows], k[:, seen], mask, scale)
        dv[:, seen].baddbmm_(shares.mT, g[:, rows])
        push = torch.baddbmm(inner[:, rows], g[:, rows], v[:, seen].mT).mul_(shares)
        dq[:, rows] = _product(push, k[:, seen], scale)
        dk[:, seen].baddbmm_(push.mT, q[:, rows], alpha=scale)
    return dq, dk, dv


def _groups(query: Tensor) -> Iterator[slice]:
    """Sequences that are worked on at once."""
    count, length, kv_heads, group, _ = query.shape
    some = max(1, SCORES // (QUERIES * length * kv_heads * group))
    return (slice(at, at + some) for at in range(0, count, some))


def _blocks(query: Tensor) -> Iterator[Block]:
    """Rows of queries, positions of the keys that they see, what hides keys of their own block."""
    length, group = query.shape[1], query.shape[3]
    hidden = query.new_full((QUERIES, QUERIES), -torch.inf).triu_(1).repeat_interleave(group, 0)
    for begin in range(0, length, QUERIES):
        end = min(begin + QUERIES, length)
        yield (
            slice(begin * group, end * group),
            slice(end),
            hidden[: (end - begin) * group, : end - begin],
        )


def _flat(x: Tensor) -> Tensor:
    """[sequence, position, kv head, ..., channel] as [sequence * kv head, position * ..., channel],
    without a copy where the heads allow."""
    return x.transpose(1, 2).flatten(2, -2).flatten(0, 1)


def _put(x: Tensor, into: Tensor) -> None:
    """Undo `_flat`."""
    turned = into.transpose(1, 2)
    turned.copy_(x.view(turned.shape))


def _shares(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax of the scores [batch, row, key]; `mask` is added to those of the last keys."""
    scores = _product(q, k.mT, scale)
    scores[..., -mask.shape[1] :] += mask
    return torch.softmax(scores, -1, out=scores)


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(x.new_empty(()), x, y, beta=0, alpha=scale)
