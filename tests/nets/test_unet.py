"""What the U-Net of every family must do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from kdgen.nets import UNet, UNetConfig
from kdgen.rows import LANES

Lively = Callable[..., nn.Module]
Small = Callable[..., UNetConfig]
FAMILIES = pytest.mark.parametrize("name", ["ddpm32", "pd64", "edm32-cond", "ncsnpp32", "adm64"])
SMALL = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,))


def images(n: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    r = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, size, size, generator=r)


def test_a_bfloat16_network_still_tells_time_998_from_999(lively: Lively):
    net = lively(UNet(SMALL)).bfloat16()
    one, other = (net(images(), torch.full((2,), t)) for t in (998.0, 999.0))
    assert not torch.equal(one, other)


@FAMILIES
def test_images_do_not_see_each_other(lively: Lively, small: Small, name: str):
    net, x, t = lively(UNet(small(name))).eval(), images(4), torch.tensor([1.0, 0.5, -2.0, 9.0])
    label, turned = torch.tensor([0, -1, 2, 1]), torch.tensor([2, 0, 3, 1])
    said = net(x[turned], t[turned], label[turned])
    torch.testing.assert_close(net(x, t, label)[turned], said, rtol=1e-4, atol=1e-5)


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
@FAMILIES
def test_bits_do_not_depend_on_the_batch(
    lively: Lively, small: Small, name: str, layout: torch.memory_format, dtype: torch.dtype
):
    """Batches of LANES, the smallest that are sampled, against one of all."""
    net = lively(UNet(small(name, width=32))).eval().to(dtype).to(memory_format=layout)
    x, t = images(24).contiguous(memory_format=layout), torch.arange(24.0) * 40
    label = torch.arange(24) % 4 - 1 if net.classes else None
    with torch.no_grad():
        parts = [
            net(x[k : k + LANES], t[k : k + LANES], None if label is None else label[k : k + LANES])
            for k in range(0, 24, LANES)
        ]
        assert torch.equal(torch.cat(parts), net(x, t, label))


@pytest.mark.parametrize("name", ["ddpm32", "edm32", "adm64", "ncsnpp32"])
def test_bits_of_students_with_heads_and_gains_do_not_depend_on_the_batch(
    lively: Lively, small: Small, name: str
):
    net = lively(UNet(small(name, outputs=3, skip_gain=0.75))).eval()
    x, t = images(24), torch.arange(24.0) / 24
    with torch.no_grad():
        parts = [net(x[k : k + LANES], t[k : k + LANES]) for k in range(0, 24, LANES)]
        assert torch.equal(torch.cat(parts), net(x, t))


@FAMILIES
def test_channels_last_says_the_same(lively: Lively, small: Small, name: str):
    net, x, t = lively(UNet(small(name))).eval(), images(), torch.tensor([7.0, 0.5])
    last = net(x.to(memory_format=torch.channels_last), t)
    plain = net.to(memory_format=torch.contiguous_format)(x, t)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_every_weight_learns(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name, outputs=2, skip_gain=0.75)))
    label = torch.tensor([0, 1, 2, -1]) if net.classes else None
    augment = torch.ones(4, 9) if net.facts.augments else None
    net(images(4), torch.arange(4.0) / 4, label, augment).square().sum().backward()
    for n, p in net.named_parameters():
        assert p.grad is not None, n
        if "qkv.bias" not in n:  # a key's bias cancels in the softmax
            assert p.grad.abs().sum() > 0, n


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


@FAMILIES
def test_autocast_runs_in_bfloat16_and_learns(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name, classes=0, augments=0)))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(images(), torch.tensor([1.0, 0.25]))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@FAMILIES
def test_no_value_is_read(small: Small, name: str):
    net = UNet(small(name, outputs=2, skip_gain=0.75, dropout=0.1)).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        label = torch.zeros(4, dtype=torch.int64) if net.classes else None
        augment = torch.empty(4, 9) if net.facts.augments else None
        said = net(torch.empty(4, 3, 8, 8), torch.empty(4), label, augment)
        assert isinstance(said, FakeTensor)
        said.sum().backward()


@FAMILIES
def test_a_config_makes_the_same_network_again(lively: Lively, small: Small, name: str):
    net = lively(UNet(small(name, skip_gain=0.25, outputs=2)))
    facts = json.loads(json.dumps(net.config()))
    assert facts.pop("name") == "unet"
    again = UNet(UNetConfig(**facts))
    assert again.facts == net.facts
    again.load_state_dict(net.state_dict())
    t = torch.tensor([5.0, 6.0])
    assert torch.equal(again(images(), t), net(images(), t))


def test_a_description_from_before_the_other_families_is_ddpms():
    facts = {"resolution": 8, "width": 8, "mult": [1, 2], "blocks": 1, "attention": [4]}
    assert UNetConfig(**facts) == SMALL


def test_heads_stand_side_by_side_the_first_one_first(lively: Lively, small: Small):
    net = lively(UNet(small("rf32", outputs=3))).double().eval()
    seen: list[Tensor] = []
    net.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, t = images().double(), torch.tensor([0.1, 0.9]).double()
    said = net(x, t)
    first = net.copy(outputs=1)(x, t)
    torch.testing.assert_close(said[:, :3], first, rtol=1e-12, atol=1e-12)
    for head, found in zip(net.heads, said[:, 3:].split(3, dim=1), strict=True):
        h = F.group_norm(seen[0], head.norm.groups, head.norm.weight, head.norm.bias, 1e-6)
        expected = F.conv2d(F.silu(h), head.conv.weight, head.conv.bias, padding=1)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_new_heads_begin_at_almost_nothing():
    head = UNet(UNetConfig(8, width=64, mult=(1,), outputs=2)).heads[0]
    limit = 1e-5 * (6 / (9 * 67)) ** 0.5
    assert 0.9 * limit < head.conv.weight.abs().max() <= limit * (1 + 1e-6)
    assert head.norm.eps == 1e-6


@pytest.mark.parametrize(
    ("time", "main", "skip"), [(0.0, 1.5, 0.5), (0.5, 1.0, 1.0), (1.0, 0.5, 1.5)]
)
def test_skip_gains_move_from_the_decoder_to_the_encoder(
    lively: Lively, small: Small, time: float, main: float, skip: float
):
    """2p and 2·(1 − p) with p = 0.75 − t/2, in every concatenation."""
    net = lively(UNet(small("edm32", skip_gain=0.75))).double().eval()
    plain = net.copy(skip_gain=None)
    x, t = images().double(), torch.full((2,), time).double()
    for block in (chain[0] for chain in plain.decoder):
        block.register_forward_pre_hook(lambda _, args: (args[0] * main, args[1], args[2] * skip))
    torch.testing.assert_close(net(x, t), plain(x, t), rtol=1e-12, atol=1e-12)
    if time == 0.5:
        assert torch.equal(net(x, t), net.copy(skip_gain=None)(x, t))


def test_skip_gains_follow_each_images_own_time(lively: Lively, small: Small):
    net = lively(UNet(small("edm32", skip_gain=0.25))).double().eval()
    x, t = images(4).double(), torch.tensor([0.0, 0.3, 0.7, 1.0]).double()
    said = torch.cat([net(x[k : k + 1], t[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(net(x, t), said, rtol=1e-12, atol=1e-12)


def test_the_pyramid_is_half_of_what_each_level_begins_with(lively: Lively, small: Small):
    """And what the encoder makes of it is what it hands to the decoder and to the next level."""
    net = lively(UNet(small("ncsnpp32", mult=(1, 2, 2)))).double().eval()
    assert list(net.pyramid) == ["1", "3"]
    x, emb = images().double(), torch.randn(2, 64).double()
    end, skips = net._encode(x, emb)
    first = net.conv_in(x)
    second = net.encoder[0](first, emb)
    third = (net.encoder[1](second, emb) + net.pyramid["1"](x)) * 0.5**0.5
    fourth = net.encoder[2](third, emb)
    fifth = (net.encoder[3](fourth, emb) + net.pyramid["3"](third)) * 0.5**0.5
    sixth = net.encoder[4](fifth, emb)
    expected = [first, second, third, fourth, fifth, sixth]
    assert len(skips) == 6
    for found, wanted in zip([*skips, end], [*expected, sixth], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
