"""The sum at the end of a residual branch."""

from __future__ import annotations

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import bias_residual

ALL = ["reference", "native", "triton"]
per_backend = pytest.mark.parametrize("backend", ALL)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@per_backend
@pytest.mark.parametrize("last", [False, True])
def test_it_is_its_formula(backend, last, need):
    x, residual, bias = normal(3, 5, 4, 6), normal(3, 5, 4, 6, seed=1), normal(5, seed=2)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    need(bias_residual, backend, (x, residual, bias, 0.5))
    with kernels.use(backend):
        got = bias_residual(x, residual, bias, 0.5)
    torch.testing.assert_close(got, (x + bias[:, None, None] + residual) / 2)
    assert got.stride() == x.stride()  # answered in the first one's layout


@per_backend
def test_without_bias_and_scale_it_is_a_sum(backend, need):
    x, residual = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    need(bias_residual, backend, (x, residual))
    with kernels.use(backend):
        assert torch.equal(bias_residual(x, residual), x + residual)


@per_backend
def test_half_precision_is_rounded_once(backend, need):
    """1 + 2⁻⁸ + 2⁻⁸ is a bfloat16; added one after the other the small ones are lost."""
    one = torch.ones(1, 4).bfloat16()
    tiny = torch.full((1, 4), 2.0**-8).bfloat16()
    bias = torch.full((4,), 2.0**-8)
    need(bias_residual, backend, (one, tiny, bias))
    with kernels.use(backend):
        assert torch.equal(bias_residual(one, tiny, bias).float(), torch.full((1, 4), 1 + 2.0**-7))


@per_backend
@pytest.mark.parametrize("size", [(1, 3, 3), (5, 16, 16), (2, 40, 33)])
@pytest.mark.parametrize("last", [False, True])
def test_the_bias_gradient_sums_everything_but_its_channel(backend, size, last, need, as_accurate):
    n, h, w = size
    dy = normal(n, 48, h, w, seed=3) + 0.5
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.zeros_like(dy).contiguous(memory_format=form).requires_grad_()
    bias = torch.zeros(48, requires_grad=True)
    need(bias_residual, backend, (x, x.detach(), bias, 0.7))
    with kernels.use(backend):
        y = bias_residual(x, x.detach(), bias, 0.7)
    y.backward(dy)
    exact = dy.double().sum((0, 2, 3)) * 0.7
    as_accurate(bias.grad, dy.sum((0, 2, 3)) * 0.7, exact)
    assert torch.equal(x.grad, dy * 0.7)
    assert x.grad.stride() == x.stride()


@per_backend
def test_a_plain_sum_passes_its_gradient_on_untouched(backend, need):
    """Without a copy: torch's own sum makes none either."""
    x, residual = (normal(2, 4, 3, seed=s).requires_grad_() for s in (0, 1))
    need(bias_residual, backend, (x, residual))
    with kernels.use(backend):
        y = bias_residual(x, residual)
    dy = normal(2, 4, 3, seed=2)
    for gradient in torch.autograd.grad(y, (x, residual), dy):
        assert gradient.data_ptr() == dy.data_ptr()


@per_backend
def test_only_wanted_gradients_are_made(backend, need):
    x, bias = normal(2, 4, 3), normal(4, seed=1)
    residual = normal(2, 4, 3, seed=2).requires_grad_()
    need(bias_residual, backend, (x, residual, bias, 2.0))
    with kernels.use(backend):
        y = bias_residual(x, residual, bias, 2.0)
    (gradient,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    assert torch.equal(gradient, torch.full_like(x, 2.0))


@per_backend
@pytest.mark.parametrize("traced", [False, True])
def test_the_sum_passes_gradcheck_twice(backend, traced, need):
    """The gradient is linear; its own gradient comes from plain torch on every backend."""
    x, residual = (normal(2, 3, 2, seed=s).double().requires_grad_() for s in (0, 1))
    bias = normal(3, seed=2).double().requires_grad_()
    if backend != "reference":
        x, residual, bias = (v.detach().float().requires_grad_() for v in (x, residual, bias))
        need(bias_residual, backend, (x, residual, bias, 0.7))
        with kernels.use(backend):
            y = bias_residual(x, residual, bias, 0.7)
        found = torch.autograd.grad(y.square().sum(), (x, bias), create_graph=True)
        second = torch.autograd.grad(found[0].sum() + found[1].sum(), residual)[0]
        assert torch.allclose(second, torch.full_like(second, 2 * 2 * 0.49))
        return

    def call(x, residual, bias):
        if traced:
            return torch.ops.kdgen.bias_residual(x, residual, bias, 0.7, "")
        return bias_residual(x, residual, bias, 0.7)

    assert torch.autograd.gradcheck(call, (x, residual, bias))
    assert torch.autograd.gradgradcheck(call, (x, residual, bias))


def test_under_autocast_it_keeps_its_inputs_dtype():
    x, residual = normal(2, 4, 3).bfloat16(), normal(2, 4, 3, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert bias_residual(x, residual, torch.zeros(4), 0.5).dtype == torch.bfloat16
        assert bias_residual(x.float(), residual.float()).dtype == torch.float32


WRONG = [
    (lambda x: bias_residual(3, x), "x is a int; expected a tensor"),
    (lambda x: bias_residual(x[0, 0, 0], x), r"x has shape \(4,\); expected \(N, C, …\)"),
    (lambda x: bias_residual(x, x[:1]), r"residual has shape \(1, 3, 4, 4\); expected \(2, 3"),
    (lambda x: bias_residual(x, x.half()), "residual has dtype float16; expected float32"),
    (lambda x: bias_residual(x, x, x[0, 0, 0]), r"bias has shape \(4,\); expected \(3,\)"),
    (lambda x: bias_residual(x, x.to("meta")), "residual is on meta; expected cpu"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^bias_residual: " + message):
        call(torch.zeros(2, 3, 4, 4))
