"""Solvers against the exact map of Gaussian data, where every one of them is affine."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kdgen import adaptive, samplers, solvers
from kdgen.denoiser import Predicts
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

SHAPE = (1, 1, 1)
MEAN, STD = 0.3, 0.5
SCHEDULES = [LinearVP(), Cosine(), EDM(), Flow()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda q: q.name)


def teacher(schedule: NoiseSchedule) -> exact.Mixture:
    return exact.gaussian(schedule, SHAPE, MEAN, STD).double()


def points() -> Tensor:
    return torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64).view(3, *SHAPE)


def truth(schedule: NoiseSchedule, z: Tensor) -> Tensor:
    """Of the probability-flow ODE from t = 1: x0 = m + c·(x_1 − a·m)/√V."""
    a, s = schedule.levels(1.0)
    return MEAN + STD * (schedule.start(z, 1.0) - a * MEAN) / math.hypot(a * STD, s)


def error(sampler: Callable[..., Tensor], schedule: NoiseSchedule, *args, **options) -> float:
    z = points()
    found = sampler(teacher(schedule), z, *args, **options)
    return (found - truth(schedule, z)).abs().max().item()


def orders(errors: list[float]) -> list[float]:
    """log2 of how much better each is than the one before."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


# Grids on which sigma/alpha falls smoothly to (nearly) nothing: there an order can be measured.
SMOOTH = [(Cosine(), "uniform"), (EDM(), "karras"), (Flow(), "uniform")]


@pytest.mark.parametrize(("schedule", "grid"), SMOOTH, ids=str)
def test_heun_on_the_velocity_is_of_second_order(schedule: NoiseSchedule, grid: str):
    errors = [error(solvers.velocity_heun, schedule, n, grid=grid) for n in (64, 128)]
    assert orders(errors)[0] == pytest.approx(2, abs=0.05)
    assert errors[-1] < 0.05 * error(samplers.ddim, schedule, 128, grid=grid)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_heun_on_the_velocity_evaluates_twice_a_step_but_once_in_the_last(steps: int):
    """Eight intervals are fifteen evaluations."""
    counted = solvers.Counted(teacher(Flow()))
    solvers.velocity_heun(counted, points(), steps)
    assert counted.evaluations == 2 * steps - 1


def test_two_steps_of_heun_are_what_they_are_by_hand():
    q, z = teacher(Flow()), points()
    first = q(z, 1.0).velocity
    half = z - 0.5 * (first + q(z - 0.5 * first, 0.5).velocity) / 2
    found = solvers.velocity_heun(q, z, 2)
    torch.testing.assert_close(found, half - 0.5 * q(half, 0.5).velocity, rtol=0, atol=1e-14)


def test_heun_does_not_see_on_which_path_its_times_lie():
    """The same tau and the same start give the same image on every schedule."""
    flow, z = Flow(), points()
    steps, taus = 4, [1 - k / 4 for k in range(1, 4)]

    class Moved(EDM):
        """EDM, on flow's times behind the first."""

        def moves(self, steps: int, kind: str = "uniform") -> list[tuple[float, float]]:
            times = [1.0] + [self.t_of_sigma(tau / (1 - tau)) for tau in taus] + [0.0]
            return list(pairwise(times))

    far = Moved(sigma_max=1e12)  # its first tau is 1 − 1e-12
    found = solvers.velocity_heun(teacher(far), z, steps)
    expected = solvers.velocity_heun(teacher(flow), z, steps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("schedule", "grid"), SMOOTH, ids=str)
def test_dpm_is_of_second_order(schedule: NoiseSchedule, grid: str):
    """Where it starts from (almost) no signal, ln(alpha/sigma) takes a few long steps whatever
    their number: that costs a logarithm, of which an order of 0.2 is left at a thousand."""
    errors = [error(solvers.dpm, schedule, n, grid=grid) for n in (500, 1000)]
    assert orders(errors)[0] > 1.75
    assert errors[-1] < 0.05 * error(samplers.ddim, schedule, 1000, grid=grid)


@every_schedule
def test_dpm_is_ddim_along_an_extrapolated_image(schedule: NoiseSchedule):
    """Lu et al. 2022, algorithm 2, in its own letters: r, h, and the last step of first order."""
    q, z = teacher(schedule), points()
    times = schedule.grid(4).tolist()
    x = schedule.start(z, times[0])
    lam = [math.log(max(a, 1e-300) / s) for a, s in map(schedule.levels, times[:-1])]
    seen: list[Tensor] = []
    for k, (t, s) in enumerate(pairwise(times)):
        seen.append(q(x, t).x0)
        ahead = seen[-1]
        if 0 < k < 3:
            r = (lam[k] - lam[k - 1]) / (lam[k + 1] - lam[k])
            ahead = (1 + 1 / (2 * r)) * seen[-1] - 1 / (2 * r) * seen[-2]
        if s == 0:
            x = ahead
            continue
        (_, sigma_t), (alpha_s, sigma_s) = schedule.levels(t), schedule.levels(s)
        h = lam[k + 1] - lam[k]
        x = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * ahead
    atol = 1e-3 if schedule == Flow() else 1e-9  # there r is infinite, and 1e300 is not
    torch.testing.assert_close(solvers.dpm(q, z, 4), x, rtol=0, atol=atol)


@every_schedule
@pytest.mark.parametrize("solver", [solvers.velocity_heun, solvers.dpm])
def test_one_step_is_the_denoiser(solver: Callable[..., Tensor], schedule: NoiseSchedule):
    q, z = teacher(schedule), points()
    expected = q(schedule.start(z, 1.0), 1.0).x0
    torch.testing.assert_close(solver(q, z, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [solvers.velocity_heun, solvers.dpm])
def test_clipping_bounds_what_a_step_moves_towards(solver: Callable[..., Tensor]):
    z = 10 * points()
    assert solver(teacher(Flow()), z, 6, clip=0.2).abs().max() <= 0.2 + 1e-12
    assert solver(teacher(Flow()), z, 6).abs().max() > 1


@every_schedule
def test_the_last_prediction_along_a_chain_is_its_image(schedule: NoiseSchedule):
    q, z = teacher(schedule), points()
    along = [solvers.prediction_along(q, z, 16, k) for k in range(16)]
    torch.testing.assert_close(along[-1], samplers.ddim(q, z, 16), rtol=0, atol=1e-12)
    assert torch.equal(along[0], q(schedule.start(z, 1.0), 1.0).x0)
    gaps = [(x0 - truth(schedule, z)).abs().max().item() for x0 in along]
    assert gaps[8] > gaps[11] > gaps[14]


@pytest.mark.parametrize("index", [0, 3, 15])
def test_a_prediction_along_costs_what_it_takes_to_get_there(index: int):
    counted = solvers.Counted(teacher(Flow()))
    solvers.prediction_along(counted, points(), 16, index)
    assert counted.evaluations == index + 1


@pytest.mark.parametrize("index", [-1, 16])
def test_there_is_no_prediction_beyond_the_chain(index: int):
    with pytest.raises(ValueError, match="expected 0 … 15 on a chain of 16 steps"):
        solvers.prediction_along(teacher(Flow()), points(), 16, index)


@pytest.mark.parametrize(
    "solver",
    [
        lambda q, z, label: solvers.velocity_heun(q, z, 40, label),
        lambda q, z, label: solvers.dpm(q, z, 60, label),
        adaptive.rk45,
        lambda q, z, label: solvers.prediction_along(q, z, 60, 59, label),
    ],
    ids=["velocity_heun", "dpm", "rk45", "prediction_along"],
)
def test_labels_choose_the_class(solver: Callable[[Predicts, Tensor, Tensor], Tensor]):
    images, labels = torch.tensor([-0.9, -0.7, 0.7, 0.9]).view(4, 1, 1, 1), torch.arange(4) // 2
    q = exact.dataset(Flow(), images, labels).double()
    z = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1, 1, 1)
    for wanted in (0, 1):
        drawn = solver(q, z, torch.full((5,), wanted))
        nearest = (drawn.flatten()[:, None] - images.flatten()).abs().argmin(1)
        assert (labels[nearest] == wanted).all()


def test_images_keep_the_dtype_of_their_noise():
    q, z = exact.gaussian(Flow(), SHAPE), points().float()
    found = [solvers.velocity_heun(q, z, 3), solvers.dpm(q, z, 3), adaptive.rk45(q, z)]
    assert {x0.dtype for x0 in found} == {torch.float32}
    assert torch.allclose(found[2].double(), truth(Flow(), points()), atol=1e-4)
