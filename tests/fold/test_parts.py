"""What single folds do to single layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdgen import fold, nets
from kdgen.denoiser import Denoiser
from kdgen.fold.attention import Merged, fold_attention
from kdgen.fold.up import Enlarge, transposed
from kdgen.nets.blocks import Attention, ResBlock
from kdgen.nets.resample import Double, Up
from kdgen.schedules import Flow

Lively = Callable[..., nn.Module]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 4), (7, 3)], ids=str)
def test_a_transposed_convolution_is_a_doubling_and_a_convolution(
    size: tuple[int, int], bias: bool
):
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias).double()
    x = torch.randn(2, 5, *size).double()
    expected = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(transposed(conv)(x), expected, rtol=1e-12, atol=1e-12)
    assert transposed(conv).weight.is_contiguous(memory_format=torch.channels_last)


def test_other_convolutions_behind_a_doubling_are_refused():
    with pytest.raises(ValueError, match="a convolution behind a doubling has kernel"):
        transposed(nn.Conv2d(4, 4, 5, padding=2))


def test_an_upward_block_projects_the_small_image(families: Callable[..., Any]):
    folded = fold.fold(families("edm32").denoiser(), [1.0], folds=["up"])
    (block,) = (
        m for m in folded.net.modules() if isinstance(getattr(m, "conv1", 0), nn.ConvTranspose2d)
    )
    assert isinstance(block.resize, nn.Identity)
    project, double = block.shortcut
    assert project.kernel_size == (1, 1)
    assert isinstance(double, Double)


def test_without_the_fold_the_pair_stays_where_an_engine_finds_it(families: Callable[..., Any]):
    for name, kind in (("ddpm32", Up), ("adm64", Double)):
        folded = fold.fold(families(name).denoiser(), [1.0], folds=set(fold.ALL) - {"up"})
        assert [m for m in folded.net.modules() if isinstance(m, kind)]
        assert not [m for m in folded.net.modules() if isinstance(m, Enlarge | nn.ConvTranspose2d)]


def test_a_longer_filter_is_left_alone(families: Callable[..., Any]):
    folded = fold.fold(families("ncsnpp32").denoiser(), [1.0])
    assert folded.places["up"] == 0
    assert [m for m in folded.net.modules() if isinstance(m, Double)]


@pytest.mark.parametrize(
    ("queries", "values", "projections"), [(True, True, 2), (True, False, 3), (False, True, 3)]
)
def test_one_head_needs_fewer_projections(
    lively: Lively, queries: bool, values: bool, projections: int
):
    config = nets.UNetConfig(8, width=16, mult=(1,), blocks=1, attention=(8,))
    net = lively(nets.UNet(config)).double()
    attention = net.middle[1]
    x = torch.randn(2, 16, 5, 3).double()
    expected = attention(x, x)
    assert fold_attention(net, queries=queries, values=values) == 4
    merged = net.middle[1]
    assert isinstance(merged, Merged)
    torch.testing.assert_close(merged(x, x), expected, rtol=1e-11, atol=1e-11)
    products = [m for m in merged.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.numel() for m in products) == projections * 16 * 16


def test_several_heads_are_left_alone(families: Callable[..., Any]):
    folded = fold.fold(families("adm64").denoiser(), [1.0])
    assert folded.places["queries"] == folded.places["values"] == 0
    assert [m for m in folded.net.modules() if isinstance(m, Attention)]


def test_only_the_middle_of_the_network_keeps_a_residual_factor(families: Callable[..., Any]):
    for name in ("edm32", "ncsnpp32", "cud28", "rf32"):
        net = fold.fold(families(name).denoiser(), [1.0]).net
        sums = [m for m in net.modules() if isinstance(m, ResBlock | Merged)]
        assert [m for m in sums if m.skip_scale != 1.0] == [net.middle[-1]]
        assert net.pyramid_scale == 1.0 or not net.pyramid
        assert net.facts.skip_gain is None


@pytest.mark.parametrize("phi", [None, 0.3])
@pytest.mark.parametrize(
    "facts",
    [
        {"mult": (1, 1, 1)},
        {"mult": (2, 1), "blocks": 2},  # decoders whose concatenation is as wide as their output
        {"mult": (2, 1), "resample": "block", "outputs": 2},
        {"mult": (2, 1), "resample": "projected", "pyramid": True, "filter": (1, 3, 3, 1)},
        {"mult": (1, 2), "resample": "block", "pyramid": True, "scale_shift": True},
        {"mult": (2,), "blocks": 3},
    ],
    ids=str,
)
def test_factors_find_their_way_through_any_network(
    lively: Lively,
    error: Callable[..., float],
    facts: dict[str, Any],
    phi: float | None,
):
    shape = {"width": 8, "blocks": 1, "attention": (4,), "norm_eps": 0.1}
    config = nets.UNetConfig(8, **shape | facts, skip_scale=math.sqrt(0.5), skip_gain=phi)
    plain = Denoiser(lively(nets.UNet(config)), Flow(), "velocity", "raw").double().eval()
    for folds, times in ((["scales"], [0.4]), (["gains"], [0.4]), (fold.ALL, [1.0, 0.4])):
        folded = fold.fold(plain, times, folds=folds, check=False)
        assert error(plain, folded, 0.4, None) < 1e-10
    folded = fold.fold(plain, [0.4], check=False)
    assert error(plain, folded, 0.4, None) < 1e-10
    assert bool(folded.places["gains"]) == (phi is not None)


@pytest.mark.parametrize(("phi", "t"), [(0.0, 1.0), (1.0, 1.0)])
def test_a_gain_of_zero_stays(lively: Lively, error: Callable[..., float], phi: float, t: float):
    config = nets.UNetConfig(8, width=8, mult=(1, 2), skip_scale=math.sqrt(0.5), skip_gain=phi)
    plain = Denoiser(lively(nets.UNet(config)), Flow(), "velocity", "raw").double().eval()
    folded = fold.fold(plain, [t], check=False)
    assert error(plain, folded, t, None) < 1e-10
    assert folded.places["gains"] == 0
    assert folded.places["scales"] > 0


def test_a_network_without_factors_has_none_to_fold(families: Callable[..., Any]):
    folded = fold.fold(families("ddpm32").denoiser(), [1.0])
    assert folded.places["scales"] == folded.places["gains"] == 0
