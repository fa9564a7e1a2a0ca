"""The published U-Net, to the parameter, and what every size of it must do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets
from kdgen.nets import PRESETS, UNet, UNetConfig
from kdgen.nets.unet import Down, Embedding, GroupNorm, Pointwise, Up
from kdgen.samplers import LANES

Lively = Callable[..., nn.Module]
SMALL = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,))


def images(n: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    r = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, size, size, generator=r)


@pytest.mark.parametrize(
    ("name", "count"),
    [("ddpm32", 35_746_307), ("ddpm64", 78_700_803), ("ddpm256", 113_673_219)],
)
def test_published_sizes_have_the_published_number_of_parameters(name: str, count: int):
    """Oracle O-12; shapes only, so that a gigabyte of weights need not be drawn."""
    with torch.device("meta"):
        net = nets.preset(name)
    assert sum(p.numel() for p in net.parameters()) == count
    size = net.shape[-1]
    x, time = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, device="meta")
    assert net(x, time).shape == (1, 3, size, size)


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("tiny")])
def test_a_fresh_network_says_zero(name: str):
    """Oracle O-12: the last convolution and every residual branch begin at zero."""
    net = nets.preset(name)
    x = images(2, *net.shape[:2])
    assert torch.equal(net(x, torch.tensor([3.0, 999.0])), torch.zeros_like(x))


def test_index_999_is_embedded_as_a_float_sine_first():
    """Oracle O-12: [sin, cos] of t·exp(-ln(1e4)·j/(half - 1)), so column 0 is sin(999)."""
    embedding = Embedding(SMALL)
    seen: list[Tensor] = []
    embedding.dense1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(torch.tensor([999.0]), None)
    (waves,) = seen
    assert waves[0, 0].item() == pytest.approx(math.sin(999), abs=1e-6)
    assert waves[0, 4].item() == pytest.approx(math.cos(999), abs=1e-6)
    assert waves[0, 3].item() == pytest.approx(math.sin(999 / 1e4), abs=1e-6)
    assert waves[0, 7].item() == pytest.approx(math.cos(999 / 1e4), abs=1e-6)


def test_a_bfloat16_network_still_tells_time_998_from_999(lively: Lively):
    net = lively(UNet(SMALL)).bfloat16()
    one, other = (net(images(), torch.full((2,), t)) for t in (998.0, 999.0))
    assert not torch.equal(one, other)


def test_downsampling_pads_right_and_below():
    """Oracle O-12, TensorFlow's SAME: output i sees input rows 2i, 2i + 1, 2i + 2."""
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
    x = images(1, 1, 3)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(up(x, torch.empty(0)), doubled)


def test_queries_keys_and_values_are_drawn_as_three_layers():
    """fan_avg of C -> C, not of C -> 3C."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(replace(SMALL, width=64))
    weight = net.middle[1].qkv.weight
    limit = math.sqrt(6 / (2 * 128))
    assert 0.98 * limit < weight.abs().max() <= limit


def test_images_do_not_see_each_other(lively: Lively):
    net, x, t = lively(UNet(SMALL)).eval(), images(4), torch.tensor([1.0, 50.0, 300.0, 999.0])
    turned = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x, t)[turned], net(x[turned], t[turned]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Where oneDNN orders its sums by the size of the batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_batch(
    lively: Lively, layout: torch.memory_format, dtype: torch.dtype
):
    """Batches of LANES, the smallest that are sampled, against one of all."""
    net = lively(UNet(replace(SMALL, width=32))).eval().to(dtype).to(memory_format=layout)
    x, t = images(24).contiguous(memory_format=layout), torch.arange(24.0) * 40
    with torch.no_grad():
        parts = [net(x[k : k + LANES], t[k : k + LANES]) for k in range(0, 24, LANES)]
        assert torch.equal(torch.cat(parts), net(x, t))


def test_pointwise_is_a_convolution_of_one_pixel(lively: Lively):
    conv = Pointwise(6, 10, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(3, 6, 4, 5).contiguous(memory_format=layout)
        expected = conv(x)  # it learns: torch's own convolution
        with torch.no_grad():
            y = conv(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert y.is_contiguous(memory_format=layout)


def test_channels_last_says_the_same(lively: Lively):
    net, x, t = lively(UNet(SMALL)).eval(), images(), torch.tensor([7.0, 900.0])
    expected = net(x, t)
    last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 3])
def test_every_weight_learns(lively: Lively, classes: int):
    net = lively(UNet(replace(SMALL, classes=classes)))
    label = torch.tensor([0, 1, 2, -1]) if classes else None
    net(images(4), torch.arange(4.0) * 200, label).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        if "qkv.bias" not in name:  # a key's bias cancels in the softmax
            assert p.grad.abs().sum() > 0, name


def test_classes_and_no_class_are_told_apart(lively: Lively):
    net = lively(UNet(replace(SMALL, classes=2))).eval()
    x, t = images(1), torch.tensor([10.0])
    said = [net(x, t, torch.tensor([k])) for k in (-1, 0, 1)]
    assert not any(torch.equal(said[i], said[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(said[0], net(x, t))


def test_dropout_acts_in_training_only(lively: Lively):
    net, t = lively(UNet(replace(SMALL, dropout=0.5))), torch.tensor([1.0, 2.0])
    assert not torch.equal(net(images(), t), net(images(), t))
    net.eval()
    assert torch.equal(net(images(), t), net(images(), t))


def test_autocast_runs_in_bfloat16_and_learns(lively: Lively):
    net = lively(UNet(SMALL))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images(), torch.tensor([1.0, 999.0]))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("channels", "groups"), [(4, 1), (8, 2), (96, 24), (128, 32), (144, 24), (384, 32)]
)
def test_groups_divide_and_hold_four_channels_or_more(channels: int, groups: int):
    assert GroupNorm(channels, UNetConfig(8)).groups == groups


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"resolution": 28}, "resolution 28 with 4 levels; expected a multiple of 8"),
        ({"resolution": 8, "width": 6}, "width is 6; expected a multiple of 4"),
        ({"resolution": 8, "width": 0}, "width is 0; expected a multiple of 4"),
        ({"resolution": 0}, "expected sizes of at least 1"),
        ({"resolution": 8, "mult": ()}, "expected sizes of at least 1"),
        ({"resolution": 8, "dropout": 1.0}, "dropout in"),
        ({"resolution": 8, "classes": -1}, "classes of at least 0"),
    ],
    ids=str,
)
def test_impossible_networks_are_refused(facts: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**facts)


def test_a_config_makes_the_same_network_again(lively: Lively):
    net = lively(UNet(replace(SMALL, classes=2)))
    facts = json.loads(json.dumps(net.config()))
    assert facts.pop("name") == "unet"
    again = UNet(UNetConfig(**facts))
    again.load_state_dict(net.state_dict())
    t = torch.tensor([5.0, 6.0])
    assert torch.equal(again(images(), t), net(images(), t))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'tiny'; expected ddpm32, ddpm64"):
        nets.preset("tiny")
    with pytest.raises(ValueError, match="unknown network 'vit'; expected unet"):
        nets.denoiser({"net": {"name": "vit"}})
