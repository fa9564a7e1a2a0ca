"""The sampler step and the conversion to bytes."""

from __future__ import annotations

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import ddim_update, ddim_update_uint8, to_uint8

ALL = ["reference", "native", "triton"]
per_backend = pytest.mark.parametrize("backend", ALL)
NAN, INF = float("nan"), float("inf")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


@per_backend
def test_bytes_round_half_to_even_clamp_and_turn_nan_into_zero(backend, need):
    halves = [(k + 0.5) / 127.5 - 1 for k in range(255)]
    values = [-1.0, 1.0, 0.0, -7.0, 7.0, INF, -INF, NAN, *halves]
    need(to_uint8, backend, (image(values),))
    with kernels.use(backend):
        got = to_uint8(image(values)).flatten().tolist()
    assert got[:8] == [0, 255, 128, 0, 255, 255, 0, 0]  # 127.5 goes to the even 128
    exact = [(torch.tensor(v) + 1) * 127.5 for v in halves]  # float32: some are not halves any more
    assert got[8:] == [int(e.round()) for e in exact]


@per_backend
def test_bytes_come_out_channels_innermost(backend, need):
    x = normal(2, 3, 4, 5).clamp(-1, 1)
    need(to_uint8, backend, (x,))
    with kernels.use(backend):
        got = to_uint8(x)
    assert got.shape == (2, 4, 5, 3)
    assert got.is_contiguous()
    assert int(got[1, 2, 3, 0]) == round(float((x[1, 0, 2, 3] + 1) * 127.5))


def test_every_byte_survives_the_way_to_an_image_and_back():
    levels = torch.arange(256, dtype=torch.float32)
    assert torch.equal(
        to_uint8((levels / 127.5 - 1).reshape(1, 1, 16, 16)).flatten(), levels.byte()
    )


@per_backend
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_with_bytes_is_the_step_and_then_bytes(backend, clip, need):
    args = (normal(3, 3, 5, 5), normal(3, 3, 5, 5, seed=1), 0.4, 0.7, clip)
    need(ddim_update_uint8, backend, args)
    with kernels.use(backend):
        assert torch.equal(ddim_update_uint8(*args), to_uint8(ddim_update(*args)))


@per_backend
def test_a_step_onto_the_data_lands_on_x0(backend, need):
    x_t, x0 = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    need(ddim_update, backend, (x_t, x0, 0.0, 1.0))
    with kernels.use(backend):
        assert torch.equal(ddim_update(x_t, x0, 0.0, 1.0), x0)
        assert torch.equal(ddim_update(x_t, x0, 0.0, 1.0, 0.5), x0.clamp(-0.5, 0.5))


@per_backend
def test_coefficients_may_be_numbers_tensors_or_one_of_each(backend, need):
    x_t, x0 = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    a, b = torch.tensor([0.5, 0.25, 2.0]), torch.tensor([1.0, 0.0, -3.0])
    need(ddim_update, backend, (x_t, x0, a, b))
    with kernels.use(backend):
        each = ddim_update(x_t, x0, a, b)
        for k in range(3):
            one = slice(k, k + 1)
            mixed = ddim_update(x_t[one], x0[one], float(a[k]), b[one])
            assert torch.equal(mixed, each[one])
            assert torch.equal(ddim_update(x_t[one], x0[one], a[one], float(b[k])), each[one])


def test_native_has_the_bits_of_the_reference(need):
    """Float32 without contraction: the same three operations, rounded alike."""
    args = (normal(5, 3, 37, 41), normal(5, 3, 37, 41, seed=1), 0.7123, -0.3, 0.9)
    need(ddim_update, "native", args)
    with kernels.use("native"):
        assert torch.equal(ddim_update(*args), ddim_update.reference(*args))
        assert torch.equal(ddim_update_uint8(*args), ddim_update_uint8.reference(*args))


@per_backend
@pytest.mark.parametrize("clip", [None, 1.0])
def test_not_a_number_comes_out_where_it_went_in(backend, clip, need):
    x_t = torch.tensor([[0.0, NAN, 1.0, INF, 1.0, -INF, 2.0]])
    x0 = torch.tensor([[NAN, 0.0, INF, 1.0, -INF, 1.0, 3.0]])
    need(ddim_update, backend, (x_t, x0, 0.5, 0.5, clip))
    with kernels.use(backend):
        got = ddim_update(x_t, x0, 0.5, 0.5, clip)
    torch.testing.assert_close(
        got, ddim_update.reference(x_t, x0, 0.5, 0.5, clip), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("clip", [None, 0.6])
def test_the_step_passes_gradcheck(clip):
    tensors = [normal(2, 3, 2, seed=s).double().requires_grad_() for s in (0, 1)]
    coefficients = [torch.tensor([0.3, 0.8]).double().requires_grad_() for _ in range(2)]
    call = torch.ops.kdgen.ddim_update

    def step(x_t, x0, a, b):
        return call(x_t, x0, a, b, 0.0, 0.0, clip, "")

    assert torch.autograd.gradcheck(step, (*tensors, *coefficients))
    assert torch.autograd.gradgradcheck(step, (*tensors, *coefficients))


def test_the_gradient_passes_at_the_bound_like_torchs_clamp(need):
    x0 = torch.tensor([[-1.5, -1.0, 0.0, 1.0, 1.5]], requires_grad=True)
    ddim_update(torch.zeros(1, 5), x0, 1.0, 2.0, 1.0).sum().backward()
    assert x0.grad.tolist() == [[0.0, 2.0, 2.0, 2.0, 0.0]]


STEP, BYTES = ddim_update, ddim_update_uint8
WRONG = [
    (lambda x: STEP(x, x[:1], 1, 1), r"ddim_update: x0 has shape \(1, 3, 4, 4\); expected \(2, 3,"),
    (lambda x: STEP(x, x.half(), 1, 1), "ddim_update: x0 has dtype float16; expected float32"),
    (lambda x: STEP(x, x, torch.ones(3), 1), r"ddim_update: a has shape \(3,\); expected \(2,\)"),
    (lambda x: STEP(x, x, 1, torch.ones(2).int()), "ddim_update: b has dtype int32"),
    (lambda x: STEP(x, x, 1, 1, -1.0), "ddim_update: clip is -1.0; expected a number above 0"),
    (lambda x: STEP(x, x.to("meta"), 1, 1), "ddim_update: x0 is on meta; expected cpu"),
    (lambda x: STEP(x.sum(), x.sum(), 1, 1), r"ddim_update: x_t has shape \(\); expected \(N, …"),
    (lambda x: BYTES(x[0], x[0], 1, 1), r"ddim_update_uint8: x_t has shape \(3, 4, 4\); expected"),
    (lambda x: to_uint8(x[0]), r"to_uint8: x has shape \(3, 4, 4\); expected \(N, C, H, W\)"),
    (lambda x: to_uint8(x.byte()), "to_uint8: x has dtype uint8"),
    (lambda x: to_uint8(3), "to_uint8: x is a int; expected a tensor"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(ValueError, match="^" + message):
        call(torch.zeros(2, 3, 4, 4))
