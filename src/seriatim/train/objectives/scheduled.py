"""The next id after prefixes that are partly the model's own: scheduled sampling in two passes.

The first pass, without gradient, predicts every id from the data; some inputs are replaced by what
is sampled there, and the second pass learns the data's targets from the mixture. So the whole row
is computed at once (Mihaylova & Martins 2019, arXiv:1906.07651) where Bengio et al. 2015
(arXiv:1506.03099) sample one id after another: a replaced id was sampled after the data alone.
"""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from seriatim.codecs import Codec
from seriatim.kernels.mathematics import philox
from seriatim.train.batches import NOTHING, Batch
from seriatim.train.model import Model
from seriatim.train.objectives.next import Next
from seriatim.train.options import Options


@dataclass(frozen=True, kw_only=True)
class Scheduled(Next):
    """-log p(id | a prefix whose ids the model gave with a probability that rises).

    Attributes:
        seed: of what is replaced, and by what.
        share: of the inputs, once it is reached; the first of a document's piece stays.
        ramp: steps in which it rises in a line, from 0 at the first.
        rows: of a step: how many steps were done follows from the number of a row.
    """

    seed: int
    share: float
    ramp: int
    rows: int

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return super().loss(model, self.mixed(model, batch))

    @torch.no_grad()
    def mixed(self, model: Model, batch: Batch) -> Batch:
        """The batch with some inputs sampled from what the model predicts there."""
        share = self.share * np.minimum(1, batch.numbers // self.rows / self.ramp)
        if not share.any():  # in a step for no row: ranks that share layers pass through them alike
            return batch
        uniforms = noise(self.seed, batch.numbers, batch.inputs.shape[1])  # [row, position, 2]
        chosen = (uniforms[..., 0] < share[:, None]) & _predicted(batch)
        before = torch.from_numpy(np.flatnonzero(chosen) - 1).to(model.device)
        hidden = model.hidden_of(batch, isolate=self.isolate)[before]
        inputs = batch.inputs.copy()
        inputs[chosen] = _sampled(model.predicted(hidden), uniforms[chosen, 1])
        return replace(batch, inputs=inputs)


def noise(seed: int, numbers: np.ndarray, context: int) -> np.ndarray:
    """Two uniforms in (0, 1) for each position, whatever else is computed.

    Philox of the engine's law of seed (contracts.md, 10), with the row in the place of the sample:
    counter (position, low and high half of the row's number, 1), the first two words.

    Args:
        numbers: int64 [row].

    Returns:
        float64 [row, position, 2].
    """
    counter = np.ones((len(numbers), context, 4), np.uint32)
    counter[..., 0] = np.arange(context)
    counter[..., 1] = (numbers & 0xFFFFFFFF)[:, None]
    counter[..., 2] = (numbers >> 32)[:, None]
    words = philox(counter.reshape(-1, 4), seed)[:, :2]
    return ((words + 0.5) / 2**32).reshape(len(numbers), context, 2)


def _predicted(batch: Batch) -> np.ndarray:
    """Where the id before an input is of its document, so that it is predicted [row, position]."""
    inside = batch.segments[:, 1:] == batch.segments[:, :-1]
    return np.pad(inside, ((0, 0), (1, 0))) & (batch.targets != NOTHING)


def _sampled(logits: Tensor, uniforms: np.ndarray) -> np.ndarray:
    """The id at which the distribution function passes each uniform: int64 [token]."""
    sums = logits.double().softmax(-1).cumsum(-1)
    passed = torch.from_numpy(uniforms).to(sums.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, passed, right=True)[:, 0].cpu().numpy()


def objective(options: Options, codec: Codec) -> Scheduled:
    """Of a run's options."""
    return Scheduled(
        seed=options.seed,
        share=options.own_share,
        ramp=cast(int, options.own_ramp),
        rows=cast(int, options.batch),
        isolate=options.isolate,
    )
