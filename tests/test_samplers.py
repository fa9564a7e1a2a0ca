"""Samplers against the numbers they must give on Gaussian data, where every sampler is affine."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from kdgen import kernels, noise, samplers
from kdgen.denoiser import Guided, Prediction, Predicts, Sampling
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

SHAPE = (1, 1, 1)
MEAN = 0.3
SCHEDULES = [LinearVP(), Cosine(), EDM(), Flow()]


class Counts:
    """A denoiser that keeps the times it was asked for."""

    def __init__(self, denoiser: Predicts) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.asked: list[float] = []

    def __call__(self, x_t: Tensor, t: float, label: Tensor | None = None) -> Prediction:
        self.asked.append(float(t))
        return self.denoiser(x_t, t, label)


def teacher(schedule: NoiseSchedule, std: float = 0.5, mean: float = MEAN) -> exact.Mixture:
    return exact.gaussian(schedule, SHAPE, mean, std).double()


def gain(sampler: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """(A, f(0)) of an affine sampler f."""
    at = sampler(torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, *SHAPE)).flatten()
    return (at[1] - at[0]).item(), at[0].item()


@pytest.mark.parametrize(
    ("grid", "steps", "std", "expected"),
    [
        ("quad", 100, 0.5, 0.49269564),
        ("stride", 100, 0.5, 0.48598057),
        ("stride", 1000, 0.5, 0.49849528),
        ("quad", 100, 1.0, 0.98576531),
        ("stride", 100, 1.0, 0.98185083),
        ("stride", 1000, 1.0, 0.99812429),
        ("quad", 100, 0.25, 0.24541953),
        ("stride", 100, 0.25, 0.23738339),
        ("stride", 1000, 0.25, 0.24853094),
    ],
)
def test_ddim_has_the_gain_of_its_chain(grid: str, steps: int, std: float, expected: float):
    """Oracle O-3: the product over steps of (a_r·a_t·c² + s_r·s_t)/V_t, on DDPM's betas."""
    q = LinearVP()
    slope, offset = gain(lambda z: samplers.ddim(teacher(q, std, 0.25), z, steps, grid=grid))
    product = 1.0
    for t, s in pairwise(q.grid(steps, grid).tolist()):
        (a_t, s_t), (a_s, s_s) = q.levels(t), q.levels(s)
        if s == 0:
            a_s, s_s = 1.0, 0.0
        product *= (a_s * a_t * std**2 + s_s * s_t) / ((a_t * std) ** 2 + s_t**2)
    assert product == pytest.approx(expected, abs=1e-8)
    assert slope == pytest.approx(expected, abs=1e-8)
    start = q.levels(q.grid(steps, grid)[0])[0]
    assert offset == pytest.approx(0.25 * (1 - slope * start), abs=1e-8)  # oracle O-4's B


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(18, 0.00659530796), (36, 0.00632621365), (72, 0.00626782033), (144, 0.00625419654)],
)
def test_heun_has_the_published_gain(steps: int, expected: float):
    """Oracle O-6, on EDM's grid."""
    slope, _ = gain(lambda z: samplers.heun(teacher(EDM()), z, steps))
    assert slope / 80 == pytest.approx(expected, abs=1e-11)


def test_heun_is_of_second_order_and_euler_of_first():
    """Oracle O-6: against c/√(c² + 80²), the exact map of the probability-flow ODE."""
    truth = 0.5 / math.hypot(0.5, 80)
    assert truth == pytest.approx(0.00624987793, abs=1e-11)
    q = teacher(EDM())

    def error(sampler: Callable[..., Tensor], steps: int) -> float:
        slope, _ = gain(lambda z: sampler(q, z, steps, grid="karras"))
        return abs(slope / 80 / truth - 1)

    heun = [error(samplers.heun, n) for n in (18, 36, 72, 144)]
    assert heun == pytest.approx([5.5e-2, 1.2e-2, 2.9e-3, 6.9e-4], rel=0.05)
    euler = [error(samplers.ddim, n) for n in (72, 144)]
    assert math.log2(heun[2] / heun[3]) == pytest.approx(2, abs=0.1)
    assert math.log2(euler[0] / euler[1]) == pytest.approx(1, abs=0.1)


def test_euler_has_the_published_gain():
    """Oracle O-6: DDIM on the EDM schedule is Euler on its ODE."""
    slope, _ = gain(lambda z: samplers.ddim(teacher(EDM()), z, 18, grid="karras"))
    assert slope / 80 == pytest.approx(0.00528789296, abs=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)
def test_one_ddim_step_is_the_denoiser(schedule: NoiseSchedule):
    q, z = teacher(schedule), torch.randn(3, *SHAPE, dtype=torch.float64)
    assert torch.equal(samplers.ddim(q, z, 1), q(schedule.start(z, 1.0), 1.0).x0)


def test_repeated_times_cost_nothing():
    """Luhman & Luhman 2021's list of 100 has 96 different indices."""
    q = Counts(teacher(LinearVP()))
    samplers.ddim(q, torch.zeros(1, *SHAPE), 100, grid="quad")
    assert len(q.asked) == 96
    assert q.asked[0] == 0.801


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [(LinearVP(), "quad"), (LinearVP(), "uniform"), (EDM(), "karras"), (Cosine(), "uniform")],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_evaluations_are_what_is_counted(
    sampler: str, schedule: NoiseSchedule, grid: str, steps: int
):
    if sampler == "rk45":
        pytest.skip("decides as it goes")
    how = Sampling(sampler, steps, grid, times=(0.9, 0.4, 0.2))
    q = Counts(teacher(schedule))
    samplers.sample(q, torch.zeros(1, *SHAPE), how=how)
    assert len(q.asked) == samplers.evaluations(schedule, how)
    assert all(0 < t <= 1 for t in q.asked)


def test_guidance_doubles_the_evaluations():
    plain, guided = Sampling("ddim", 7), Sampling("ddim", 7, guidance=2.0)
    assert samplers.evaluations(Cosine(), guided) == 2 * samplers.evaluations(Cosine(), plain)


def ddpm(q: LinearVP, std: float, mean: float, steps: int, z: Tensor, seed: int) -> Tensor:
    """Ho et al. 2020, algorithm 2, in betas: the posterior mean and variance, re-spaced."""
    kept = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, q.steps))])
    places = [0, *(q.indices(steps, "stride") + 1).tolist()]
    x = z
    for k, (i, before) in enumerate(pairwise(reversed(places))):
        bar, last = kept[i], kept[before]
        alpha = bar / last
        beta = 1 - alpha
        xhat = mean + math.sqrt(bar) * std**2 / (bar * std**2 + 1 - bar) * (
            x - math.sqrt(bar) * mean
        )
        x = (
            math.sqrt(last) * beta / (1 - bar) * xhat
            + (1 - last) * math.sqrt(alpha) / (1 - bar) * x
        )
        if before:
            n = noise.normal(seed, noise.Stream.CHURN + k, noise.addresses(0, len(z)), SHAPE)
            x = x + math.sqrt((1 - last) / (1 - bar) * beta) * n.double()
    return x


def test_ancestral_is_ddpms_algorithm():
    z = torch.randn(4, *SHAPE, dtype=torch.float64)
    mine = samplers.ancestral(
        teacher(LinearVP(), 0.5, 0.25), z, 50, grid="stride", clip=None, seed=3
    )
    torch.testing.assert_close(mine, ddpm(LinearVP(), 0.5, 0.25, 50, z, 3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)
def test_ancestral_without_noise_is_ddim(schedule: NoiseSchedule):
    q, z = teacher(schedule), torch.randn(3, *SHAPE, dtype=torch.float64)
    quiet = samplers.ancestral(q, z, 9, clip=None, eta=0.0, grid="uniform")
    torch.testing.assert_close(quiet, samplers.ddim(q, z, 9), rtol=1e-9, atol=1e-9)


def one_at_a_time(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Stands for `noise.normal`: draw k is 1 for image k + 2 and 0 for all others."""
    return (index == stream - noise.Stream.CHURN + 2).double().view(-1, *SHAPE)


def moments(sampler: Callable[[Tensor], Tensor], draws: int) -> tuple[float, float]:
    """Exact mean and standard deviation of an affine sampler's images under `one_at_a_time`: image
    0 has no noise, image 1 has z = 1, image k + 2 has draw k = 1."""
    z = torch.zeros(draws + 2, *SHAPE, dtype=torch.float64)
    z[1] = 1
    images = sampler(z).flatten()
    return images[0].item(), (images[1:] - images[0]).norm().item()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)
def test_ancestral_gives_the_data_its_own_spread(
    schedule: NoiseSchedule, monkeypatch: pytest.MonkeyPatch
):
    """Mean 0.3 and standard deviation 0.5, whatever the path to them."""
    monkeypatch.setattr(noise, "normal", one_at_a_time)
    grid = "karras" if schedule == EDM() else "uniform"
    q = teacher(schedule)
    mean, std = moments(lambda z: samplers.ancestral(q, z, 400, clip=None, grid=grid), 400)
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("stochastic", ["ancestral", "heun"])
def test_added_noise_belongs_to_the_image_not_to_the_batch(stochastic: str):
    q, z = teacher(EDM()), torch.randn(5, *SHAPE, dtype=torch.float64)
    index = torch.tensor([7, 0, 2**33, 4, 1])
    options = {"clip": None} if stochastic == "ancestral" else {"churn": 40.0}

    def make(rows: slice) -> Tensor:
        sampler = samplers.SAMPLERS[stochastic]
        return sampler(q, z[rows], 6, grid="karras", seed=5, index=index[rows], **options)

    whole = make(slice(None))
    assert torch.equal(whole, torch.cat([make(slice(0, 2)), make(slice(2, 5))]))
    other = samplers.SAMPLERS[stochastic](q, z, 6, grid="karras", seed=6, index=index, **options)
    assert not torch.equal(whole, other)


def test_churn_keeps_the_spread_and_stays_below_the_last_noise_level(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(noise, "normal", one_at_a_time)
    q = Counts(teacher(EDM()))
    mean, std = moments(lambda z: samplers.heun(q, z, 100, churn=20.0), 100)
    assert mean == pytest.approx(MEAN, abs=0.005)
    assert std == pytest.approx(0.5, abs=0.005)
    assert max(q.asked) <= 1


def test_churn_acts_inside_its_range_only():
    z = torch.randn(2, *SHAPE, dtype=torch.float64)
    plain = samplers.heun(teacher(EDM()), z, 8)
    outside = samplers.heun(teacher(EDM()), z, 8, churn=40.0, churn_range=(100.0, 200.0))
    inside = samplers.heun(teacher(EDM()), z, 8, churn=40.0, churn_range=(0.05, 50.0))
    assert torch.equal(plain, outside)
    assert not torch.equal(plain, inside)


@pytest.mark.parametrize("schedule", [LinearVP(), Cosine()], ids=lambda q: q.name)
def test_heun_on_a_vp_schedule_is_near_the_exact_map(schedule: NoiseSchedule):
    slope, _ = gain(lambda z: samplers.heun(teacher(schedule), z, 400, grid="uniform"))
    assert slope == pytest.approx(0.5, rel=0.05)


def test_heun_refuses_a_grid_that_starts_without_signal():
    with pytest.raises(ValueError, match="alpha is 0 at the first time"):
        samplers.heun(teacher(Flow()), torch.zeros(1, *SHAPE), 4, grid="uniform")


def test_clip_bounds_every_guess():
    q = teacher(Cosine(), std=3.0)
    z = 5 * torch.randn(20, *SHAPE, dtype=torch.float64)
    for sampler in (samplers.ddim, samplers.ancestral):
        assert sampler(q, z, 5, clip=0.5).abs().max() <= 0.5
    assert samplers.ddim(q, z, 5).abs().max() > 0.5


def test_the_last_step_may_write_bytes():
    q, z = exact.gaussian(Cosine(), (3, 4, 4)), torch.randn(2, 3, 4, 4)
    as_bytes = samplers.ddim(q, z, 4, last=kernels.ddim_update_uint8)
    assert torch.equal(as_bytes, kernels.to_uint8(samplers.ddim(q, z, 4)))


def test_sample_follows_the_denoisers_own_sampling():
    q, z = teacher(Cosine()), torch.randn(2, *SHAPE, dtype=torch.float64)
    q.sampling = Sampling("ddim", steps=3, clip=0.7)
    assert torch.equal(samplers.sample(q, z), samplers.ddim(q, z, 3, clip=0.7))
    again = samplers.sample(q, z, how=Sampling("ancestral", 3), seed=2)
    assert torch.equal(again, samplers.ancestral(q, z, 3, clip=None, seed=2))


def test_sample_guides_when_it_is_told_to():
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    q = exact.dataset(Cosine(), images, torch.arange(4) % 2)
    z, label = torch.randn(2, *SHAPE, dtype=torch.float64), torch.tensor([0, 1])
    how = Sampling("ddim", 4, guidance=2.0)
    expected = samplers.ddim(Guided(q, 2.0), z, 4, label)
    assert torch.equal(samplers.sample(q, z, label, how), expected)


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(ValueError, match="'euler'; expected ddim, ancestral, heun"):
        samplers.sample(teacher(Cosine()), torch.zeros(1, *SHAPE), how=Sampling("euler"))
