"""A denoiser without its time embedding says the same at the times it was folded for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import fast, fold, nets, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, LinearVP, NoiseSchedule

Lively = Callable[..., nn.Module]


@pytest.fixture
def denoiser(lively: Lively) -> Callable[..., Denoiser]:
    def build(schedule: NoiseSchedule | None = None, kind: str = "v", **facts: int) -> Denoiser:
        config = nets.UNetConfig(8, width=8, mult=(1, 2), blocks=1, attention=(4,), **facts)
        return Denoiser(lively(nets.UNet(config)), schedule or Cosine(), kind)

    return build


def images(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n), dtype=dtype)


@pytest.mark.parametrize(
    ("schedule", "kind"), [(Cosine(), "v"), (LinearVP(), "eps"), (EDM(), "edm")], ids=str
)
@pytest.mark.parametrize("times", [[1.0], [1.0, 0.5, 0.25, 0.7]], ids=str)
def test_folding_changes_nothing(
    denoiser: Callable[..., Denoiser], schedule: NoiseSchedule, kind: str, times: list[float]
):
    plain = denoiser(schedule, kind).double().eval()
    folded = fold.tabulate(plain, times)
    for t in times:
        expected = plain(images(2), t).x0
        error = (folded(images(2), t).x0 - expected).abs().max() / expected.abs().max()
        assert error < 1e-10


def test_folding_keeps_the_classes(denoiser: Callable[..., Denoiser]):
    plain = denoiser(classes=3).double().eval()
    folded = fold.tabulate(plain, [1.0, 0.5])
    label = torch.tensor([2, 0, -1, 1])
    for t in (1.0, 0.5):
        for chosen in (label, None):
            expected = plain(images(4), t, chosen).x0
            torch.testing.assert_close(
                folded(images(4), t, chosen).x0, expected, rtol=1e-10, atol=1e-10
            )
    t = torch.tensor([1.0, 0.5, 0.5, 1.0], dtype=torch.float64)  # one time for each image
    expected = plain(images(4), t, label).x0
    torch.testing.assert_close(folded(images(4), t, label).x0, expected, rtol=1e-10, atol=1e-10)


def test_every_family_of_networks_loses_its_embedding(family: Any, error: Callable[..., float]):
    plain = family.denoiser().double()
    times = [1.0, 0.25, 0.6]
    folded = fold.tabulate(plain, times)
    for t in times:
        assert error(plain, folded, t, family.labels(4)) < 1e-10
    t = torch.tensor([0.6, 1.0, 0.25, 0.6], dtype=torch.float64)  # one time for each image
    expected = plain(images(4), t).x0
    torch.testing.assert_close(folded(images(4), t).x0, expected, rtol=1e-10, atol=1e-10)
    projections = [m for m in folded.net.modules() if isinstance(m, nn.Linear)]
    assert projections == []
    assert all(m.bias is None for n, m in folded.net.named_modules() if n.endswith("conv1"))


def test_images_of_a_tabulated_network_do_not_depend_on_the_batch(family: Any):
    student = family.denoiser(Sampling("ddim", 2, clip=1.0))
    make = fast.FastGenerator(student, seed=3, batch=64)
    whole = make(11)
    assert whole.float().std() > 20  # pictures, not grey
    for make.batch in (3, 8):
        assert torch.equal(make(11), whole)
    plain = fast.Generator(student, seed=3)(11)
    assert (whole.int() - plain.int()).abs().max() <= 1


def test_a_folded_network_knows_no_augmentations(families: Callable[..., Any]):
    plain = families("edm32").denoiser()
    folded = fold.tabulate(plain, [1.0])
    z = images(2, torch.float32)
    expected = plain(z, 1.0, augment=torch.zeros(2, 9)).x0
    torch.testing.assert_close(folded(z, 1.0).x0, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="got augmentation labels; expected none"):
        folded(z, 1.0, augment=torch.zeros(2, 9))


def test_a_folded_chain_gives_the_same_images(denoiser: Callable[..., Denoiser]):
    plain = denoiser(LinearVP(), "eps").eval()
    times = [t for t, _ in plain.schedule.moves(20, "quad")]
    folded = fold.tabulate(plain, times)
    z = images(2, torch.float32)
    expected = samplers.ddim(plain, z, 20, grid="quad", clip=1.0)
    folded_images = samplers.ddim(folded, z, 20, grid="quad", clip=1.0)
    torch.testing.assert_close(folded_images, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_casting_the_network_does_not_move_a_time_to_its_neighbour(
    denoiser: Callable[..., Denoiser], dtype: torch.dtype
):
    """bfloat16 has 8 bits: 997 … 999 are one number in it."""
    plain = denoiser(LinearVP(), "eps")
    times = [k / 1000 for k in (1, 2, 500, 501, 998, 999, 1000)]
    folded = fold.tabulate(plain, times)
    folded.net.to(dtype)
    rows = [folded.net.embedding(torch.tensor([1000 * t - 1]), None).item() for t in times]
    assert rows == list(range(7))


def test_what_is_folded_is_gone_and_the_original_is_not(denoiser: Callable[..., Denoiser]):
    plain = denoiser()
    before = {n: p.clone() for n, p in plain.state_dict().items()}
    folded = fold.tabulate(plain, [1.0])
    size = sum(p.numel() for p in folded.parameters())
    assert size < sum(p.numel() for p in plain.parameters())
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(torch.equal(p, before[n]) for n, p in plain.state_dict().items())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="the network is a Affine; expected a UNet"):
        fold.tabulate(Denoiser(exact.Affine((3, 8, 8)), Cosine(), "x0"), [1.0])
