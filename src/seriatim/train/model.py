"""A model in training: its weights, drawn from a seed, and the one forward pass over them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seriatim.codecs import Codec
from seriatim.kernels.reference import LowRank
from seriatim.kernels.torch_fast import TorchOps, cross_entropy
from seriatim.models.forward import Apply, head, trunk
from seriatim.models.spec import Spec, weights
from seriatim.train import evaluate
from seriatim.train.adapting import Beside
from seriatim.train.batches import NOTHING, Batch
from seriatim.train.isolated import IsolatedOps
from seriatim.train.report import Score

EMBEDDING_STD = 0.02
HIDDEN_STD = 0.5  # times 1 / sqrt(inputs)
ONE = torch.zeros(1, 1, dtype=torch.int64)
ROWS = TorchOps(ONE)  # for what knows no positions


class Model:
    """Weights of a spec as leaves of the graph, and what they predict.

    Args:
        spec: the model.
        weights: what is learned, by the names of `spec.weights(spec)`; an objective may have
            brought more. With `beside`, its factors.
        beside: weights that stay as they are, and an adapter's place in them.
        device: where to compute.
        precision: of the products: "f32", or "bf16" by autocast.
        recompute: layers are computed again for their gradients: less memory, a third more time.
        compile: layers run through `torch.compile`.
    """

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, Tensor],
        *,
        beside: Beside | None = None,
        device: str = "cpu",
        precision: str = "f32",
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        self.spec, self.device, self.precision = spec, device, precision
        self.weights: Mapping[str, Tensor] = {
            name: w.to(device).requires_grad_() for name, w in weights.items()
        }
        self.around: Apply = lambda layer, index, x: layer(x)  # what each layer runs within
        self.beside, self._recompute = beside, recompute
        if beside is not None:
            beside.to(device)
        self._run = torch.compile(self._trunk, dynamic=False) if compile else self._trunk

    @property
    def used(self) -> Mapping[str, Tensor | LowRank]:
        """What the forward pass reads, by the names of `spec.weights(spec)`."""
        return self.weights if self.beside is None else self.beside.over(self.weights)

    def hidden(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """What the last layer gives [window * position, width].

        Args:
            ids: int64 [window, position].
            segments: [window, position]: with them each document of a window is alone.
        """
        with self.autocast():
            there = None if segments is None else segments.to(self.device)
            return self._run(ids.to(self.device), there)

    def predicted(self, hidden: Tensor) -> Tensor:
        """Logits [window * position, vocab] from what `hidden` gave."""
        with self.autocast():
            return head(ROWS, self.spec, self.used, hidden)

    def logits(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits [window * position, vocab] of `ids` [window, position]."""
        return self.predicted(self.hidden(ids, segments))

    def hidden_of(self, batch: Batch, *, isolate: bool = False) -> Tensor:
        """`hidden` of a batch [row * position, width]; `isolate` keeps each document alone."""
        segments = torch.from_numpy(batch.segments) if isolate else None
        return self.hidden(torch.from_numpy(batch.inputs), segments)

    def nats(self, hidden: Tensor, targets: np.ndarray) -> Tensor:
        """Nats, summed over the targets that there are; on a CPU logits never stand whole.

        Args:
            hidden: what the last layer gave [token, width].
            targets: [token] in any shape; `NOTHING` where there is none.
        """
        wanted, weights = torch.from_numpy(targets).reshape(-1).to(self.device), self.used
        if not (count := int((wanted != NOTHING).sum())):
            return hidden.sum() * 0
        last = weights["embed.weight" if self.spec.tied else "head.weight"]
        if isinstance(last, LowRank):  # an adapter of the head: its logits stand whole
            there = wanted != NOTHING
            return cross_entropy(self.predicted(hidden[there]).float(), wanted[there]) * count
        with self.autocast():
            ops = TorchOps(ONE, head=last, targets=wanted)
            return head(ops, self.spec, weights, hidden) * count

    def autocast(self) -> torch.autocast:
        """Products within are of the model's precision."""
        half = self.precision == "bf16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half)

    def _trunk(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        ops = TorchOps(ids) if segments is None else IsolatedOps(ids, segments)
        return trunk(ops, self.spec, self.used, self._apply)

    def _apply(self, layer: Callable[[Tensor], Tensor], index: int, x: Tensor) -> Tensor:
        if self._recompute and torch.is_grad_enabled():
            layer = partial(checkpoint, layer, use_reentrant=False)
        return self.around(layer, index, x)

    def score(
        self, documents: Sequence[np.ndarray], codec: Codec, *, step: int, most: int | None = None
    ) -> Score:
        """Held-out bits per unit of `documents`, or of `most` of their windows."""
        context = self.spec.context
        return evaluate.score(self.logits, documents, codec, context=context, step=step, most=most)

    def continued(self, before: Sequence[int], codec: Codec, *, seed: int, count: int = 60) -> str:
        """What the model says after the ids `before`."""
        count = min(count, self.spec.context - len(before))
        ids = evaluate.sample(self.logits, before, seed=seed, count=count, codec=codec)
        return codec.render(codec.decode(ids, after=before))["text/plain"]

    def merge(self) -> None:
        """Put what was learned beside the weights into them."""
        assert self.beside is not None
        whole = self.beside.merged(self.weights)
        self.weights = {name: weight.to(self.device) for name, weight in whole.items()}
        self.beside = None

    @torch.no_grad()
    def round(self, store: str) -> None:
        """Give the weights the values that `store` can hold: "f32" changes nothing."""
        if store == "bf16":
            for weight in self.weights.values():
                weight.copy_(weight.bfloat16())

    def clear(self) -> None:
        """Forget the gradients."""
        for weight in self.weights.values():
            weight.grad = None


def initial(
    spec: Spec, *, seed: int, extra: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Norms 1, biases 0, last products 0 (no layer adds anything yet), the rest drawn."""
    return drawn({**weights(spec), **extra}, seed=seed)


def drawn(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    """Weights of these shapes, by the rule of `initial`."""
    draw = torch.Generator().manual_seed(seed)
    return {name: _first(name, shape, draw) for name, shape in shapes.items()}


def _first(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    if name.endswith(("output.weight", "down.weight")):
        return torch.zeros(shape)
    hidden = name.startswith("layers.")
    std = HIDDEN_STD / math.sqrt(shape[1]) if hidden else EMBEDDING_STD
    return torch.randn(shape, generator=draw) * std
