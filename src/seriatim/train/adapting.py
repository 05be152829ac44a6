"""An adapter in training: factors of low rank, learned beside weights that stay as they are.

Hu et al. 2021, arXiv:2106.09685: A is drawn as `kaiming_uniform(a=sqrt(5))` does, B is 0, so that
the first step starts from the base itself.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from seriatim.kernels.reference import LowRank
from seriatim.kernels.torch_runtime import tensor
from seriatim.models.checkpoint import Checkpoint
from seriatim.models.lora import Pair, matching, modules, summed
from seriatim.models.peft import DOWN, UP, Adapter, config

Weights = dict[str, Tensor]


def new(
    base: Checkpoint,
    *,
    name: str,
    targets: list[str] | None,
    rank: int,
    alpha: float,
    seed: int,
) -> Adapter:
    """An adapter that changes nothing yet.

    Args:
        base: what it is for.
        name: what its config calls the base.
        targets: ends of names of matrices; default: all of attention and MLP.
        rank, alpha: of every pair; the product is scaled by alpha / rank.
        seed: of A.

    Raises:
        ModelError: a target that is no matrix of the model.
    """
    known = modules(base)
    layered = {module.name.rpartition(".")[2] for module in known.values() if _layered(module.key)}
    targets = sorted(layered) if targets is None else targets
    draw = torch.Generator().manual_seed(seed)
    pairs = []
    for chosen in sorted(matching(targets, known)):
        outer, inner = known[chosen].shape
        drawn = torch.rand(rank, inner, generator=draw).mul_(2).sub_(1).div_(math.sqrt(inner))
        up = np.zeros((outer, rank), np.float32)
        pairs.append(Pair(known[chosen], drawn.numpy(), up, alpha / rank))
    turned = any(pair.module.turned for pair in pairs)
    alpha = int(alpha) if alpha == int(alpha) else alpha
    return Adapter(tuple(pairs), config(name, targets, rank, alpha, turned=turned))


class Beside:
    """Frozen weights, and where in them the factors that are learned belong.

    Args:
        adapter: as it is at first.
        weights: of the base, float32, by the names of `spec.weights(spec)`.
    """

    def __init__(self, adapter: Adapter, weights: Mapping[str, Tensor]) -> None:
        self.adapter, self.weights = adapter, dict(weights)
        self.places = {
            name: (pair, rows) for pair in adapter.pairs for name, rows in pair.module.parts.items()
        }

    def to(self, device: str) -> None:
        """Move the frozen weights."""
        self.weights = {name: weight.to(device) for name, weight in self.weights.items()}

    @property
    def factors(self) -> Weights:
        """The factors as they are at first: A [rank, in] and B [out, rank] of each matrix."""
        found: Weights = {}
        for pair in self.adapter.pairs:
            key = pair.module.key
            found |= {key + DOWN: tensor(pair.down), key + UP: tensor(pair.up)}
        return found

    def over(self, factors: Mapping[str, Tensor]) -> Mapping[str, Tensor | LowRank]:
        """What the forward pass reads; factors are looked up as it comes to them."""
        return _Over(self, factors)

    def now(self, factors: Mapping[str, Tensor]) -> Adapter:
        """The adapter with what was learned."""
        held = {name: factor.detach().cpu().numpy() for name, factor in factors.items()}
        pairs = (
            replace(pair, down=held[pair.module.key + DOWN], up=held[pair.module.key + UP])
            for pair in self.adapter.pairs
        )
        return replace(self.adapter, pairs=tuple(pairs))

    def merged(self, factors: Mapping[str, Tensor]) -> Weights:
        """All weights with what was learned in them: as `seriatim.load` merges it."""
        arrays = {name: weight.cpu().numpy() for name, weight in self.weights.items()}
        whole = summed(arrays, self.now(factors).pairs)
        return {name: torch.from_numpy(np.asarray(array)) for name, array in whole.items()}


class _Over(Mapping[str, Tensor | LowRank]):
    """Weights by name, with the factors beside some."""

    def __init__(self, beside: Beside, factors: Mapping[str, Tensor]) -> None:
        self._beside, self._factors = beside, factors

    def __getitem__(self, name: str) -> Tensor | LowRank:
        weight, place = self._beside.weights[name], self._beside.places.get(name)
        if place is None:
            return weight
        pair, rows = place
        down, up = (self._factors[pair.module.key + side] for side in (DOWN, UP))
        return LowRank(weight, down, up[rows], pair.scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._beside.weights)

    def __len__(self) -> int:
        return len(self._beside.weights)


def _layered(key: str) -> bool:
    return key.startswith("layers.")
