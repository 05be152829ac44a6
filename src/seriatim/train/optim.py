"""AdamW and Muon over named tensors, and the schedule of their rate.

State is a flat dict of named tensors, so that a checkpoint holds it as it is. Muon is written here
because torch's own works matrix by matrix in bf16, which a CPU without bf16 units emulates.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.95), 1e-8
MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # Newton-Schulz step, Keller Jordan 2024


Turned = Callable[[Sequence[Tensor], torch.Size], Tensor]


def rate_share(step: int, *, steps: int, kind: str, warmup: int, decay: float) -> float:
    """Share of the full rate at `step`: up over `warmup`, then as `kind` says, down to 0.

    "wsd" stays level until the last `decay` share of the steps, then falls in a line
    (arXiv:2404.06395); "cosine" falls from the end of the warm-up on.

    Example:
        >>> [rate_share(s, steps=10, kind="wsd", warmup=2, decay=0.5) for s in (0, 1, 5, 9)]
        [0.5, 1.0, 1.0, 0.2]
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "wsd":
        return min(1.0, (steps - step) / max(1, round(decay * steps)))
    done = torch.pi * (step - warmup) / max(1, steps - warmup)
    return float(0.5 + 0.5 * torch.cos(torch.tensor(done, dtype=torch.float64)))


class Optimizer:
    """Updates weights in place from their `.grad`.

    Args:
        weights: leaf tensors by name.
        kind: "muon" (hidden matrices; AdamW for the rest) or "adamw".
        rate: of the hidden matrices.
        rest: rate of embedding, head, norms and biases.
        decay: weight decay of the matrices, times the rate.
        shapes: of whole weights, where `weights` are parts of them.
        turned: `orthogonal` for a list of matrices of one shape, or of their parts.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        kind: str,
        rate: float,
        rest: float,
        decay: float,
        shapes: Mapping[str, torch.Size] | None = None,
        turned: Turned | None = None,
    ) -> None:
        self.weights, self.rate, self.rest, self.decay = weights, rate, rest, decay
        matrices = [n for n, w in weights.items() if n.startswith("layers.") and w.ndim == 2]
        self.shapes = shapes or {name: w.shape for name, w in weights.items()}
        self.orthogonal = turned or (lambda moves, shape: orthogonal(torch.stack([*moves])))
        self.turned = matrices if kind == "muon" else []
        self.hidden, aside = set(matrices), set(self.turned)
        self.plain = [name for name in weights if name not in aside]
        self.state = {f"momentum.{n}": torch.zeros_like(weights[n]) for n in self.turned}
        for moment in ("first", "second"):
            self.state |= {f"{moment}.{n}": torch.zeros_like(weights[n]) for n in self.plain}

    @torch.no_grad()
    def step(self, step: int, scale: float) -> None:
        """Apply the gradients of step `step` (0 is the first) at `scale` of the full rate."""
        for name in self.plain:
            self._adamw(name, step + 1, scale)
        groups = defaultdict(list)  # matrices of one shape go through Newton-Schulz together
        for name in self.turned:
            groups[self.shapes[name]].append(name)
        for names in groups.values():
            self._muon(names, scale)

    def _adamw(self, name: str, count: int, scale: float) -> None:
        """Decoupled weight decay (arXiv:1711.05101)."""
        w, g = self.weights[name], self.weights[name].grad
        assert g is not None
        first, second = self.state[f"first.{name}"], self.state[f"second.{name}"]
        rate = scale * (self.rate if name in self.hidden else self.rest)
        first.lerp_(g, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        if name in self.hidden:
            w.mul_(1 - rate * self.decay)
        spread = second.div(1 - BETAS[1] ** count).sqrt_().add_(EPS)
        w.addcdiv_(first, spread, value=-rate / (1 - BETAS[0] ** count))

    def _muon(self, names: list[str], scale: float) -> None:
        """Momentum, made orthogonal: every direction of a matrix moves by the same amount."""
        moves = []
        for name in names:
            g, momentum = self.weights[name].grad, self.state[f"momentum.{name}"]
            assert g is not None
            momentum.lerp_(g, 1 - MOMENTUM)
            moves.append(g.lerp(momentum, MOMENTUM))  # Nesterov
        rows, columns = shape = self.shapes[names[0]]
        turned = self.orthogonal(moves, shape)
        rate = scale * self.rate
        for name, move in zip(names, turned, strict=True):
            w = self.weights[name]
            w.mul_(1 - rate * self.decay)
            w.add_(move, alpha=-rate * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix's singular value decomposition, by five Newton-Schulz steps.

    Args:
        matrices: [count, row, column].
    """
    a, b, c = POLYNOMIAL
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
