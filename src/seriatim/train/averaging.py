"""An average of the weights over the steps, which often predicts better than the last of them.

Exponential, as in Polyak averaging; at first it forgets faster, so that where the weights began
does not count: decay min(ema, (1 + step) / (10 + step)).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An average beside the weights it is of.

    Args:
        weights: by name; they are read at each `update`.
        decay: 0 keeps none: the average is the weights.

    Example:
        >>> weights = {"w": torch.zeros(1)}
        >>> average = Average(weights, decay=0.5)
        >>> _ = weights["w"].fill_(1.0)
        >>> average.update(step=100)
        >>> with average.applied():
        ...     print(weights["w"].item())
        0.5
    """

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float) -> None:
        self.weights, self.decay = weights, decay
        kept = weights if decay else {}
        self.state = {f"average.{name}": w.detach().clone() for name, w in kept.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step `step` (0 is the first)."""
        if self.decay:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            for name, weight in self.weights.items():
                self.state[f"average.{name}"].lerp_(weight, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average where the weights are, and the weights where it was."""
        for name, kept in self.state.items():
            weight = self.weights[name.removeprefix("average.")]
            before = weight.clone()
            weight.copy_(kept)
            kept.copy_(before)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The weights are their average meanwhile."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()
