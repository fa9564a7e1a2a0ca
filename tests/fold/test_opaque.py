"""Parts of somebody's own stay as they are, and the folds keep away from them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kdgen import fold, nets
from kdgen.denoiser import Denoiser
from kdgen.schedules import EDM, Flow

Lively = Callable[..., nn.Module]


class Wave(nn.Module):
    """In a chain; holds a part of ours, which is none of the network's."""

    def __init__(self, channels: int, config: nets.UNetConfig) -> None:
        super().__init__()
        self.inner = nets.UNet(config).middle[1]
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        return torch.sin(self.inner(x, emb) * self.scale)


def inserted(net: Any) -> None:
    net.middle.insert(1, Wave(16, net.facts))


def grouped(net: Any) -> None:
    net.middle[0].conv1 = nn.Conv2d(16, 16, 3, padding=1, groups=2)


def normalised(net: Any) -> None:
    parametrizations.weight_norm(net.middle[0].conv1)


def unbiased(net: Any) -> None:
    net.middle[0].conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)


def dilated_ends(net: Any) -> None:
    for name in ("conv_in", "conv_out"):
        like = getattr(net, name)
        around = {"padding": 2, "dilation": 2}
        setattr(net, name, nn.Conv2d(like.in_channels, like.out_channels, 3, **around))


CHANGES = [inserted, grouped, normalised, unbiased, dilated_ends]


def denoiser(change: Callable[[Any], None], lively: Lively, **facts: Any) -> Denoiser:
    shape = {"width": 8, "mult": (1, 2), "blocks": 1, "attention": (4,), "skip_scale": 0.5**0.5}
    net = nets.UNet(nets.UNetConfig(8, **(shape | facts)))
    change(net)
    return Denoiser(lively(net), Flow(), "velocity", "raw").double().eval()


@pytest.mark.parametrize("folds", [fold.ALL, fold.KNOWN], ids=len)
@pytest.mark.parametrize("times", [(1.0,), (1.0, 0.4)], ids=str)
@pytest.mark.parametrize("facts", [{}, {"classes": 2, "resample": "block"}, {"scale_shift": True}])
@pytest.mark.parametrize("change", CHANGES)
def test_a_network_with_a_part_of_somebodys_own_says_the_same(
    lively: Lively,
    error: Callable[..., float],
    change: Callable[[Any], None],
    facts: dict[str, Any],
    times: tuple[float, ...],
    folds: tuple[str, ...],
):
    plain = denoiser(change, lively, **facts)
    folded = fold.fold(plain, times, folds=folds)
    label = torch.tensor([1, -1]) if plain.classes else None
    assert max(error(plain, folded, t, label) for t in times) < 1e-10
    assert folded.places["time"] > 0
    assert [m for m in folded.modules() if isinstance(m, fold.Opaque)]


def test_the_scaling_of_an_input_that_nobody_can_fold_stays(
    lively: Lively, error: Callable[..., float]
):
    net = denoiser(dilated_ends, lively).net
    plain = Denoiser(net, EDM(), "edm", "log_sigma").eval()
    folded = fold.fold(plain, [0.4])
    assert (folded.places["input"], folded.places["output"]) == (0, 0)
    assert not folded.takes_x_t
    assert error(plain, folded, 0.4, None) < 1e-10


def test_what_is_inside_such_a_part_is_not_folded(lively: Lively):
    plain = denoiser(inserted, lively)
    before = copy.deepcopy(plain.net.middle[1].state_dict())  # type: ignore[index, union-attr]
    held = fold.fold(plain, [1.0]).net.middle[1]  # type: ignore[index, union-attr]
    assert type(held.part.inner).__name__ == "Attention"
    after = held.part.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_original_is_left_alone(lively: Lively):
    plain = denoiser(inserted, lively)
    fold.fold(plain, [1.0])
    assert type(plain.net.middle[1]) is Wave  # type: ignore[index, union-attr]


def test_beside_such_a_part_time_has_to_be_folded(lively: Lively):
    with pytest.raises(ValueError, match=r"middle\.1 is a Wave, and time stays; expected the fold"):
        fold.fold(denoiser(inserted, lively), [1.0], folds=("scales",))


def test_a_part_that_fails_is_named(lively: Lively):
    plain = denoiser(lambda net: net.middle.insert(1, nn.GroupNorm(2, 16)), lively)
    with pytest.raises(fold.FoldError, match=r"middle\.1 is a GroupNorm: TypeError: .*image alone"):
        fold.fold(plain, [1.0])


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_saved_can_be_told(lively: Lively, change: Callable[[Any], None]):
    plain = denoiser(change, lively)
    said = fold.explain(plain, fold.fold(plain, [1.0]))
    assert said.flops[1] < said.flops[0]
