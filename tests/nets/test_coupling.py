"""The encoder of a learned coupling: a distribution of noise for every image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets
from kdgen.nets.coupling import Coupling, encoder

SHAPE = (3, 8, 8)


def small(**options: object) -> nets.UNet:
    return nets.UNet(nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), **options))


def images(n: int = 4) -> Tensor:
    return torch.rand(n, *SHAPE) * 2 - 1


def test_at_first_the_noise_is_independent_of_the_image():
    mean, logvar = encoder(small())(images())
    assert torch.equal(mean, torch.zeros(4, *SHAPE))
    assert torch.equal(logvar, torch.zeros(4, *SHAPE))


def test_an_encoder_is_in_the_style_of_the_network_beside_it():
    like = small(norm_eps=1e-5, classes=3, dropout=0.1, augments=9, outputs=3, skip_gain=0.75)
    facts = encoder(like).net.facts
    assert facts.augments == 0
    assert (facts.norm_eps, facts.classes, facts.attention) == (1e-5, 3, (4,))
    assert (facts.dropout, facts.outputs, facts.skip_gain) == (0.0, 1, None)
    assert (facts.width, facts.mult, facts.blocks) == (32, (2, 2, 2), 2)
    assert facts.out_channels == 6


@pytest.mark.parametrize(
    ("preset", "expected"), [("rf32", 2_208_966), ("edm32", 2_208_966), ("cud28", 2_155_778)]
)
def test_an_encoder_has_the_published_size(preset: str, expected: int):
    """Of the networks for CIFAR-10 and MNIST."""
    assert sum(p.numel() for p in encoder(nets.preset(preset)).parameters()) == expected


@pytest.mark.parametrize(("resolution", "levels"), [(32, 3), (28, 3), (8, 3), (6, 2), (5, 1)])
def test_an_image_is_halved_as_often_as_it_can_be(resolution: int, levels: int):
    like = nets.UNet(nets.UNetConfig(resolution, width=8, mult=(1,), blocks=1))
    assert encoder(like).net.facts.mult == (2, 2, 2)[:levels]


def test_an_encoder_has_the_dtype_of_the_network_beside_it():
    mean, logvar = encoder(small().double())(images().double())
    assert mean.dtype == logvar.dtype == torch.float64


def test_the_network_is_asked_at_time_one_and_told_the_class(
    lively: Callable[..., nn.Module],
):
    net = lively(small(out_channels=6, classes=3))
    label = torch.tensor([0, 1, 2, -1])
    x0 = images()
    mean, logvar = Coupling(net)(x0, label)
    expected = net(x0, torch.ones(4), label)
    assert torch.equal(torch.cat([mean, logvar], dim=1), expected)
    assert not torch.equal(mean, Coupling(net)(x0)[0])


def test_the_distribution_is_float32_under_autocast(lively: Callable[..., nn.Module]):
    coupling = lively(encoder(small()))
    with torch.autocast("cpu", torch.bfloat16):
        mean, logvar = coupling(images())
    assert mean.dtype == logvar.dtype == torch.float32


def test_a_copy_is_independent():
    coupling = encoder(small()).eval()
    twin = coupling.copy()
    assert not twin.training
    with torch.no_grad():
        twin.net.conv_out.bias.add_(1)
    assert torch.equal(coupling(images())[0], torch.zeros(4, *SHAPE))
    assert not torch.equal(twin(images())[0], torch.zeros(4, *SHAPE))


def test_it_says_what_it_is():
    coupling = encoder(small(classes=3))
    assert (coupling.shape, coupling.classes) == (SHAPE, 3)
    config = coupling.config()
    assert config["name"] == "coupling"
    facts = dict(config["net"])
    assert facts.pop("name") == "unet"
    again = Coupling(nets.UNet(nets.UNetConfig(**facts)))
    again.load_state_dict(coupling.state_dict())


def test_a_network_with_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected \(4, 6, 8, 8\)\. Set its out_channels to 6"):
        Coupling(small())(images())
