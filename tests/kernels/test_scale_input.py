"""What a network is given."""

from __future__ import annotations

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import scale_input

ALL = ["reference", "native", "triton", "cuda"]
per_backend = pytest.mark.parametrize("backend", ALL)
last = pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(last, *shape):
    form = torch.channels_last if last else torch.contiguous_format
    return normal(*shape).contiguous(memory_format=form)


@last
@per_backend
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_it_scales_casts_and_pads_with_zeros(backend, last, dtype, need):
    x = images(last, 2, 3, 5, 4)
    need(scale_input, backend, (x, 0.37, None, dtype, 8))
    with kernels.use(backend):
        y = scale_input(x, 0.37, dtype=dtype, channels=8)
    assert torch.equal(y[:, :3], (x * 0.37).to(dtype or x.dtype))
    assert not y[:, 3:].any()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.shape == (2, 8, 5, 4)


@per_backend
def test_the_factor_may_be_a_number_one_an_image_or_a_row_of_a_table(backend, need):
    x, table = images(True, 2, 3, 4, 4), torch.tensor([3.0, 0.5, 0.25])
    each = torch.tensor([0.5, 0.25])
    need(scale_input, backend, (x, 0.5))
    with kernels.use(backend):
        assert torch.equal(scale_input(x, each), x * each[:, None, None, None])
        for k, row in ((0, 0), (1, 1), (2, 2), (3, 2), (2**40, 2), (-1, 0)):
            got = scale_input(x, table, torch.tensor(k))
            assert torch.equal(got, scale_input(x, float(table[row])))


@per_backend
def test_padding_is_zero_whatever_the_factor(backend, need):
    """0·∞ would be no number."""
    x, c = images(False, 1, 2, 3, 3), torch.tensor([float("inf")])
    need(scale_input, backend, (x, c, None, None, 4))
    with kernels.use(backend):
        assert not scale_input(x, c, channels=4)[:, 2:].any()


@pytest.mark.parametrize("backend", ["native", "cuda"])
def test_compiled_code_has_the_bits_of_the_reference_beyond_one_block(backend, need):
    for shape in ((2, 3, 61, 53), (1, 1, 90, 50), (3, 5, 1, 7)):
        for last in (False, True):
            args = (images(last, *shape), 0.37, None, torch.bfloat16, 8)
            need(scale_input, backend, args)
            with kernels.use(backend):
                assert torch.equal(scale_input(*args), scale_input.reference(*args))


def test_a_gradient_comes_from_the_definition():
    x = normal(2, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scale_input(x, 0.3, channels=4), (x,))
    with kernels.use("native"), pytest.raises(ValueError, match="has no gradient"):
        scale_input(x.float(), 0.3)


STEP = torch.tensor(0)
WRONG = [
    (lambda x: scale_input(x[0], 1.0), r"x has shape \(3, 4, 4\); expected \(N, C, H, W\)"),
    (lambda x: scale_input(x, torch.ones(3)), r"c has shape \(3,\); expected \(2,\)"),
    (lambda x: scale_input(x, torch.ones(0), STEP), r"c has shape \(0,\); expected \(1,\)"),
    (lambda x: scale_input(x, 1.0, STEP), "c is 1.0 beside a step; expected a table"),
    (lambda x: scale_input(x, torch.ones(2), 0), "step is a int; expected a tensor"),
    (lambda x: scale_input(x, 1.0, dtype=torch.int8), "dtype is int8; expected a float dtype"),
    (lambda x: scale_input(x, 1.0, channels=2), "channels is 2, x has 3; expected at least"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^scale_input: " + message):
        call(torch.zeros(2, 3, 4, 4))
