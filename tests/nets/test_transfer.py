"""A network from another: the same one, one with other heads, a smaller one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdgen import fold
from kdgen.denoiser import Denoiser
from kdgen.nets import UNet, UNetConfig
from kdgen.schedules import Cosine

Lively = Callable[..., nn.Module]
Small = Callable[..., UNetConfig]
FAMILIES = ("ddpm32", "pd64", "edm32-cond", "ncsnpp32", "adm64")
TIME = torch.tensor([0.2, 0.9])


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shared(a: Tensor, b: Tensor) -> bool:
    """Whether the leading part that both have is the same."""
    both = tuple(slice(min(pair)) for pair in zip(a.shape, b.shape, strict=True))
    return torch.equal(a[both], b[both])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_is_the_same_network(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name, dropout=0.3))).eval()
    for twin in (net.copy(), net.copy(dropout=0.0)):
        theirs = twin.state_dict()
        assert theirs.keys() == net.state_dict().keys()
        assert all(torch.equal(p, theirs[n]) for n, p in net.state_dict().items())
        assert not twin.training
        assert torch.equal(twin(images(), TIME), net(images(), TIME))
    assert twin.facts.dropout == 0
    twin.conv_in.weight.data.zero_()
    assert net.conv_in.weight.any()


def test_a_copy_has_the_dtype_and_the_mode():
    net = UNet(UNetConfig(8, width=8, mult=(1, 2), blocks=1)).double().train()
    assert net.copy().conv_out.weight.dtype == torch.float64
    assert net.copy().training


def test_more_heads_leave_the_first_alone(lively: Lively, small: Small):
    net = lively(UNet(small("rf32"))).eval()
    more = net.copy(outputs=3)
    said = more(images(), TIME)
    assert said.shape == (2, 9, 8, 8)
    assert torch.equal(said[:, :3], net(images(), TIME))
    assert 0 < said[:, 3:].abs().max() < 1e-3
    lively(more.heads)
    fewer, again = more.copy(outputs=2), more(images(), TIME)
    assert torch.equal(fewer(images(), TIME), again[:, :6])


def test_more_channels_out_begin_at_zero(lively: Lively, small: Small):
    net = lively(UNet(small("ddpm32"))).eval()
    said = net.copy(out_channels=6)(images(), TIME)
    torch.testing.assert_close(said[:, :3], net(images(), TIME), rtol=1e-5, atol=1e-5)
    assert not said[:, 3:].any()


def test_no_class_stays_no_class_when_there_are_fewer(lively: Lively, small: Small):
    net = lively(UNet(small("ddpm32", classes=5))).eval()
    fewer = net.copy(classes=2)
    for k in (-1, 0, 1):
        label = torch.tensor([k, k])
        assert torch.equal(fewer(images(), TIME, label), net(images(), TIME, label))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrower_student_keeps_the_first_channels(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name)))
    student = net.copy(width=8)
    assert student(images(), TIME).shape == (2, net.conv_out.out_channels, 8, 8)
    theirs, mine = net.middle[0], student.middle[0]
    assert torch.equal(mine.conv1.weight, theirs.conv1.weight[:16, :16])
    assert torch.equal(mine.norm2.bias, theirs.norm2.bias[:16])
    assert mine.norm2.weight.numel() % mine.norm2.groups == 0
    # Queries, keys and values each keep their own.
    ours, wide = (n.middle[1].qkv.weight.unflatten(0, (3, -1)) for n in (student, net))
    assert torch.equal(ours, wide[:, :16, :16])
    # So do scales and shifts, ...
    parts = 2 if theirs.scale_shift else 1
    ours, wide = (block.time.weight.unflatten(0, (parts, -1)) for block in (mine, theirs))
    assert ours.shape[:2] == (parts, 16)
    assert shared(ours, wide)
    # ... and, where the encoder joins, both sides.
    block, wide = student.decoder[0][0], net.decoder[0][0]
    assert block.sides == (16, 16)
    assert torch.equal(block.conv1.weight[:, 16:], wide.conv1.weight[:16, 32:48])
    assert torch.equal(block.norm1.weight[16:], wide.norm1.weight[32:48])


@pytest.mark.parametrize("name", FAMILIES)
def test_fewer_blocks_are_the_first_of_every_level(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name, blocks=3)))
    student = net.copy(blocks=1)
    assert student(images(), TIME).shape == (2, net.conv_out.out_channels, 8, 8)
    # Encoder: level 0 (3 blocks), down, level 1. Decoder: level 1 (4 blocks, the last with the
    # step up), level 0.
    pairs = [(0, 0), (1, 3), (2, 4)]
    for few, many in pairs:
        for p, q in zip(
            student.encoder[few].parameters(), net.encoder[many].parameters(), strict=True
        ):
            assert torch.equal(p, q)
    for few, many in [(0, 0), (1, 1), (2, 4), (3, 5)]:
        mine, theirs = student.decoder[few][0], net.decoder[many][0]
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert shared(p, q)
    steps = (student.decoder[1][-1], net.decoder[3][-1])
    for p, q in zip(*(step.parameters() for step in steps), strict=True):
        assert torch.equal(p, q)


def test_the_only_attention_of_a_decoder_level_goes_along(lively: Lively, small: Small):
    net = lively(UNet(small("edm32", blocks=3)))
    student = net.copy(blocks=1)
    assert torch.equal(student.decoder[1][1].qkv.weight, net.decoder[3][1].qkv.weight)


def test_fewer_levels_are_the_finest_ones(lively: Lively, small: Small):
    net = lively(UNet(small("ddpm32", mult=(1, 2, 2))))
    student = net.copy(mult=(1, 2))
    assert student(images(), TIME).shape == (2, 3, 8, 8)
    assert torch.equal(student.encoder[2][0].conv1.weight, net.encoder[2][0].conv1.weight)
    assert torch.equal(student.decoder[-1][0].conv2.weight, net.decoder[-1][0].conv2.weight)


def test_a_wider_network_holds_the_narrow_one(lively: Lively, small: Small):
    net = lively(UNet(small("ddpm32")))
    wide = net.copy(width=32)
    assert torch.equal(wide.middle[0].conv1.weight[:32, :32], net.middle[0].conv1.weight)
    assert wide(images(), TIME).isfinite().all()


def test_another_way_to_resample_begins_anew(lively: Lively, small: Small):
    net = lively(UNet(small("ddpm32")))
    other = net.copy(resample="block")
    assert torch.equal(other.conv_in.weight, net.conv_in.weight)
    assert other(images(), TIME).isfinite().all()


def test_random_frequencies_go_along(lively: Lively, small: Small):
    net = UNet(small("ncsnpp32"))
    assert torch.equal(net.copy().embedding.waves.frequencies, net.embedding.waves.frequencies)


def test_a_folded_network_is_refused(small: Small):
    folded = fold.tabulate(Denoiser(UNet(small("ddpm32")), Cosine(), "v"), [1.0])
    with pytest.raises(ValueError, match="the network was folded"):
        folded.net.copy(dropout=0.0)
