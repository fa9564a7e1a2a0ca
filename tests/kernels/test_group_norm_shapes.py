"""The sizes of real networks, a second input, and every way a kernel may be cut."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import configs, group_norm_silu

LAST = torch.channels_last
CONTIGUOUS = torch.contiguous_format
FAST = ["native", "triton"]
per_backend = pytest.mark.parametrize("backend", FAST)

SIZES = {1: (1, 1), 16: (4, 4), 49: (7, 7), 64: (8, 8), 256: (16, 16), 1024: (32, 32),
         4096: (64, 64)}  # fmt: skip
# Channels of x and behind it: DDPM's, DDPM++'s and ADM's; with 32 groups the seam of 256 and 128
# goes through one.
WIDTHS = [(32, 0), (96, 0), (128, 0), (192, 0), (256, 0), (256, 128), (512, 0), (576, 0), (768, 0)]


def normal(*shape, seed=0, form=CONTIGUOUS):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=form) if x.ndim == 4 else x


def call(n, own, more, size, groups, form, shift=-2.3):
    """Arguments with an affine that does something, and a mean and width for each channel."""
    c = own + more
    x = normal(n, c, *size) * (1 + normal(1, c, 1, 1, seed=1) / 4) + shift
    x, behind = (v.contiguous(memory_format=form) for v in x.split([own, more], 1))
    weight, bias = 1 + normal(c, seed=2) / 2, normal(c, seed=3)
    return (x, weight, bias, groups, 1e-6, None, None, None, True, behind if more else None)


def meets_the_rule(backend, args, as_accurate, wide, grads=None):
    """The answer; and the gradients, where asked for."""

    def found(op, args):
        y = op(*args)
        if grads is None:
            return [y]
        return [y, *grads(op, args, normal(*y.shape, seed=9).to(y.dtype))]

    with kernels.use(backend):
        got = found(group_norm_silu, args)
    own = found(group_norm_silu.reference, args)
    for g, o, e in zip(got, own, found(group_norm_silu.reference, wide(args)), strict=True):
        as_accurate(g, o, e)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=list(map(str, SIZES)))
def test_native_meets_the_rule_at_the_sizes_of_networks(size, width, as_accurate, wide, need):
    channels = sum(width)
    counts = {g for g in (1, 16, 32, min(32, channels // 4)) if channels % g == 0}
    for groups, form in zip(sorted(counts), itertools.cycle((LAST, LAST, CONTIGUOUS))):
        args = call(1, *width, size, groups, form)
        need(group_norm_silu, "native", args)
        meets_the_rule("native", args, as_accurate, wide)


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@pytest.mark.parametrize("size", [(4, 4), (7, 7), (16, 16)], ids=str)
def test_native_gradients_meet_the_rule_at_the_sizes_of_networks(
    size, width, as_accurate, wide, grads, need
):
    args = call(2, *width, size, 32, LAST)
    need(group_norm_silu, "native", args)
    meets_the_rule("native", args, as_accurate, wide, grads)


# Held whole, with lanes to spare and groups of 12 or 18; a seam inside a group; one wide group.
@pytest.mark.parametrize(
    ("width", "size", "groups"),
    [
        ((256, 128), 16, 32),
        ((576, 0), 16, 32),
        ((96, 0), 49, 24),
        ((32, 0), 256, 8),
        ((128, 0), 64, 1),
        ((192, 192), 1, 32),
    ],
    ids=str,
)
def test_triton_meets_the_rule_at_sizes_of_networks(
    width, size, groups, as_accurate, wide, grads, need
):
    args = call(1, *width, SIZES[size], groups, LAST)
    need(group_norm_silu, "triton", args)
    meets_the_rule("triton", args, as_accurate, wide, grads)


CUTS = [(1, 64, 1), (4, 32, 4), (2, 16, 8)]  # held; walked in two chunks, and in four


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_no_cut_changes_what_triton_computes(cut, as_accurate, wide, grads, need):
    args = call(1, 16, 8, (7, 7), 4, LAST)
    need(group_norm_silu, "triton", args)
    fields = dict(zip(("groups", "places", "warps"), cut, strict=True))
    with (
        configs.using("group_norm_silu.forward", **fields),
        configs.using("group_norm_silu.backward", **fields),
    ):
        meets_the_rule("triton", args, as_accurate, wide, grads)


def test_how_many_programs_share_a_walk_changes_no_bit(monkeypatch, grads, need):
    """Few images are shared among more programs than many are; an image must not feel it."""
    args = call(1, 16, 8, (7, 7), 4, LAST)
    need(group_norm_silu, "triton", args)
    from kdgen.kernels._triton import group_norm_silu as source

    found = []
    for shares in (1, 3):
        monkeypatch.setattr(source, "_shares", lambda *_, shares=shares: shares)
        with (
            kernels.use("triton"),
            configs.using("group_norm_silu.forward", places=16, warps=1),
            configs.using("group_norm_silu.backward", places=16, warps=1),
        ):
            y = group_norm_silu(*args)
            found.append([y, *grads(group_norm_silu, args, normal(*y.shape, seed=9))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [(192, 0), (192, 192)], ids=str)
def test_on_a_gpu_an_image_too_large_to_be_held_does_not_feel_its_batch(width, dtype, grads):
    args = [a.to("cuda", dtype) if isinstance(a, torch.Tensor) else a
            for a in call(200, *width, (64, 64), 32, LAST)]  # fmt: skip
    x, more = args[0], args[-1]
    dy = normal(200, sum(width), 64, 64, seed=9).to("cuda", dtype)

    def run(count):
        few = [x[:count], *args[1:-1], None if more is None else more[:count]]
        y = group_norm_silu(*few)
        return y, grads(group_norm_silu, few, dy[:count])[0]

    with kernels.use("triton"):
        together = run(200)
        for count in (1, 3, 64):
            for alone, all_of_them in zip(run(count), together, strict=True):
                assert torch.equal(alone, all_of_them[:count])


@per_backend
@pytest.mark.parametrize("groups", [4, 2, 6], ids=["seam at a group", "seam in one", "seam in one"])
def test_a_second_input_is_a_concatenation_to_the_bit(backend, groups, grads, need):
    args = call(2, 12, 12 if groups != 2 else 20, (4, 4), groups if groups != 6 else 2, LAST)
    x, more = args[0], args[-1]
    whole = (torch.cat([x, more], 1), *args[1:-1], None)
    need(group_norm_silu, backend, args)
    dy = normal(*whole[0].shape, seed=9)
    with kernels.use(backend):
        assert torch.equal(group_norm_silu(*args), group_norm_silu(*whole))
        dx, *parameters, dmore = grads(group_norm_silu, args, dy)
        together, *others = grads(group_norm_silu, whole, dy)
    assert torch.equal(torch.cat([dx, dmore], 1), together)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("forms", [(LAST, CONTIGUOUS), (CONTIGUOUS, LAST)], ids=["nhwc", "nchw"])
def test_a_second_input_may_have_another_layout(backend, forms, grads, need):
    """The answer has the first one's."""
    args = call(2, 12, 8, (4, 4), 4, forms[0])
    other = (*args[:-1], args[-1].contiguous(memory_format=forms[1]))
    need(group_norm_silu, backend, other)
    dy = normal(2, 20, 4, 4, seed=9)
    with kernels.use(backend):
        y = group_norm_silu(*other)
        assert y.is_contiguous(memory_format=forms[0])
        assert torch.equal(y, group_norm_silu(*args))
        for a, b in zip(grads(group_norm_silu, other, dy), grads(group_norm_silu, args, dy),
                        strict=True):  # fmt: skip
            assert torch.equal(a, b)


def test_more_images_than_a_grid_once_had_room_for(device, as_accurate, wide, need):
    """More than 65535 / groups."""
    args = [a.to(device) if isinstance(a, torch.Tensor) else a
            for a in call(3, 32768, 0, (2, 1), 32768, LAST)]  # fmt: skip
    backend = "native" if device.type == "cpu" else "triton"
    need(group_norm_silu, backend, args)
    meets_the_rule(backend, tuple(args), as_accurate, wide)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (torch.ones(2, 4, 2, 3), r"more has shape \(2, 4, 2, 3\); expected \(2, 4, 2, 2\)"),
        (torch.ones(3, 4, 2, 2), r"more has shape \(3, 4, 2, 2\); expected \(2, 4, 2, 2\)"),
        (torch.ones(2, 0, 2, 2), r"more has shape \(2, 0, 2, 2\); expected \(2, 1, 2, 2\)"),
        (torch.ones(2, 4, 2), r"more has shape \(2, 4, 2\); expected 4 dimensions, as x"),
        (torch.ones(2, 4, 2, 2).half(), "more has dtype float16; expected float32"),
        (torch.ones(2, 4, 2, 2, device="meta"), "more is on meta; expected cpu"),
        (torch.ones(2, 3, 2, 2), "x and more have 11 channels, groups is 4.*Pass groups=1"),
        ([1.0], "more is a list; expected a tensor"),
    ],
)
def test_a_wrong_second_input_is_named(more, message):
    with pytest.raises(ValueError, match=rf"^group_norm_silu: .*{message}"):
        group_norm_silu(torch.ones(2, 8, 2, 2), torch.ones(12), torch.ones(12), 4, more=more)
