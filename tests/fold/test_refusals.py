"""What cannot be folded is refused, by name; a fold that went wrong does not pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdgen import fold, kernels, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.schedules import EDM, Cosine


def denoiser(**facts: Any) -> Denoiser:
    config = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), **facts)
    return Denoiser(nets.UNet(config), Cosine(), "v").eval()


class Wider(nets.UNet):
    """Who knows what it does."""


def swapped(net: nets.UNet) -> None:
    net.middle[0].time = nn.Sequential(nn.Linear(32, 16))


def hooked(net: nets.UNet) -> None:
    net.middle[0].conv1.register_forward_hook(lambda *args: None)


def replaced(net: nets.UNet) -> None:
    net.middle[0].forward = lambda x, emb: x  # type: ignore[method-assign]


def tied(net: nets.UNet) -> None:
    net.middle[0].conv1.weight = net.middle[2].conv1.weight


def mixed(net: nets.UNet) -> None:
    net.norm_out.bfloat16()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, r"middle\.0\.time is a Sequential"),
        (hooked, r"middle\.0\.conv1 has a hook"),
        (replaced, r"middle\.0 has a forward of its own"),
        (tied, r"middle\.\d\.conv1\.weight is also a weight of another layer"),
        (mixed, "the weights are torch.bfloat16, torch.float32; expected one dtype"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_an_unknown_part_is_named(change: Callable[[nets.UNet], None], message: str):
    plain = denoiser()
    change(plain.net)
    with pytest.raises(ValueError, match=message):
        fold.fold(plain, [1.0])


def test_a_relative_of_the_network_is_unknown():
    config = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,))
    with pytest.raises(ValueError, match="the network is a Wider"):
        fold.fold(Denoiser(Wider(config), Cosine(), "v"), [1.0])


def test_a_network_is_folded_once():
    for folds in (fold.ALL, ("up",)):
        folded = fold.fold(denoiser(), [1.0], folds=folds)
        with pytest.raises(ValueError, match="the network was folded already"):
            fold.fold(folded, [1.0])
        with pytest.raises(ValueError, match="the network was folded; expected a whole"):
            folded.net.copy(dropout=0.0)


@pytest.mark.parametrize("times", [[], [0.0], [1.5, 0.5], [float("nan")]], ids=str)
def test_times_are_noise_times(times: list[float]):
    with pytest.raises(ValueError, match="expected at least one, in \\(0, 1\\]"):
        fold.fold(denoiser(), times)


@pytest.mark.parametrize("folds", ["time", ["temb"], ["up", "down"]], ids=str)
def test_unknown_folds_are_refused_with_the_known_ones(folds: Any):
    with pytest.raises(ValueError, match="expected a collection of time, gains"):
        fold.fold(denoiser(), [1.0], folds=folds)


def test_another_time_is_refused():
    folded = fold.fold(denoiser(), [1.0, 0.5])
    with pytest.raises(ValueError, match=r"t is 0\.75; expected a time it was folded for: 0\.5, 1"):
        folded(torch.zeros(1, 3, 8, 8), 0.75)


def test_a_folded_denoiser_is_copied_but_keeps_its_path(lively: Callable[..., nn.Module]):
    plain = denoiser()
    lively(plain.net)
    folded = fold.fold(plain, [1.0])
    twin = folded.copy(sampling=Sampling("ddim", 1))
    z = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin(z, 1.0).x0, folded(z, 1.0).x0)
    assert twin.sampling.steps == 1
    assert all(p.requires_grad for p in twin.parameters())
    with torch.no_grad():
        twin.net.conv_out.bias.add_(1.0)
    assert not torch.equal(twin(z, 1.0).x0, folded(z, 1.0).x0)
    with pytest.raises(ValueError, match="got schedule; expected net or sampling"):
        folded.copy(schedule=EDM())
    with pytest.raises(ValueError, match="a folded denoiser cannot be kept"):
        folded.config()


@pytest.mark.parametrize("classes", [0, 3])
def test_the_check_sees_a_wrong_weight_anywhere(lively: Callable[..., nn.Module], classes: int):
    plain = denoiser(classes=classes, scale_shift=True, resample="block")
    lively(plain.net)
    plain.double()
    folded = fold.fold(plain, [1.0])
    assert fold.check(plain, folded) < 1e-12
    for k in range(0, len(list(folded.parameters())), 5):
        wrong = copy.deepcopy(folded)
        weight = list(wrong.parameters())[k]
        with torch.no_grad():
            weight.mul_(1 + 1e-6).add_(1e-7)
        with pytest.raises(fold.FoldError, match="away from the original"):
            fold.check(plain, wrong)


def test_the_check_needs_no_backend_that_was_insisted_on(lively: Callable[..., nn.Module]):
    plain = denoiser()
    lively(plain.net)
    with kernels.use("group_norm_silu=cuda"):  # which knows neither float64 nor a CPU
        assert fold.fold(plain, [1.0]).places["time"] > 0


def test_the_check_does_not_believe_what_is_not_a_number():
    plain = denoiser()
    with torch.no_grad():
        plain.net.conv_out.bias.fill_(float("nan"))
    with pytest.raises(fold.FoldError, match="is nan away"):
        fold.fold(plain, [1.0])
