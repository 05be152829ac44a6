"""The optimizers: fast forms equal plain ones, and equal steps give equal bits."""

import pytest
import torch

from seriatim.train import optim

SHAPES = [(3, 5), (5, 3), (4, 4), (4, 6), (4, 7), (9, 4), (1, 8), (64, 192)]


def plain(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz of one matrix, as it is written in the source."""
    a, b, c = optim.POLYNOMIAL
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(optim.STEPS):
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x


def drawn(count: int, rows: int, columns: int, rank: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rows * columns + rank)
    left = torch.randn(count, rows, rank, generator=draw)
    return left @ torch.randn(count, rank, columns, generator=draw)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 2, 64])  # gradients are nearly of low rank
def test_newton_schulz_of_many_equals_that_of_each(shape, rank):
    matrices = drawn(3, *shape, rank)
    wanted = torch.stack([plain(m.double()) for m in matrices])
    # Rounding of what is nearly 0 grows by 3.4445 a step, 485 in all.
    assert torch.allclose(optim.orthogonal(matrices).double(), wanted, atol=1e-4)


def test_the_matrix_of_no_gradient_stays_nothing():
    assert not optim.orthogonal(torch.zeros(2, 3, 8)).any()


def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (7, 6), "layers.0.up.weight": (12, 6), "layers.0.norm.weight": (6,)}
    return {n: torch.randn(s, generator=draw).requires_grad_() for n, s in shapes.items()}


def push(mine: dict[str, torch.Tensor], step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for weight in mine.values():
        weight.grad = torch.randn(weight.shape, generator=draw)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_steps_from_a_saved_state_give_the_bits_of_steps_in_one_go(kind):
    def made(mine):
        return optim.Optimizer(mine, kind=kind, rate=0.1, rest=0.05, decay=0.1)

    def run(update, mine, steps):
        for step in steps:
            push(mine, step)
            update.step(step, 1.0 / (step + 1))

    whole, other = weights(), weights()
    run(made(whole), whole, range(5))
    first = made(other)
    run(first, other, range(2))
    second = made(other)
    second.state = {name: value.clone() for name, value in first.state.items()}
    run(second, other, range(2, 5))
    assert all(torch.equal(whole[name], other[name]) for name in whole)
    assert not any(torch.equal(whole[name], weights()[name]) for name in whole)


def test_adamw_is_decoupled_and_decays_hidden_matrices_only():
    mine = weights()
    before = {name: w.detach().clone() for name, w in mine.items()}
    update = optim.Optimizer(mine, kind="adamw", rate=0.1, rest=0.01, decay=0.5)
    push(mine, 0)
    update.step(0, 0.5)
    for name, weight in mine.items():
        hidden = name == "layers.0.up.weight"
        kept = before[name] * (1 - 0.05 * 0.5) if hidden else before[name]
        moved = (0.05 if hidden else 0.005) * weight.grad.sign()  # the first step: g / |g|
        assert torch.allclose(weight, kept - moved, atol=1e-6), name
