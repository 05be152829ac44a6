"""The next id: the objective that every model here is scored by."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from seriatim.codecs import Codec
from seriatim.models.spec import Spec
from seriatim.train.batches import Batch
from seriatim.train.model import Model
from seriatim.train.options import Options


@dataclass(frozen=True)
class Next:
    """-log p(id | all before it in its row), or in its document alone."""

    isolate: bool = False
    room = 0

    def extra(self, spec: Spec) -> Mapping[str, tuple[int, ...]]:
        return {}

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return model.nats(model.hidden_of(batch, isolate=self.isolate), batch.targets)


def objective(options: Options, codec: Codec) -> Next:
    """Of a run's options."""
    return Next(options.isolate)
