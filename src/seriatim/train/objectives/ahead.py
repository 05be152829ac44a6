"""Several ids at once: the next, and by a head each those that follow it (`models/ahead.py`).

Gloeckle et al. 2024 (arXiv:2404.19737) train heads beside the model for the sake of what all layers
learn; what is learned here of an id k further on counts weight^(k - 1). The model remains one that
predicts the next id; its heads are written beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint

from seriatim.codecs import Codec
from seriatim.errors import RequestError
from seriatim.models.ahead import names, shapes
from seriatim.models.spec import Spec
from seriatim.train.batches import NOTHING, Batch
from seriatim.train.model import Model
from seriatim.train.objectives.next import Next
from seriatim.train.options import Options


@dataclass(frozen=True, kw_only=True)
class Ahead(Next):
    """-log p(next id) and, weighted, that of each of `count` ids beyond it.

    Attributes:
        count: how many heads.
        weight: of a head's loss, against that of the id before its own.
    """

    count: int
    weight: float

    def extra(self, spec: Spec) -> Mapping[str, tuple[int, ...]]:
        return shapes(self.count, spec.width)

    def loss(self, model: Model, batch: Batch) -> Tensor:
        hidden = model.hidden_of(batch, isolate=self.isolate)
        nats = model.nats(hidden, batch.targets)
        for k in range(2, 2 + self.count):
            # Computed again when its gradient is due: of all heads one has its logits in memory.
            further = checkpoint(_nats, model, hidden, batch, k, use_reentrant=False)
            nats = nats + self.weight ** (k - 1) * cast(Tensor, further)
        return nats


def targets(batch: Batch, k: int) -> np.ndarray:
    """The id `k` after each input: int64 [row, position], -1 beyond its document or its row.

    Example:
        >>> row = np.array([[1, 2, 3, 4]])
        >>> batch = Batch(row, row + 1, np.array([[0, 0, 0, 1]]), np.array([0]))
        >>> targets(batch, 2).tolist()
        [[3, 4, -1, -1]]
    """
    found, shift = np.full_like(batch.targets, NOTHING), k - 1
    kept = slice(0, max(0, found.shape[1] - shift))
    same = batch.segments[:, kept] == batch.segments[:, shift:]
    found[:, kept] = np.where(same, batch.targets[:, shift:], NOTHING)
    return found


def _nats(model: Model, hidden: Tensor, batch: Batch, k: int) -> Tensor:
    """Nats of head `k`, summed over its targets."""
    weight, bias = (model.weights[name] for name in names(k))
    with model.autocast():
        hidden = hidden + silu(linear(hidden, weight, bias))
    return model.nats(hidden, targets(batch, k))


def objective(options: Options, codec: Codec) -> Ahead:
    """Of a run's options.

    Raises:
        RequestError: more ids than fit into a row.
    """
    most = cast(int, options.context) - 1
    if options.ahead > most:
        expected = f"at most {most}: a row has {most + 1} ids"
        raise RequestError(f"ahead is {options.ahead}", expected=expected)
    return Ahead(count=options.ahead, weight=options.ahead_weight, isolate=options.isolate)
