"""Layers and blocks against their formulas, in plain torch and float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.nets import PRESETS, UNet, UNetConfig
from kdgen.nets.blocks import Attention, ResBlock, joined, packed
from kdgen.nets.layers import GroupNorm, Pointwise
from kdgen.nets.resample import Double, Down, Halve, Shrink, Up

Lively = Callable[..., nn.Module]
Small = Callable[..., UNetConfig]
FAMILIES = ("ddpm32", "pd64", "edm32", "ncsnpp32", "adm64")


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def norm(layer: GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, layer.groups, layer.weight, layer.bias, layer.eps)


# ---- layers ---------------------------------------------------------------------------------


def test_pointwise_is_a_convolution_of_one_pixel():
    conv = Pointwise(6, 10, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = images(3, 6, 4, 5, dtype=torch.float32).contiguous(memory_format=layout)
        expected = conv(x)  # it learns: torch's own convolution
        with torch.no_grad():
            y = conv(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (96, 24), (128, 32), (144, 24), (384, 32)]
)
def test_groups_divide_and_hold_four_channels_or_more(channels: int, groups: int):
    assert GroupNorm(channels, UNetConfig(8)).groups == groups


def test_progressive_distillation_always_has_32_groups():
    assert GroupNorm(64, PRESETS["pd128"]).groups == 32


def test_the_norms_epsilon_is_the_familys(small: Small):
    assert UNet(small("adm64")).norm_out.eps == 1e-5
    assert all(UNet(small(name)).norm_out.eps == 1e-6 for name in ("ddpm32", "pd64", "edm32"))


@pytest.mark.parametrize("learns", [True, False])
def test_a_pointwise_product_of_two_is_that_of_both_as_one(learns: bool):
    """Every pair of layouts; and the gradients of the shortcut's weight have both parts."""
    conv = Pointwise(10, 7, 1)
    for first in (torch.contiguous_format, torch.channels_last):
        for second in (torch.contiguous_format, torch.channels_last):
            x = images(3, 6, 4, 5, dtype=torch.float32).contiguous(memory_format=first)
            more = images(3, 4, 4, 5, dtype=torch.float32).contiguous(memory_format=second)
            with torch.set_grad_enabled(learns):
                y = conv(x, more)
            expected = F.conv2d(torch.cat([x, more], 1), conv.weight, conv.bias)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
            assert y.is_contiguous(memory_format=first) or learns
    if learns:
        pairs = zip(torch.autograd.grad(y.square().sum(), list(conv.parameters())),
                    torch.autograd.grad(expected.square().sum(), list(conv.parameters())),
                    strict=True)  # fmt: skip
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


# ---- resampling -----------------------------------------------------------------------------


def test_downsampling_pads_right_and_below():
    """TensorFlow's SAME: output i sees input rows 2i, 2i + 1, 2i + 2."""
    down = Down(1)
    nn.init.ones_(down.conv.weight)
    for row in range(4):
        for column in range(4):
            x = torch.zeros(1, 1, 4, 4)
            x[0, 0, row, column] = 1
            rows, columns = ([2 * i <= v <= 2 * i + 2 for i in (0, 1)] for v in (row, column))
            expected = torch.tensor([[r and c for c in columns] for r in rows]).float()
            assert torch.equal(down(x, torch.empty(0))[0, 0], expected)


def test_upsampling_doubles_every_pixel_before_its_convolution():
    up = Up(1)
    nn.init.zeros_(up.conv.weight)
    up.conv.weight.data[0, 0, 1, 1] = 1
    x = images(1, 1, 3, 3, dtype=torch.float32)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(up(x, torch.empty(0)), doubled)


def test_the_box_filter_is_a_mean_and_nearest_neighbour():
    x = images(2, 3, 4, 4)
    close(Halve(3, (1, 1))(x), x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)))
    close(Double(3, (1, 1))(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_the_box_filter_is_one_of_the_filters():
    """(2, 2) is (1, 1), by way of a convolution."""
    x = images(2, 3, 4, 4)
    close(Halve(3, (2, 2)).double()(x), Halve(3, (1, 1))(x))
    close(Double(3, (2, 2)).double()(x), Double(3, (1, 1))(x))


def test_the_tent_filter_reaches_one_pixel_beyond():
    """Output i of the smaller image is (1, 3, 3, 1)/8 of pixels 2i - 1 … 2i + 2, zero outside."""
    ramp = torch.arange(8.0).double().expand(1, 1, 8, 8)
    down = Halve(1, (1, 3, 3, 1)).double()(ramp)
    close(down[0, 0, 1, 1:3], torch.tensor([2.5, 4.5]).double())
    assert down[0, 0, 1, 0].item() == pytest.approx((0 * 3 + 1 * 3 + 2) / 8)
    up = Double(1, (1, 3, 3, 1)).double()(ramp)
    close(up[0, 0, 2, 1:5], torch.tensor([0.25, 0.75, 1.25, 1.75]).double())


def test_halving_is_the_transpose_of_doubling():
    for taps in ((1, 1), (1, 3, 3, 1), (1, 2, 5, 1)):
        halve, double = Halve(2, taps).double(), Double(2, taps).double()
        x, y = images(1, 2, 8, 8), images(1, 2, 4, 4)
        close((double(y) * x).sum(), 4 * (y * halve(x)).sum())


def test_the_pyramid_convolves_before_it_halves():
    shrink = Shrink(3, 4, (1, 3, 3, 1), "xavier").double()
    x = images(2, 3, 8, 8)
    wide = F.conv2d(x, shrink.conv.weight, shrink.conv.bias, padding=2)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    kernel = row.outer(row).expand(4, 1, 4, 4)
    close(shrink(x), F.conv2d(wide, kernel, stride=2, groups=4))
    assert shrink(x).shape == (2, 4, 4, 4)


# ---- residual blocks ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, math.sqrt(0.5)])
def test_a_residual_sum_has_the_same_bits_in_one_pass_and_in_two(scale: float, monkeypatch):
    """So that an image's bits do not depend on how many others were in its batch."""
    x, h = (images(*shape, dtype=torch.float32) for shape in ((2, 5, 8, 8), (2, 5, 8, 8)))
    two = joined(x, h, scale)
    monkeypatch.setattr("kdgen.nets.blocks.FUSED_FROM", 0)
    assert torch.equal(joined(x, h, scale), two)
    torch.testing.assert_close(two, (x + h) * scale)
    assert joined(x, h.bfloat16(), scale).dtype == torch.float32
    assert joined(x.bfloat16(), h.bfloat16(), scale).dtype == torch.bfloat16


@pytest.mark.parametrize("resize", ["", "down", "up"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_residual_block_is_its_formula(lively: Lively, small: Small, name: str, resize: str):
    config = small(name)
    block = lively(ResBlock(16, 16 if resize else 24, config, resize)).double()
    x, emb = images(3, 16, 8, 8), images(3, config.emb_width)
    way = {
        "": lambda v: v,
        "down": Halve(16, config.filter).double(),
        "up": Double(16, config.filter).double(),
    }[resize]
    h = block.conv1(way(F.silu(norm(block.norm1, x))))
    time = block.time(emb)[:, :, None, None]
    if name in ("pd64", "adm64"):
        scale, shift = time.chunk(2, dim=1)
        h = norm(block.norm2, h) * (1 + scale) + shift
    else:
        h = norm(block.norm2, h + time)
    h = block.conv2(F.silu(h))
    short = way(x)
    if not resize or name in ("edm32", "ncsnpp32"):
        short = F.conv2d(short, block.shortcut.weight, block.shortcut.bias)
    else:
        assert not list(block.shortcut.parameters())
    expected = (short + h) * (math.sqrt(0.5) if name in ("edm32", "ncsnpp32") else 1)
    close(block(x, emb), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoders_block_takes_its_skip_as_a_tensor_of_its_own(
    lively: Lively, small: Small, name: str
):
    """As if it had been concatenated; the weights are those of one input."""
    config = small(name)
    block = lively(ResBlock(28, 16, config, skip=12)).double()
    whole = ResBlock(28, 16, config).double()
    whole.load_state_dict(block.state_dict())
    x, skip, emb = images(3, 16, 8, 8), images(3, 12, 8, 8), images(3, config.emb_width)
    close(block(x, emb, skip), whole(torch.cat([x, skip], 1), emb))


# ---- attention ------------------------------------------------------------------------------


def attention(layer: Attention, x: Tensor) -> Tensor:
    """Head after head, image after image."""
    n, c, height, width = x.shape
    rows = F.conv2d(norm(layer.norm, x), layer.qkv.weight, layer.qkv.bias).flatten(2)
    y, size = torch.empty(n, c, height * width, dtype=x.dtype), c // layer.heads
    for i in range(n):
        for k in range(0, c, size):
            q, k_, v = (rows[i, part * c + k : part * c + k + size] for part in range(3))
            weight = (q.T @ k_ / math.sqrt(size)).softmax(1)  # (query, key)
            y[i, k : k + size] = v @ weight.T
    out = F.conv2d(y.view(x.shape), layer.out.weight, layer.out.bias)
    return (x + out) * layer.skip_scale


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_is_its_formula(lively: Lively, small: Small, name: str):
    layer = lively(Attention(16, small(name))).double()
    assert layer.heads == (2 if name in ("pd64", "adm64") else 1)
    x = images(2, 16, 4, 4)
    close(layer(x, torch.empty(0)), attention(layer, x))


@pytest.mark.parametrize("head_width", [4, 16])
def test_packing_sorts_rows_of_query_key_and_value(lively: Lively, head_width: int):
    """Rows (head, channel, q/k/v): the interleaved packing, taken apart by hand."""
    layer = lively(Attention(16, UNetConfig(8, width=16, mult=(1,), head_width=head_width)))
    layer.double()
    weight, heads = layer.qkv.weight.detach().clone(), layer.heads
    x = images(2, 16, 4, 4)
    with torch.no_grad():
        expected = x.clone()
        rows = F.conv2d(norm(layer.norm, x), weight, layer.qkv.bias).flatten(2)
        q, k, v = rows.reshape(2 * heads, 16 // heads, 3, -1).unbind(2)
        odds = (torch.einsum("ncq,nck->nqk", q, k) / math.sqrt(16 // heads)).softmax(2)
        y = torch.einsum("nqk,nck->ncq", odds, v).reshape(x.shape)
        expected += F.conv2d(y, layer.out.weight, layer.out.bias)

        unsorted = layer(x, torch.empty(0))
        layer.qkv.weight.copy_(packed(weight, heads))
        layer.qkv.bias.copy_(packed(layer.qkv.bias.clone(), heads))
        said = layer(x, torch.empty(0))
    close(said, expected)
    assert (unsorted - expected).abs().max() > 1e-2


def test_each_of_query_key_and_value_has_its_own_place(lively: Lively):
    """A permuted packing is not the same network."""
    layer = lively(Attention(16, UNetConfig(8, width=16, mult=(1,)))).double()
    x = images(2, 16, 4, 4)
    before = layer(x, torch.empty(0))
    for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1]):
        turned = lively(Attention(16, UNetConfig(8, width=16, mult=(1,)))).double()
        with torch.no_grad():
            for p in (turned.qkv.weight, turned.qkv.bias):
                p.copy_(torch.cat([p.chunk(3)[k] for k in order]))
        changed = (turned(x, torch.empty(0)) - before).abs().max()
        assert changed > 1e-2, order


@pytest.mark.parametrize("name", FAMILIES)
def test_ddpmpp_attends_in_the_last_block_of_a_decoder_level_only(small: Small, name: str):
    net = UNet(small(name, blocks=2))

    def attends(chains: nn.ModuleList) -> list[bool]:
        return [any(isinstance(m, Attention) for m in chain) for chain in chains]

    every = name not in ("edm32", "ncsnpp32")
    assert attends(net.encoder) == [False, False, False, True, True]
    assert attends(net.decoder) == [every, every, True, False, False, False]


# ---- first weights --------------------------------------------------------------------------


def test_queries_keys_and_values_are_drawn_as_three_layers():
    """fan_avg of C -> C, not of C -> 3C."""
    weight = Attention(128, UNetConfig(8)).qkv.weight
    limit = math.sqrt(6 / (2 * 128))
    assert 0.98 * limit < weight.abs().max() <= limit


def test_ddpmpp_draws_them_as_one_layer_and_smaller(small: Small):
    layer = Attention(128, small("edm32"))
    limit = math.sqrt(0.2) * math.sqrt(6 / (4 * 128))
    assert 0.98 * limit < layer.qkv.weight.abs().max() <= limit * (1 + 1e-6)
    limit = 1e-5 * math.sqrt(6 / (2 * 128))
    assert 0.98 * limit < layer.out.weight.abs().max() <= limit * (1 + 1e-6)


def test_adm_draws_biases_too(small: Small):
    torch.manual_seed(0)  # one draw of 64 in a thousand has no value near the limit
    block = ResBlock(64, 64, small("adm64"))
    limit = 1 / math.sqrt(9 * 64)
    for p in (block.conv1.weight, block.conv1.bias):
        assert 0.9 * limit < p.abs().max() <= limit
    assert not block.conv2.weight.any()
    assert not block.conv2.bias.any()


def test_progressive_distillation_begins_with_unit_gain(small: Small):
    block = ResBlock(64, 64, small("pd64"))
    assert block.conv1.weight.std().item() == pytest.approx(1 / math.sqrt(9 * 64), rel=0.02)
    assert not block.conv1.bias.any()
