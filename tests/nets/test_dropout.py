"""Two forward passes with the same dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kdgen.nets import Dropout, Masks, UNet, UNetConfig

Lively = Callable[..., nn.Module]
SMALL = UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), dropout=0.4)
TIME = torch.tensor([3.0, 700.0])


@pytest.fixture
def net(lively: Lively) -> UNet:
    return lively(UNet(SMALL)).train()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_it_drops_its_share_and_keeps_the_mean():
    layer, x = Dropout(0.3), torch.ones(200_000)
    for masks in (None, Masks()):
        if masks is None:
            y = layer(x)
        else:
            with masks.drawn(layer):
                y = layer(x)
        assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
        assert torch.allclose(y[y > 0], torch.tensor(1 / 0.7))


def test_outside_of_training_nothing_is_dropped():
    layer, x = Dropout(0.5).eval(), torch.ones(9)
    assert torch.equal(layer(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("trains", [True, False], ids=["train", "eval"])
def test_the_same_masks_in_a_copy(net: UNet, trains: bool):
    """Whatever the copy's own mode and probability."""
    twin, masks = net.copy(dropout=0.1).train(trains), Masks()
    with masks.drawn(net):
        first = net(images(), TIME)
    with masks.reused(twin):
        again = twin(images(), TIME)
    assert torch.equal(first, again)
    assert not torch.equal(first, net(images(), TIME))  # and it is forgotten then
    assert torch.equal(twin.eval()(images(), TIME), net.eval()(images(), TIME))


def test_the_same_masks_in_the_network_itself(net: UNet):
    masks = Masks()
    with masks.drawn(net):
        first = net(images(), TIME)
    for _ in range(2):
        with masks.reused(net), torch.no_grad():
            torch.testing.assert_close(net(images(), TIME), first, rtol=1e-4, atol=1e-4)


def test_other_images_meet_the_same_masks(net: UNet):
    """What is dropped depends on the place, not on what stands there."""
    layer, masks = Dropout(0.5), Masks()
    with masks.drawn(layer):
        first = layer(torch.ones(50, 4))
    with masks.reused(layer):
        second = layer(torch.full((50, 4), -3.0))
    assert torch.equal(second, -3 * first)


def test_masks_are_drawn_anew_every_time(net: UNet):
    masks, said = Masks(), []
    for _ in range(2):
        with masks.drawn(net):
            said.append(net(images(), TIME))
    assert not torch.equal(*said)
    with masks.reused(net):
        assert torch.equal(net(images(), TIME), said[1])


@pytest.mark.parametrize("why", ["eval", "none"])
def test_where_nothing_is_dropped_nothing_is_remembered(net: UNet, why: str):
    quiet = net.copy().eval() if why == "eval" else net.copy(dropout=0.0)
    masks = Masks()
    with masks.drawn(quiet):
        plain = quiet(images(), TIME)
    with masks.reused(net.eval()):
        assert torch.equal(net(images(), TIME), plain)


def test_gradients_pass_where_numbers_were_kept():
    layer, masks = Dropout(0.5), Masks()
    x = torch.ones(64, requires_grad=True)
    with masks.drawn(layer):
        y = layer(x)
    with masks.reused(layer):
        z = layer(x)
    for out in (y, z):
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(grad, y.detach())


def test_bfloat16_drops_and_grows_the_same():
    layer, masks = Dropout(0.13), Masks()
    x = torch.randn(4096).bfloat16()
    with masks.drawn(layer):
        first = layer(x)
    with masks.reused(layer):
        second = layer(x)
    assert first.dtype == second.dtype == torch.bfloat16
    torch.testing.assert_close(first, second, rtol=2**-7, atol=0)


def test_masks_of_another_network_are_refused(net: UNet):
    other, masks = UNet(replace(SMALL, blocks=2)), Masks()
    with masks.drawn(net):
        net(images(), TIME)
    with pytest.raises(ValueError, match="has 12 dropout layers; expected 8"), masks.reused(other):
        pass


def test_an_error_leaves_no_mask_behind(net: UNet):
    masks = Masks()
    with pytest.raises(RuntimeError), masks.drawn(net):
        net(images()[:, :1], TIME)
    plain = net.eval()(images(), TIME)
    assert torch.equal(plain, net.copy(dropout=0.0)(images(), TIME))


def test_no_value_is_read(net: UNet):
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, masks = torch.empty(2, 3, 8, 8), Masks()
        with masks.drawn(net):
            y = net(x, torch.empty(2))
        with masks.reused(net):
            z = net(x, torch.empty(2))
        assert isinstance(y, FakeTensor)
        assert y.shape == z.shape == x.shape
        (y - z).square().sum().backward()
