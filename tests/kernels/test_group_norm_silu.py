"""Where group norms go wrong: offsets, constants, not-a-number, many images, many threads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdgen import kernels
from kdgen.kernels import configs, group_norm_silu

FAST = ["native", "triton"]
LAST = torch.channels_last
per_backend = pytest.mark.parametrize("backend", FAST)
per_layout = pytest.mark.parametrize("form", [torch.contiguous_format, LAST], ids=["nchw", "nhwc"])


def normal(*shape, seed=0, form=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=form) if x.ndim == 4 else x


def arguments(shape, groups, form=torch.contiguous_format):
    c = shape[1]
    return normal(*shape, form=form), 1 + normal(c, seed=1) / 2, normal(c, seed=2), groups


def test_the_reference_is_torchs_group_norm_and_silu(wide):
    x, weight, bias, groups = wide(arguments((2, 12, 5, 5), 3))
    want = F.silu(F.group_norm(x, groups, weight, bias, 1e-6))
    torch.testing.assert_close(group_norm_silu(x, weight, bias, groups), want)


def test_scale_shift_and_add_are_what_their_formula_says(wide):
    x, weight, bias, groups = wide(arguments((2, 12, 5, 5), 3))
    scale, shift, add = (normal(2, 12, seed=s).double() for s in (3, 4, 5))
    h = F.group_norm(x + add[:, :, None, None], groups, weight, bias, 1e-6)
    want = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    got = group_norm_silu(x, weight, bias, groups, scale=scale, shift=shift, add=add, act=False)
    torch.testing.assert_close(got, want)


def test_the_reference_passes_gradcheck():
    x, weight, bias, groups = arguments((2, 4, 2, 3), 2)
    extras = [normal(2, 4, seed=s).double().requires_grad_() for s in (3, 4, 5)]
    leaves = [v.double().requires_grad_() for v in (x, weight, bias)]

    def call(x, weight, bias, scale, shift, add):
        return group_norm_silu(x, weight, bias, groups, 1e-6, scale, shift, add)

    assert torch.autograd.gradcheck(call, (*leaves, *extras))
    assert torch.autograd.gradgradcheck(call, (*leaves, *extras))


@per_layout
@per_backend
@pytest.mark.parametrize("offset", [0.0, -2.3, 1e3])
def test_an_offset_costs_no_digits(backend, form, offset, as_accurate, wide, need):
    x, weight, bias, groups = arguments((2, 32, 8, 8), 8, form)
    args = (x + offset, weight, bias, groups)
    need(group_norm_silu, backend, args)
    with kernels.use(backend):
        got = group_norm_silu(*args)
    exact = group_norm_silu.reference(*wide(args))
    as_accurate(got, group_norm_silu.reference(*args), exact)


@per_layout
@per_backend
def test_one_huge_value_leaves_the_rest_exact(backend, form, as_accurate, wide, need):
    args = arguments((2, 32, 8, 8), 8, form)
    args[0][0, 0, 0, 0] = 1e4  # also the value that native takes as its origin
    need(group_norm_silu, backend, args)
    with kernels.use(backend):
        got = group_norm_silu(*args)
    exact = group_norm_silu.reference(*wide(args))
    as_accurate(got, group_norm_silu.reference(*args), exact)


@per_layout
@per_backend
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_a_constant_image_gives_the_bias(backend, form, value, need):
    x, weight, bias, groups = arguments((2, 32, 8, 8), 8, form)
    args = (torch.full_like(x, value), weight, bias, groups)
    need(group_norm_silu, backend, args)
    with kernels.use(backend):
        got = group_norm_silu(*args)
    want = F.silu(bias)[None, :, None, None].expand_as(got)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
@per_layout
@per_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("place", ["x", "bias", "shift"])
def test_not_a_number_comes_out_where_the_reference_has_it(backend, form, bad, place, need):
    x, weight, bias, groups = arguments((2, 16, 4, 4), 4, form)
    shift = normal(2, 16, seed=3)
    {"x": x[1, :, 2, 2], "bias": bias, "shift": shift[0]}[place][5] = bad
    args = (x, weight, bias, groups, 1e-6, None, shift)
    need(group_norm_silu, backend, args)
    with kernels.use(backend):
        got = group_norm_silu(*args)
    want = group_norm_silu.reference(*args)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isposinf(), want.isposinf())
    assert torch.equal(got.isneginf(), want.isneginf())
    finite = want.isfinite()
    torch.testing.assert_close(got[finite], want[finite], rtol=1e-5, atol=1e-5)


SHAPES = [((3, 32, 32, 32), 8), ((5, 64, 8, 8), 16), ((40, 48, 4, 4), 4), ((2, 256, 1, 1), 32),
          ((1, 96, 48, 48), 8)]  # fmt: skip


@per_layout
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_threads_do_not_change_a_bit(form, shape, groups, grads, need):
    args = arguments(shape, groups, form)
    need(group_norm_silu, "native", args)
    dy = normal(*shape, seed=9)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with kernels.use("native"):
                results.append([group_norm_silu(*args), *grads(group_norm_silu, args, dy)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@per_layout
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_an_image_and_its_gradient_do_not_depend_on_the_batch(form, shape, groups, grads, need):
    x, weight, bias, _ = arguments(shape, groups, form)
    film = [normal(shape[0], shape[1], seed=s) for s in (3, 4, 5)]
    dy = normal(*shape, seed=9)
    need(group_norm_silu, "native", (x, weight, bias, groups))

    def run(k):
        args = (x[k], weight, bias, groups, 1e-6, *(f[k] for f in film))
        found = grads(group_norm_silu, args, dy[k])
        return [group_norm_silu(*args), found[0], *found[3:]]

    with kernels.use("native"):
        together = run(slice(None))
        for image in range(min(2, shape[0])):
            alone = run(slice(image, image + 1))
            assert all(torch.equal(a[0], b[image]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("form", "more"),
    [(torch.contiguous_format, 0), (LAST, 0), (LAST, 6)],
    ids=["nchw", "nhwc", "two nhwc"],
)
@per_backend
def test_an_image_too_large_to_be_held_changes_nothing(
    backend, form, more, grads, as_accurate, wide, need
):
    """Cut into chunks: the walk of the Triton kernels; for native, an image of many blocks."""
    size = (9, 9) if backend == "triton" else (60, 60)
    x, weight, bias, groups = arguments((1, 12, *size), 3, form)
    behind = normal(1, more, *size, seed=6, form=form) if more else None
    args = (x[:, : 12 - more].contiguous(memory_format=form), weight, bias, groups, 1e-6,
            None, normal(1, 12, seed=7), None, True, behind)  # fmt: skip
    need(group_norm_silu, backend, args)
    dy = normal(1, 12, *size, seed=9)
    small = {"groups": 2, "places": 32, "warps": 4}
    with (
        kernels.use(backend),
        configs.using("group_norm_silu.forward", **small),
        configs.using("group_norm_silu.backward", **small),
    ):
        got = [group_norm_silu(*args), *grads(group_norm_silu, args, dy)]
    op, exactly = group_norm_silu.reference, wide(args)
    own = [op(*args), *grads(op, args, dy)]
    exact = [op(*exactly), *grads(op, exactly, dy.double())]
    for g, o, e in zip(got, own, exact, strict=True):
        as_accurate(g, o, e)


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 32])
@pytest.mark.parametrize(
    "size", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (16, 16), (3, 43)], ids=str
)
def test_native_meets_the_rule_on_many_shapes(size, groups, grads, as_accurate, wide, need):
    for form in (torch.contiguous_format, LAST):
        args = arguments((3, 32, *size), groups, form)
        args = (*args, 1e-6, None, None, normal(32, seed=7))
        need(group_norm_silu, "native", args)
        dy = normal(3, 32, *size, seed=9)
        with kernels.use("native"):
            got = [group_norm_silu(*args), grads(group_norm_silu, args, dy)[0]]
        op, exactly = group_norm_silu.reference, wide(args)
        own = [op(*args), grads(op, args, dy)[0]]
        exact = [op(*exactly), grads(op, exactly, dy)[0]]
        for g, o, e in zip(got, own, exact, strict=True):
            as_accurate(g, o, e)


def test_parameters_may_be_of_another_dtype_and_their_gradients_follow(grads):
    x, weight, bias, groups = arguments((2, 8, 4, 4), 2)
    args = (x.bfloat16(), weight, bias.half(), groups, 1e-6, normal(2, 8, seed=4).bfloat16())
    got = grads(group_norm_silu, args, torch.ones_like(x))
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float32, torch.float16, torch.bfloat16]


@per_backend
def test_second_derivatives_raise_instead_of_vanishing(backend, need):
    x, weight, bias, groups = arguments((1, 4, 2, 2), 2)
    need(group_norm_silu, backend, (x, weight, bias, groups))
    x.requires_grad_()
    with kernels.use(backend):
        y = group_norm_silu(x, weight, bias, groups)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4)}, r"x has shape \(4,\); expected \(N, C, …\)"),
        ({"x": torch.ones(2, 8, 2, 2, dtype=torch.int32)}, "x has dtype int32; expected float32"),
        ({"x": [1.0]}, "x is a list; expected a tensor"),
        ({"groups": 3}, r"8 channels, groups is 3; expected groups to divide.*Pass groups=2"),
        ({"groups": 0}, "groups is 0"),
        ({"eps": -1.0}, "eps is -1.0; expected a number of at least 0"),
        ({"weight": torch.ones(7)}, r"weight has shape \(7,\); expected \(8,\)"),
        ({"bias": torch.ones(8, 1)}, r"bias has shape \(8, 1\); expected \(8,\)"),
        ({"bias": torch.ones(8, device="meta")}, "bias is on meta; expected cpu"),
        ({"scale": torch.ones(8)}, r"scale has shape \(8,\); expected \(2, 8\)"),
        ({"shift": torch.ones(2, 8).long()}, "shift has dtype int64"),
        ({"add": torch.ones(3, 8)}, r"add has shape \(3, 8\); expected \(2, 8\) or \(8,\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    ones = torch.ones(8)
    args = {"x": torch.ones(2, 8, 2, 2), "weight": ones, "bias": ones, "groups": 4}
    with pytest.raises(ValueError, match=rf"^group_norm_silu: .*{message}"):
        group_norm_silu(**{**args, **change})
