"""Karras et al. 2022: log-normal noise levels, and a loss of 1 for a network that knows nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, noise
from kdgen.data.augment import LABELS, UNIFORMS, augment
from kdgen.denoiser import Denoiser
from kdgen.methods import Batch, Nets
from kdgen.methods.edm import Edm
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow

SHAPE = (3, 8, 8)


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Edm, Nets, Batch]]:
    """Data that is one grey image: the network that always says it is right."""
    drawn = batch(shape=SHAPE)
    drawn = replace(drawn, x0=torch.full_like(drawn.x0, 0.25))
    for schedule in (EDM(), EDM(sigma_max=10.0)):
        student = Denoiser(exact.Affine(SHAPE, 0.0, 0.25), schedule, "x0")
        yield Edm(), Nets({"student": student}), drawn


class Recorder(nn.Module):
    """Answers 0 and keeps what it was asked."""

    classes = 0

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.asked = shape, []

    def forward(self, x: Tensor, time: Tensor, *labels: Tensor | None) -> Tensor:
        self.asked.append((x, time, *labels))
        return torch.zeros_like(x)


def uncorrelated(drawn: Batch) -> Batch:
    """Four pixels whose x0 and eps have the moments of independent N(0, 1/4) and N(0, 1) exactly:
    enough for whatever is affine and squared."""
    x0 = torch.tensor([[0.5, 0.5], [-0.5, -0.5]]).to(drawn.x0).expand_as(drawn.x0)
    eps = torch.tensor([[1.0, -1.0], [1.0, -1.0]]).to(drawn.x0).expand_as(drawn.x0)
    return replace(drawn, x0=x0, eps=eps)


def test_a_network_of_zeros_has_a_loss_of_one_at_every_level(batch: Callable[..., Batch]):
    """Table 1: the weight is one over the variance that preconditioning leaves."""
    drawn = uncorrelated(batch(n=64, shape=(1, 2, 2), dtype=torch.float64))
    student = Denoiser(exact.Affine((1, 2, 2), 0.0, 0.0), EDM(), "edm").double()
    loss = Edm().loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, torch.ones(64, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_loss_is_the_square_of_the_networks_own_error(batch: Callable[..., Batch]):
    """Eq. 8: w·c_out² = 1, so w·(D − x0)² is (F − (x0 − c_skip·x_t)/c_out)²."""
    drawn = batch(shape=SHAPE, dtype=torch.float64)
    student = Denoiser(exact.Affine(SHAPE, 0.5, 0.1), EDM(), "edm").double()
    sigma = (-1.2 + 1.2 * torch.special.ndtri(drawn.u[:, 0])).exp()[:, None, None, None]
    x_t, power = drawn.x0 + sigma * drawn.eps, sigma.square() + 0.25
    raw = 0.5 * x_t / power.sqrt() + 0.1
    wanted = (drawn.x0 - 0.25 / power * x_t) / (0.5 * sigma / power.sqrt())
    loss = Edm().loss("main", Nets({"student": student}), drawn)
    torch.testing.assert_close(loss, (raw - wanted).square().mean((1, 2, 3)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("deviations", [-1.0, 0.0, 1.0])
def test_levels_are_log_normal_about_a_small_one(deviations: float, batch: Callable[..., Batch]):
    """exp(−1.2) = 0.3 is where images are decided; with the other sign it would be 3.3."""
    seen = Recorder(SHAPE)
    drawn = batch(shape=SHAPE)
    share = torch.special.ndtr(torch.tensor(deviations)).item()
    drawn = replace(drawn, u=torch.full_like(drawn.u, share))
    Edm().loss("main", Nets({"student": Denoiser(seen, EDM(), "edm")}), drawn)
    sigma = (4 * seen.asked[0][1]).exp()
    torch.testing.assert_close(sigma, torch.full((8,), math.exp(-1.2 + 1.2 * deviations)))


def test_the_network_is_told_how_its_images_were_augmented(batch: Callable[..., Batch]):
    seen = Recorder(SHAPE)
    drawn = batch(shape=SHAPE)
    drawn = replace(drawn, u=noise.uniform(0, 9, drawn.index, Edm.uniforms))
    images, labels = augment(drawn.x0, drawn.u[:, 1:], 0.5)
    student = Denoiser(seen, EDM(), "edm")
    loss = Edm(augment=0.5).loss("main", Nets({"student": student}), drawn)
    assert torch.equal(seen.asked[0][3], labels)
    plain = Edm().loss("main", Nets({"student": student}), replace(drawn, x0=images))
    torch.testing.assert_close(loss, plain)


def test_without_augmentation_the_network_hears_nothing_of_it(batch: Callable[..., Batch]):
    seen = Recorder(SHAPE)
    Edm().loss("main", Nets({"student": Denoiser(seen, EDM(), "edm")}), batch(shape=SHAPE))
    assert all(label is None for label in seen.asked[0][2:])


def test_it_draws_what_augmentation_needs():
    assert Edm.uniforms == 1 + UNIFORMS


def test_a_network_that_has_no_augmentation_labels_is_refused():
    student = Denoiser(nets.preset("tiny8"), EDM(), "edm")
    Edm().check(Nets({"student": student}))
    with pytest.raises(ValueError, match=f"takes 0 augmentation labels; expected {LABELS}"):
        Edm(augment=0.12).check(Nets({"student": student}))


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda q: q.name)
def test_other_schedules_are_refused(schedule: Cosine | Flow):
    student = Denoiser(nets.preset("tiny8"), schedule, "v")
    with pytest.raises(ValueError, match=f"the student's schedule is {schedule.name}"):
        Edm().check(Nets({"student": student}))
    Edm().check(Edm().cast(student))


@pytest.mark.parametrize("options", [{"augment": 1.5}, {"augment": -0.1}, {"p_std": 0.0}], ids=str)
def test_impossible_options_are_refused(options: dict):
    with pytest.raises(ValueError, match="expected a probability and a number above 0"):
        Edm(**options)
