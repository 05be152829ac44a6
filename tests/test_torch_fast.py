"""The fast torch forms equal the reference, values and gradients, over odd sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seriatim.kernels import torch_attention, torch_fused
from seriatim.kernels.ops import Batch
from seriatim.kernels.reference import ReferenceOps
from seriatim.kernels.torch_fast import TorchOps
from seriatim.kernels.torch_fused import cross_entropy, head_loss
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


@pytest.mark.parametrize("count", [1, 4, 8, 9])
def test_cross_entropy_equals_torchs(count, monkeypatch):
    monkeypatch.setattr(torch_fused, "LOGITS", 4 * 13)
    x, weight = draw(count, 6), draw(13, 6)
    targets = torch.arange(count) * 5 % 13
    mine = cross_entropy(torch.nn.functional.linear(x, weight), targets)
    theirs = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight), targets)
    assert torch.allclose(mine, theirs, rtol=1e-12)
    pairs = zip(*(torch.autograd.grad(3 * v, (x, weight)) for v in (mine, theirs)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in pairs)


@pytest.mark.parametrize("loss", [cross_entropy, lambda x, t: head_loss(x, torch.eye(3), None, t)])
def test_cross_entropy_of_large_logits_is_finite(loss):
    logits = torch.tensor([[1e4, 0.0, -1e4]]) * torch.ones(1, requires_grad=True)
    assert loss(logits, torch.tensor([2])).item() == pytest.approx(2e4)


@pytest.fixture
def small_pieces(monkeypatch):
    """Several pieces, a short one last, for arrays small enough to check each number."""
    monkeypatch.setattr(torch_attention, "QUERIES", 3)
    monkeypatch.setattr(torch_attention, "SCORES", 2 * 3 * 7 * 4)  # 4 heads: two sequences of 7
    monkeypatch.setattr(torch_fused, "PIECE", 12)
    monkeypatch.setattr(torch_fused, "LOGITS", 4 * 13)


@pytest.mark.parametrize(("kv_heads", "group"), [(1, 1), (1, 4), (4, 1), (2, 2)])
def test_attention_in_blocks_has_the_gradient_of_its_value(small_pieces, kv_heads, group):
    q = draw(3, 7, kv_heads, group, 2)
    k, v = draw(3, 7, kv_heads, 2), draw(3, 7, kv_heads, 2).detach().exp().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k, v: torch_attention.causal_attention(q, k, v, scale=0.7), (q, k, v)
    )
    inputs = tuple(t.flatten(2).flatten(0, 1) for t in (q, k, v))
    options = {"layer": 0, "heads": kv_heads * group, "kv_heads": kv_heads, "scale": 0.7}
    assert_equal(lambda ops, *x: ops.attention(*x, **options), (3, 7), *inputs)


@pytest.mark.parametrize("turned", [False, True])  # a gradient that does not lie in order
def test_gate_and_norm_in_pieces_have_the_gradients_of_their_values(small_pieces, turned):
    def pushed(y):
        return y.mT.exp() if turned else y.exp()

    x, other, weight = draw(5, 7), draw(1, 5, 7)[0], draw(7)
    check = torch.autograd.gradcheck
    assert check(lambda a, b: pushed(torch_fused.silu_gate(a, b)), (x, other))
    assert check(lambda a, w: pushed(torch_fused.rms_norm(a, w, eps=1e-3)), (x, weight))
    assert_equal(lambda ops, a, b: ops.gate(a, b, activation="silu"), (1, 5), x, other)


@pytest.mark.parametrize("bias", [False, True])
def test_the_loss_of_a_head_in_pieces_equals_torchs(small_pieces, bias):
    x, weight, shift = draw(9, 6), draw(13, 6), draw(13)
    ids, targets = (
        torch.zeros(3, 3, dtype=torch.int64),
        torch.tensor([5, -1, 0, 12, 12, 7, -1, 3, 1]),
    )
    inputs = (x, weight, shift) if bias else (x, weight)

    def mine(x, weight, bias=None):
        ops = TorchOps(ids, head=weight, targets=targets)
        return ops.linear(ops.rows(x), weight, bias)

    def theirs(*inputs):
        logits = torch.nn.functional.linear(*inputs)
        return torch.nn.functional.cross_entropy(logits, targets, ignore_index=-1)

    assert torch.autograd.gradcheck(mine, inputs)
    found, wanted = (3 * f(*inputs) for f in (mine, theirs))
    assert torch.allclose(found, wanted, rtol=1e-12)
    pairs = zip(*(torch.autograd.grad(v, inputs) for v in (found, wanted)), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in pairs)


def test_a_forward_pass_with_targets_is_its_loss_in_f32_and_bf16():
    norm = Norm("rms", 1e-5)
    attention = Attention(4, 2, 6, 6**-0.5, Rope((1.0, 0.1, 0.01)))
    spec = Spec(
        11, 24, 128, (Layer(attention, MLP(20, "silu", gated=True), norm),), norm, tied=True
    )
    named = {name: draw(*size, dtype=torch.float32) for name, size in weights(spec).items()}
    ids = torch.arange(130).view(2, 65) % 11
    targets = (ids.reshape(-1) * 7 + 3) % 11

    def found(precise: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            ops = TorchOps(ids, head=named["embed.weight"], targets=targets)
            loss = forward(ops, spec, named)
        return loss, *torch.autograd.grad(loss, list(named.values()))

    logits = forward(TorchOps(ids), spec, named)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    wanted = (loss, *torch.autograd.grad(loss, list(named.values())))
    for precise, close in ((True, 1e-4), (False, 0.1)):
        for a, b in zip(found(precise), wanted, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).norm() <= close * b.norm()
