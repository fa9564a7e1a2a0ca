"""The teachers whose answers are known: they must be right before anything is measured on them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdgen import samplers
from kdgen.denoiser import Denoiser, Predicts, Sampling
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule
from kdgen.training import Training, fit

SCHEDULES = [LinearVP(), Cosine(), EDM(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)
SHAPE = (1, 2, 2)


def noisy(n: int = 3) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


@every_schedule
@given(t=st.floats(0.01, 1), mean=st.floats(-1, 1), std=st.floats(0, 2))
def test_gaussian_is_the_closed_form(schedule: NoiseSchedule, t: float, mean: float, std: float):
    """methods §9.0: xhat = m + (a·c²/V)(z − a·m), ehat = (s/V)(z − a·m), V = a²c² + s²."""
    z = noisy()
    guess = exact.gaussian(schedule, SHAPE, mean, std).double()(z, t)
    a, s = schedule.levels(t)
    centred, variance = z - a * torch.tensor(mean, dtype=torch.float32).double(), (a * std) ** 2
    variance += s**2
    torch.testing.assert_close(
        guess.x0, mean + a * std**2 / variance * centred, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(guess.eps, s / variance * centred, rtol=1e-6, atol=1e-6)


@every_schedule
@given(t=st.floats(0.05, 0.95), std=st.sampled_from([0.0, 0.3]))
def test_mixture_is_tweedies_formula(schedule: NoiseSchedule, t: float, std: float):
    """score = ∇ ln p(x_t), with p written as the plain sum of Gaussians."""
    means = noisy(4)
    x_t = noisy().requires_grad_()
    a, s = schedule.levels(t)
    variance = (a * std) ** 2 + s**2
    distance = (x_t[:, None] - a * means).flatten(2).square().sum(2)
    log_p = torch.logsumexp(-distance / (2 * variance), 1).sum()
    (score,) = torch.autograd.grad(log_p, x_t)
    guess = exact.Mixture(schedule, means, std)(x_t.detach(), t)
    torch.testing.assert_close(guess.score, score, rtol=1e-7, atol=1e-7)
    q = guess.levels
    torch.testing.assert_close(q.alpha * guess.x0 + q.sigma * guess.eps, x_t.detach())


@every_schedule
def test_dataset_finds_the_image_that_was_noised(schedule: NoiseSchedule):
    images = noisy(8)
    t = torch.full((8,), schedule.t_of_sigma(0.02), dtype=torch.float64)
    x_t = schedule.noise(images, noisy(8).flip(0), t)
    teacher = exact.dataset(schedule, images)
    torch.testing.assert_close(teacher(x_t, t).x0, images, rtol=0, atol=1e-9)


def test_a_label_keeps_its_class_only():
    images, labels = noisy(6), torch.tensor([0, 0, 1, 1, 2, 2])
    teacher = exact.dataset(Cosine(), images, labels)
    assert teacher.classes == 3
    chosen = torch.tensor([2, 0, -1])
    guess = teacher(noisy(), 0.8, chosen).x0
    for row, kept in enumerate((labels == 2, labels == 0, labels >= 0)):
        alone = exact.dataset(Cosine(), images[kept])
        torch.testing.assert_close(guess[row], alone(noisy(), 0.8).x0[row])


@every_schedule
def test_one_step_from_pure_noise_is_the_mean_of_the_data(schedule: NoiseSchedule):
    images = noisy(5)
    image = samplers.ddim(exact.dataset(schedule, images), noisy(2), 1)
    expected = images.mean(0).expand(2, *SHAPE)
    torch.testing.assert_close(image, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("schedule", [Cosine(), EDM(), Flow()], ids=lambda q: q.name)
def test_many_steps_land_on_images_of_the_dataset(schedule: NoiseSchedule):
    images = noisy(5)
    grid = "karras" if schedule == EDM() else "uniform"
    drawn = samplers.ddim(exact.dataset(schedule, images), noisy(10), 60, grid=grid)
    nearest = (drawn[:, None] - images).flatten(2).norm(dim=2).min(1).values
    assert nearest.max() < 0.1


def test_a_class_can_be_sampled_with_guidance():
    images, labels = noisy(6), torch.arange(6) % 2
    teacher = exact.dataset(Cosine(), images, labels, Sampling(steps=100, guidance=1.5))
    drawn = samplers.sample(teacher, noisy(8), torch.ones(8, dtype=torch.int64))
    nearest = (drawn[:, None] - images).flatten(2).norm(dim=2).argmin(1)
    assert (labels[nearest] == 1).all()


def test_an_exact_teacher_predicts_and_moves():
    teacher: Predicts = exact.gaussian(Cosine(), SHAPE)
    x_t = torch.zeros(2, *SHAPE)
    assert teacher(x_t, 0.5).x0.dtype == torch.float32
    assert teacher.to("meta")(x_t.to("meta"), 0.5).x0.device.type == "meta"


def test_fit_takes_an_exact_teacher():
    """As the role "teacher" of a method that samples it while training."""
    schedule, shape = Cosine(), (1, 8, 8)
    teacher = exact.gaussian(schedule, shape, sampling=Sampling(steps=3))
    student = Denoiser(exact.Affine(shape), schedule, "x0")
    method = DenoisingStudent(online=True, form="x0", error="l2")
    steps = fit(method, {"student": student, "teacher": teacher}, None, Training(60, 8, lr=0.05))
    losses = [float(step.loss) for step in steps]
    assert losses[-1] < 0.1 * losses[0]


def test_affine_is_affine():
    net = exact.Affine(SHAPE, 2.0, 0.5)
    assert torch.equal(net(torch.ones(1, *SHAPE), torch.zeros(1)), torch.full((1, *SHAPE), 2.5))
