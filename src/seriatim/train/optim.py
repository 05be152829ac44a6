"""AdamW and Muon over named tensors, and the schedule of their rate.

State is a flat dict of named tensors, so that a checkpoint holds it as it is. AdamW is torch's own
fused form, one pass over memory. Muon is written here because torch's own works matrix by matrix
in bf16, which a CPU without bf16 units emulates: 3.3 s for 18 of 512 x 192, here 0.09 s.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

BETAS, EPS = (0.9, 0.95), 1e-8
MOMENTS = ("first", "second")  # of a gradient, as AdamW keeps them
MOMENTUM = 0.95
POLYNOMIAL, STEPS = (3.4445, -4.7750, 2.0315), 5  # of Newton-Schulz, Keller Jordan 2024


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
        self.orthogonal = turned or whole_turned
        self.turned = matrices if kind == "muon" else []
        self.hidden, aside = set(matrices), set(self.turned)
        self.plain = [name for name in weights if name not in aside]
        self.state = {f"momentum.{n}": torch.zeros_like(weights[n]) for n in self.turned}
        for moment in MOMENTS:
            self.state |= {f"{moment}.{n}": torch.zeros_like(weights[n]) for n in self.plain}

    @torch.no_grad()
    def step(self, step: int, scale: float) -> None:
        """Apply the gradients of step `step` (0 is the first) at `scale` of the full rate."""
        for hidden in (True, False):
            names = [name for name in self.plain if (name in self.hidden) == hidden]
            rate, decay = (self.rate, self.decay) if hidden else (self.rest, 0.0)
            if names:
                self._adamw(names, step, scale * rate, decay)
        groups = defaultdict(list)  # matrices of one shape go through Newton-Schulz together
        for name in self.turned:
            groups[self.shapes[name]].append(name)
        for names in groups.values():
            self._muon(names, scale)

    def _adamw(self, names: list[str], step: int, rate: float, decay: float) -> None:
        """Decoupled weight decay (arXiv:1711.05101), in one pass over memory."""
        weights = [self.weights[name] for name in names]
        first, second = ([self.state[f"{m}.{name}"] for name in names] for m in MOMENTS)
        adamw(
            weights,
            [cast(Tensor, w.grad) for w in weights],
            first,
            second,
            [],
            [torch.tensor(float(step), device=w.device) for w in weights],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=EPS,
            maximize=False,
        )

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


def whole_turned(moves: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """`orthogonal` of matrices of one `shape`, all of which are here whole."""
    return orthogonal(torch.stack([*moves]))


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix's singular value decomposition, by five Newton-Schulz steps.

    Args:
        matrices: [count, row, column].
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = _by_square(x) if 2 * x.shape[2] > 3 * x.shape[1] else _by_steps(x)
    return x.mT if tall else x


def _by_steps(x: Tensor) -> Tensor:
    """x <- (a + b x x^T + c (x x^T)^2) x, five times."""
    a, b, c = POLYNOMIAL
    for _ in range(STEPS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _by_square(x: Tensor) -> Tensor:
    """The same steps on x x^T alone: fewer operations where x is more than 1.5 times as long."""
    a, b, c = POLYNOMIAL
    square = torch.bmm(x, x.mT)
    whole = None
    for step in range(STEPS):
        turn = torch.baddbmm(square, square, square, beta=b, alpha=c)
        turn.diagonal(dim1=1, dim2=2).add_(a)
        whole = turn if whole is None else torch.bmm(turn, whole)
        if step + 1 < STEPS:
            square = torch.bmm(torch.bmm(turn, square), turn)
    return x if whole is None else torch.bmm(whole, x)
