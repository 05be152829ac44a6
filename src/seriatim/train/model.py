"""A model in training: its weights, drawn from a seed, and the one forward pass over them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from seriatim.codecs import Codec
from seriatim.kernels.torch_fast import TorchOps, cross_entropy
from seriatim.models.forward import forward
from seriatim.models.spec import Spec, weights
from seriatim.train import evaluate
from seriatim.train.batches import NOTHING, Batch
from seriatim.train.isolated import IsolatedOps
from seriatim.train.report import Score

EMBEDDING_STD = 0.02
HIDDEN_STD = 0.5  # times 1 / sqrt(inputs)


class Model:
    """Weights of a spec as leaves of the graph.

    Args:
        precision: of the products: "f32", or "bf16" by autocast.
    """

    def __init__(self, spec: Spec, *, seed: int, device: str = "cpu", precision: str = "f32"):
        self.spec, self.device, self.precision = spec, device, precision
        self.weights = initial(spec, seed=seed, device=device)

    def logits(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits [window * position, vocab] of `ids` [window, position].

        With `segments` [window, position] each document of a window is alone.
        """
        half, ids = self.precision == "bf16", ids.to(self.device)
        ops = TorchOps(ids) if segments is None else IsolatedOps(ids, segments.to(self.device))
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half):
            return forward(ops, self.spec, self.weights)

    def loss(self, batch: Batch, *, isolate: bool = False) -> Tensor:
        """Mean nats per target of `batch`; `isolate` keeps attention within its documents."""
        inputs, targets, segments = map(
            torch.from_numpy, (batch.inputs, batch.targets, batch.segments)
        )
        logits = self.logits(inputs, segments if isolate else None).float()
        wanted = targets.reshape(-1)
        if not (there := wanted != NOTHING).all():
            logits, wanted = logits[there.to(self.device)], wanted[there]
        return cross_entropy(logits, wanted.to(self.device))

    def score(
        self, documents: Sequence[np.ndarray], codec: Codec, *, step: int, most: int | None = None
    ) -> Score:
        """Held-out bits per unit of `documents`, or of `most` of their windows."""
        context = self.spec.context
        return evaluate.score(self.logits, documents, codec, context=context, step=step, most=most)

    def continued(self, prompt: str, codec: Codec, *, seed: int, count: int = 60) -> str:
        """What the model says after `prompt`."""
        before = codec.prompt(prompt)
        count = min(count, self.spec.context - len(before))
        ids = evaluate.sample(self.logits, before, seed=seed, count=count, ends=codec.ends)
        return codec.render(codec.decode(ids, after=before))["text/plain"]

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


def initial(spec: Spec, *, seed: int, device: str = "cpu") -> Mapping[str, Tensor]:
    """Norms 1, biases 0, last products 0 (no layer adds anything yet), the rest drawn."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: _first(name, shape, draw).to(device).requires_grad_()
        for name, shape in weights(spec).items()
    }


def _first(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    if name.endswith(("output.weight", "down.weight")):
        return torch.zeros(shape)
    hidden = name.startswith("layers.")
    std = HIDDEN_STD / math.sqrt(shape[1]) if hidden else EMBEDDING_STD
    return torch.randn(shape, generator=draw) * std
