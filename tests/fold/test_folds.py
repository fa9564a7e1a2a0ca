"""Every fold, alone and with all others, leaves every kind of network's answers as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from kdgen import fast, fold, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.fold.attention import Merged
from kdgen.fold.up import Enlarge
from kdgen.nets.blocks import Attention, ResBlock
from kdgen.schedules import Cosine

TOLERANCE = 1e-10
MANY = [1.0, 0.25, 0.6]


@pytest.mark.parametrize("times", [[1.0], MANY], ids=str)
@pytest.mark.parametrize("name", nets.PRESETS)
def test_all_folds_together_change_no_preset(
    families: Callable[..., Any], error: Callable[..., float], name: str, times: list[float]
):
    family = families(name)
    plain = family.denoiser().double()
    folded = fold.fold(plain, times, folds=fold.KNOWN, check=False)
    for t in times:
        assert error(plain, folded, t, family.labels(4)) < TOLERANCE


def test_each_fold_alone_changes_nothing(family: Any, error: Callable[..., float]):
    plain = family.denoiser().double()
    for name in fold.KNOWN:
        folded = fold.fold(plain, [0.7], folds=[name], check=False)
        assert error(plain, folded, 0.7, family.labels(4)) < TOLERANCE, name
        assert folded.places.keys() == {name}


@pytest.mark.parametrize("name", ["pd64", "cud28"])
def test_any_fold_can_be_left_out(
    families: Callable[..., Any], error: Callable[..., float], name: str
):
    family = families(name)
    plain = family.denoiser().double()
    for left_out in fold.ALL:
        folded = fold.fold(plain, [0.7], folds=set(fold.ALL) - {left_out}, check=False)
        assert error(plain, folded, 0.7, family.labels(2)) < TOLERANCE, left_out


PLACES = {  # at one time, of networks with two levels of one block
    "ddpm32": {"time": 8, "output": 1, "up": 1, "queries": 4, "values": 4},
    "pd64": {"time": 10, "output": 1, "up": 1},
    "edm32": {
        "time": 10,
        "scales": 12,
        "input": 1,
        "output": 1,
        "up": 1,
        "queries": 3,
        "values": 3,
    },
    "ncsnpp32": {
        "time": 10,
        "scales": 13,
        "input": 2,
        "output": 1,
        "queries": 3,
        "values": 3,
    },
    "adm64": {"time": 10, "input": 1, "output": 1, "up": 1},
    "cud28": {
        "time": 10,
        "gains": 8,
        "scales": 12,
        "output": 2,
        "up": 1,
        "queries": 3,
        "values": 3,
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_what_was_folded_is_counted(families: Callable[..., Any], name: str):
    folded = fold.fold(families(name).denoiser(), [0.7])
    assert {n: c for n, c in folded.places.items() if c} == PLACES[name]


def test_with_one_time_and_no_classes_nothing_is_looked_up(families: Callable[..., Any]):
    for name in ("ddpm32", "pd32"):
        folded = fold.fold(families(name).denoiser(), [1.0])
        parts = list(folded.net.modules())
        assert not [m for m in parts if isinstance(m, nn.Linear | fold.Table)]
        blocks = [m for m in parts if isinstance(m, ResBlock)]
        assert all(b.time(None) is None for b in blocks)
        assert all(b.conv1.bias is not None for b in blocks)


def test_a_late_bias_is_the_norms(families: Callable[..., Any]):
    folded = fold.fold(families("pd32").denoiser(), [1.0], folds=fold.KNOWN)
    blocks = [m for m in folded.net.modules() if isinstance(m, ResBlock)]
    assert blocks
    assert all(b.conv1.bias is None for b in blocks)
    assert all(b.time(None).shape == b.norm2.bias.shape for b in blocks)


def test_weights_are_rounded_once(families: Callable[..., Any]):
    """From float64, whatever the network's dtype; what no fold touches keeps its bits."""
    plain = families("ddpm32").denoiser()
    wide = fold.fold(copy.deepcopy(plain).double(), [1.0])
    for dtype in (torch.float32, torch.bfloat16):
        folded = fold.fold(plain, [1.0], dtype=dtype)
        for (name, ours), theirs in zip(folded.named_parameters(), wide.parameters(), strict=True):
            assert torch.equal(ours, theirs.to(dtype)), name
    assert torch.equal(
        fold.fold(plain, [1.0]).net.encoder[0][0].conv2.weight,
        plain.net.encoder[0][0].conv2.weight,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_hurts_a_folded_network_no_more_than_the_original(family: Any, dtype: torch.dtype):
    """Errors of x0 against float64, over a batch: at most half as much again."""
    plain = family.denoiser()
    folded = fold.fold(plain, [0.7], dtype=dtype)
    x_t = plain.schedule.start(
        torch.randn(16, *plain.shape, generator=torch.Generator().manual_seed(1)), 0.7
    )
    label = family.labels(16)
    rounded = copy.deepcopy(plain).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(x_t.double(), 0.7, label).x0
        before, after = (
            (d(x_t, 0.7, label).x0.double() - exact).square().mean().sqrt()
            for d in (rounded, folded)
        )
    assert 0 < after < 1.5 * before


def test_images_of_a_folded_network_do_not_depend_on_the_batch(family: Any):
    how = Sampling("ddim", 1, clip=1.0)
    plain = family.denoiser(how)
    folded = fold.fold(plain, [1.0], folds=fold.KNOWN)
    make = fast.Generator(folded, seed=3, batch=64)
    whole = make(11)
    assert whole.float().std() > 20  # pictures, not grey
    for make.batch in (3, 8):
        assert torch.equal(make(11), whole)
    assert (whole.int() - fast.Generator(plain, seed=3)(11).int()).abs().max() <= 1


def test_a_folded_network_never_waits_for_the_device(family: Any):
    for times in ([0.7], MANY):
        folded = fold.fold(family.denoiser(), times, check=False)
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
            tensors = {**dict(folded.named_parameters()), **dict(folded.named_buffers())}
            shadows = {name: fake.from_tensor(tensor) for name, tensor in tensors.items()}
            x_t = torch.empty(4, *folded.shape)
            label = None if family.labels(4) is None else torch.zeros(4, dtype=torch.int64)
            said = functional_call(folded, shadows, (x_t, times[0], label))
            assert said.x0.shape == x_t.shape


def test_activations_stay_channels_last(family: Any):
    folded = fold.fold(family.denoiser(), [0.7], check=False)
    seen = []
    for module in folded.net.modules():
        if isinstance(module, ResBlock | Merged | Attention | Enlarge):
            module.register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.no_grad():
        x = torch.randn(2, *folded.shape).contiguous(memory_format=torch.channels_last)
        folded(x, 0.7, family.labels(2))
    assert seen
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in seen)


def test_a_fold_needs_no_weights(families: Callable[..., Any]):
    with torch.device("meta"):
        net = nets.preset("ddpm32")
    folded = fold.fold(Denoiser(net, Cosine(), "v"), [1.0])
    assert {p.device.type for p in folded.parameters()} == {"meta"}


def test_the_original_is_left_alone(family: Any):
    plain = family.denoiser().train()
    before = {n: p.clone() for n, p in plain.state_dict().items()}
    folded = fold.fold(plain, [0.7])
    assert plain.training
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(torch.equal(p, before[n]) for n, p in plain.state_dict().items())
