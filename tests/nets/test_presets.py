"""The published networks, to the parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdgen import nets
from kdgen.nets import PRESETS, UNet, UNetConfig

Small = Callable[..., UNetConfig]
COUNTS = {
    "ddpm32": 35_746_307,
    "ddpm64": 78_700_803,
    "ddpm256": 113_673_219,
    "pd32": 60_004_099,
    "pd64": 295_905_222,
    "pd128": 139_578_502,
    "edm32": 55_733_891,
    "edm32-cond": 55_735_299,
    "edm64": 61_805_571,
    "adm64": 295_899_267,
    "ncsnpp32": 56_397_827,
    "rf32": 61_804_419,
    "cud28": 2_155_201,
    "cudenc32": 2_208_966,
}
BEGINS_AT_ZERO = ("ddpm32", "pd32", "pd64", "adm64")
BEGINS_SMALL = ("edm32", "edm32-cond", "ncsnpp32", "rf32")


def on_meta(name: str, **changes: Any) -> UNet:
    """Shapes only, so that a gigabyte of weights need not be drawn."""
    with torch.device("meta"):
        return nets.preset(name, **changes)


def size(net: UNet) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_published_networks_have_the_published_number_of_parameters(name: str, count: int):
    net = on_meta(name)
    assert size(net) == count
    x, time = torch.empty(2, *net.shape, device="meta"), torch.empty(2, device="meta")
    out = PRESETS[name].out_channels or net.shape[0]
    assert net(x, time).shape == (2, out, *net.shape[1:])


def test_all_presets_are_counted_but_ours():
    assert COUNTS.keys() == {name for name in PRESETS if not name.startswith("tiny")}


def test_augmentations_and_classes_are_what_the_edm_networks_differ_in():
    assert size(on_meta("edm32", augments=0)) == 55_732_739
    assert size(on_meta("edm64", augments=0)) == size(on_meta("rf32"))


def images(net: UNet) -> torch.Tensor:
    r = torch.Generator().manual_seed(0)
    return torch.randn(2, *net.shape, generator=r)


@pytest.mark.parametrize("name", BEGINS_AT_ZERO)
def test_a_fresh_network_says_zero(small: Small, name: str):
    """The last convolution and every residual branch begin at zero."""
    net = UNet(small(name))
    assert not net(images(net), torch.tensor([3.0, 999.0])).any()
    for block in (net.middle[0].conv2, net.middle[1].out):
        assert not block.weight.any()
        assert not block.bias.any()


@pytest.mark.parametrize("name", BEGINS_SMALL)
def test_a_fresh_ddpmpp_network_says_almost_nothing(small: Small, name: str):
    """Weights there begin at 1e-5 of the others, so that gradients reach all layers at once."""
    net = UNet(small(name))
    said = net(images(net), torch.tensor([-1.5, 1.0])).abs().max()
    assert 0 < said < 1e-3
    said.backward()
    # All but the first layers of the augmentation, which needs its labels.
    silent = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert all("augment" in n or "label.weight" in n or "qkv.bias" in n for n in silent)


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("tiny")])
def test_ours_run(name: str):
    net = nets.preset(name)
    said = net(images(net), torch.tensor([3.0, 9.0]))
    assert said.shape == (2, *net.shape)
    assert said.abs().max() < 1e-3


def test_a_preset_takes_changes():
    net = nets.preset("tiny8", classes=4, dropout=0.1)
    assert (net.classes, net.facts.dropout, net.facts.width) == (4, 0.1, 32)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"resolution": 28}, "resolution 28 with 4 levels; expected a multiple of 8"),
        ({"resolution": 8, "width": 6}, "width is 6; expected a multiple of 4"),
        ({"resolution": 8, "width": 0}, "width is 0; expected a multiple of 4"),
        ({"resolution": 0}, "expected sizes of at least 1"),
        ({"resolution": 8, "mult": ()}, "expected sizes of at least 1"),
        ({"resolution": 8, "outputs": 0}, "expected sizes of at least 1"),
        ({"resolution": 8, "head_width": 0}, "expected sizes of at least 1"),
        ({"resolution": 8, "dropout": 1.0}, "dropout in"),
        ({"resolution": 8, "classes": -1}, "augments and classes of at least 0"),
        ({"resolution": 8, "augments": -1}, "augments and classes of at least 0"),
        ({"resolution": 8, "waves": "cos"}, "waves is 'cos'; expected sin_cos, cos_sin, fourier"),
        ({"resolution": 8, "labels": "one"}, "labels is 'one'; expected table, dense"),
        ({"resolution": 8, "init": "zero"}, "init is 'zero'; expected xavier, xavier_small"),
        ({"resolution": 8, "resample": "fft"}, "resample is 'fft'; expected conv, block"),
        ({"resolution": 8, "decoder_attention": "no"}, "decoder_attention is 'no'; expected every"),
        ({"resolution": 8, "filter": (1, 2, 1)}, "expected an even number of weights"),
        ({"resolution": 8, "filter": (1, -1)}, "a sum above 0"),
        ({"resolution": 8, "skip_gain": 1.5}, "skip_gain is 1.5; expected a share"),
        ({"resolution": 8, "head_width": 96}, "head_width is 96, attention has 256 channels"),
    ],
    ids=str,
)
def test_impossible_networks_are_refused(facts: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**facts)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="'tiny'; expected ddpm32, ddpm64"):
        nets.preset("tiny")
    with pytest.raises(ValueError, match="unknown network 'vit'; expected unet"):
        nets.denoiser({"net": {"name": "vit"}})
