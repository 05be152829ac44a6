"""What a model learns from a batch: each file is an objective, registered by being there.

Such a file has a function `objective(options, codec)` that gives an `Objective`; the options have
the context and the batch that the run will have. It may have `reader(start)`, which makes of a
codec one that reads conversations instead of text. Whatever an objective draws it draws from
(seed, number of the row): then no resumed, accumulated or divided run differs.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from seriatim.models.spec import Spec
from seriatim.train.batches import Batch
from seriatim.train.model import Model


class Objective(Protocol):
    """From a batch to a loss."""

    @property
    def room(self) -> int:
        """Ids that `prepare` may add to each document of a row."""
        ...

    def extra(self, spec: Spec) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of weights that it needs beside those of the model."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """What is computed instead of a batch of the data, of the same shape."""
        ...

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Nats, summed over the targets of a prepared batch: the loop divides by their number."""
        ...
