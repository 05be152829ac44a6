"""Weights, gradients and optimizer state divided over the ranks, by FSDP2's `fully_shard`.

Each rank keeps some rows of every weight. FSDP2 brings those of a layer together while it is
computed; what works element by element (AdamW, averages, clipping) sees only a rank's own rows.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import ModuleList

from seriatim.models.forward import Apply
from seriatim.train.batches import Batch
from seriatim.train.holder import Holder, View
from seriatim.train.model import Model
from seriatim.train.optim import orthogonal

Sums = Callable[..., list[float]]


def split(length: int, ranks: int) -> list[int]:
    """How many rows of `length` each rank keeps: those of FSDP2, which are those of `chunk`.

    Example:
        >>> split(5, 2), split(1, 2)
        ([3, 2], [1, 0])
    """
    each = -(-length // ranks)
    return [max(0, min(each, length - rank * each)) for rank in range(ranks)]


class Sharded:
    """The layout of `parallel.Layout` in which each rank keeps rows of every weight.

    Args:
        model: its weights are divided, and it computes with them from now on.
        loss: of a part of a batch, by the model.
        rank, size: which one this is, of how many.
        sums: numbers summed over the ranks.
    """

    def __init__(
        self,
        model: Model,
        loss: Callable[[Batch], Tensor],
        *,
        rank: int,
        size: int,
        sums: Sums,
    ) -> None:
        self.shapes = {name: weight.shape for name, weight in model.weights.items()}
        self._model, self._loss, self._sums = model, loss, sums
        self._rank, self._size = rank, size
        mesh = init_device_mesh(torch.device(model.device).type, (size,))
        layers = [Holder(_below(model.weights, n)) for n in range(len(model.spec.layers))]
        self._root = Holder({n: w for n, w in model.weights.items() if _layer(n) is None})
        self._root.layers = ModuleList(layers)
        for module in (*layers, self._root):
            fully_shard(module, mesh=mesh)
        holders = {
            name: self._root if (n := _layer(name)) is None else layers[n] for name in self.shapes
        }
        model.weights, model.around = View(holders), _around(layers)
        with torch.no_grad():
            self.own = {name: cast(DTensor, w).to_local() for name, w in model.weights.items()}

    def backward(self, part: Batch, learned: int, *, last: bool) -> Tensor:
        """Every part's gradients are summed at once: kept whole they would take a model's room."""
        loss = self._root(self._loss, part) / learned
        (loss * self._size).backward()
        return loss.detach()

    def clip(self, limit: float) -> float:
        for name, weight in self._model.weights.items():
            self.own[name].grad = cast(DTensor, weight.grad).to_local()
        mine = [cast(Tensor, own.grad) for own in self.own.values()]
        norm = sqrt(self._sums(torch.nn.utils.get_total_norm(mine).item() ** 2)[0])
        every = torch.tensor(norm, device=mine[0].device)
        torch.nn.utils.clip_grads_with_norm_(self.own.values(), limit, every)
        return norm

    def turned(self, moves: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Each rank turns its share of the matrices, which come to it whole and go back."""
        rows, columns, rank = split(shape[0], self._size), shape[1], self._rank
        ends = [len(moves) * n // self._size for n in range(self._size + 1)]
        shares = [end - start for start, end in pairwise(ends)]
        sent = [share * rows[rank] * columns for share in shares]
        taken = [shares[rank] * count * columns for count in rows]

        flat = torch.stack(list(moves)).reshape(-1)  # [matrix, own row, column]
        there = _exchanged(flat, sent, taken).split(taken)
        parts = [p.view(shares[rank], n, columns) for p, n in zip(there, rows, strict=True)]
        whole = torch.cat(parts, dim=1)  # [own matrix, row, column]
        done = orthogonal(whole) if len(whole) else whole
        back = torch.cat([part.reshape(-1) for part in done.split(rows, dim=1)])
        return _exchanged(back, taken, sent).view(len(moves), rows[rank], columns)

    def whole(self) -> Model | None:
        """Weight by weight, so that other ranks never hold more than one of them."""
        model, found = self._model, {}
        with torch.no_grad():
            for name, weight in model.weights.items():
                full = cast(DTensor, weight).full_tensor()
                if self._rank == 0:
                    found[name] = full
        if self._rank:
            return None
        kept: dict[str, Any] = {"device": model.device, "precision": model.precision}
        return Model(model.spec, found, beside=model.beside, **kept)


def part(whole: Tensor, rank: int, size: int) -> Tensor:
    """The rows of a weight that a rank keeps."""
    return whole.split(split(len(whole), size))[rank]


def _exchanged(flat: Tensor, sent: Sequence[int], taken: Sequence[int]) -> Tensor:
    """What other ranks sent here: numbers [taken], for those [sent] from here."""
    there = flat.new_empty(sum(taken))
    dist.all_to_all_single(there, flat, list(taken), list(sent))
    return there


def _layer(name: str) -> int | None:
    """The layer that a weight belongs to."""
    kind, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if kind == "layers" else None


def _below(weights: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights.items() if _layer(name) == layer}


def _around(layers: Sequence[Holder]) -> Apply:
    return lambda layer, index, x: layers[index](layer, x)
