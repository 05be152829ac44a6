"""The fast torch forms equal the reference, values and gradients, over odd sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import ReferenceOps
from seriatim.kernels.torch_fast import ROWS, TorchOps, cross_entropy
from seriatim.models.forward import forward
from seriatim.models.spec import MLP, Attention, Layer, Norm, Rope, Spec, weights

SHAPES = [(1, 1), (1, 7), (3, 5), (2, 64), (4, 65)]  # sequences, positions


def reference(ids: torch.Tensor) -> ReferenceOps:
    count, length = ids.shape
    index = np.arange(count * length, dtype=np.int32)
    table = np.full((count, 1), -1, np.int32)
    return ReferenceOps(
        Batch(ids.reshape(-1).numpy(), index % length, index // length, table, index)
    )


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def both(op, shape: tuple[int, int], *inputs: torch.Tensor):
    """Value and gradients of `op(ops, *inputs)` by the fast and by the reference forms."""
    ids = torch.arange(shape[0] * shape[1]).view(shape) % 11
    found = []
    for ops in (TorchOps(ids), reference(ids)):
        value = op(ops, *inputs)
        push = draw(*value.shape, dtype=value.dtype).detach()
        found.append((value, *torch.autograd.grad((value * push).sum(), inputs)))
    return found


def assert_equal(op, shape: tuple[int, int], *inputs: torch.Tensor) -> None:
    fast, slow = both(op, shape, *inputs)
    for a, b in zip(fast, slow, strict=True):
        close = 2e-6 if a.dtype == torch.float32 else 1e-12
        assert torch.allclose(
            a, b, rtol=close, atol=close * max(1.0, b.detach().abs().max().item())
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_norm_equals_the_reference(shape, kind, heads, bias):
    x, weight, shift = draw(shape[0] * shape[1], heads * 10), draw(10), draw(1, 10)[0]
    inputs = (x, weight, shift) if bias else (x, weight)

    def op(ops, x, weight, bias=None):
        return ops.norm(x, weight, bias, kind=kind, eps=1e-5, heads=heads)

    assert_equal(op, shape, *inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("pairs", [4, 2])  # all of 8 channels turned, or half of them
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rope_equals_the_reference(shape, layout, pairs, dtype):
    frequencies = tuple(10.0 ** -(i / pairs) for i in range(pairs))

    def op(ops, x):
        angles = ops.rotary(frequencies, scale=1.25)
        return ops.rope(x, angles, heads=3, layout=layout)

    assert_equal(op, shape, draw(shape[0] * shape[1], 24, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (3, 1)])
@pytest.mark.parametrize("extra", [{}, {"window": 3}, {"softcap": 2.0}])
def test_attention_equals_the_reference(shape, heads, kv_heads, extra):
    def op(ops, q, k, v):
        options = {"layer": 0, "heads": heads, "kv_heads": kv_heads, "scale": 0.3} | extra
        return ops.attention(q, k, v, **options)

    tokens = shape[0] * shape[1]
    q, k, v = (draw(tokens, n * 6) for n in (heads, kv_heads, kv_heads))
    assert_equal(op, shape, q, k, v)


@pytest.mark.parametrize("shape", SHAPES)
def test_embedding_and_linear_equal_the_reference(shape):
    def op(ops, table, weight, bias):
        both = ops.embed(table, source="ids")
        return ops.rows(ops.linear(both, weight, bias))

    assert_equal(op, shape, draw(11, 6), draw(5, 6), draw(1, 5)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_whole_forward_pass_equals_the_reference(shape):
    norm = Norm("rms", 1e-5)
    rope = Rope((1.0, 0.1, 0.01))
    attention = Attention(4, 2, 6, 6**-0.5, rope, qk_norm=norm, qkv_bias=True)
    layer = Layer(attention, MLP(20, "silu", gated=True), norm)
    other = replace(layer, mlp=MLP(20, "gelu_tanh", gated=False, bias=True))
    spec = Spec(11, 24, 128, (layer, other), norm, tied=True)
    named = {name: draw(*size) for name, size in weights(spec).items()}
    names, tensors = list(named), list(named.values())

    def op(ops, *values):
        return forward(ops, spec, dict(zip(names, values, strict=True)))

    fast, slow = both(op, shape, *tensors)
    for name, a, b in zip(["logits", *names], fast, slow, strict=True):
        close = 1e-10 * max(1.0, float(b.detach().abs().max()))
        assert torch.allclose(a, b, rtol=1e-9, atol=close), name


@pytest.mark.parametrize("count", [1, 5, ROWS, ROWS + 1])
def test_cross_entropy_equals_torchs(count):
    x, weight = draw(count, 6), draw(13, 6)
    targets = torch.arange(count) * 5 % 13
    mine = cross_entropy(torch.nn.functional.linear(x, weight), targets)
    theirs = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight), targets)
    assert torch.allclose(mine, theirs, rtol=1e-12)
    pairs = zip(*(torch.autograd.grad(3 * v, (x, weight)) for v in (mine, theirs)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in pairs)


def test_cross_entropy_of_large_logits_is_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]]) * torch.ones(1, requires_grad=True)
    assert cross_entropy(logits, torch.tensor([2])).item() == pytest.approx(2e4)
