"""The sampler that chooses its steps: to a tolerance, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdgen import adaptive, nets, noise, solvers
from kdgen.denoiser import Denoiser, Levels, Prediction
from kdgen.errors import KdgenError, NonFiniteError
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule, expand

MEAN, STD = 0.3, 0.5
every_schedule = pytest.mark.parametrize(
    "schedule", [LinearVP(), Cosine(), EDM(), Flow()], ids=lambda q: q.name
)


def teacher(schedule: NoiseSchedule) -> exact.Mixture:
    return exact.gaussian(schedule, (1, 1, 1), MEAN, STD).double()


def points() -> Tensor:
    return torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64).view(3, 1, 1, 1)


def truth(schedule: NoiseSchedule, z: Tensor) -> Tensor:
    """Of the probability-flow ODE from t = 1: x0 = m + c·(x_1 − a·m)/√V."""
    a, s = schedule.levels(1.0)
    return MEAN + STD * (schedule.start(z, 1.0) - a * MEAN) / math.hypot(a * STD, s)


@every_schedule
def test_it_keeps_its_tolerance(schedule: NoiseSchedule):
    z = points()
    for tolerance in (1e-4, 1e-5, 1e-6, 1e-7):
        found = adaptive.rk45(teacher(schedule), z, rtol=tolerance, atol=tolerance, end=1e-5)
        assert (found - truth(schedule, z)).abs().max() < 10 * tolerance


def test_what_it_costs_follows_from_its_order():
    """Steps grow as the tolerance's fifth root falls: a thousandth costs about four times as many,
    where a method of order 2 would need 32 times."""
    calls = []
    for tolerance in (1e-6, 1e-9, 1e-12):
        counted = solvers.Counted(teacher(Flow()))
        adaptive.rk45(counted, points(), rtol=tolerance, atol=tolerance, end=1e-3)
        assert counted.evaluations % 6 == 1  # one, and six for each step that was tried
        calls.append(counted.evaluations)
    assert 2 < calls[1] / calls[0] < 6
    assert 2 < calls[2] / calls[1] < 6


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=lambda q: q.name)
def test_an_image_does_not_depend_on_its_batch(
    schedule: NoiseSchedule, lively: Callable[..., nn.Module]
):
    """To the bit, whether its neighbours are slow or fast, many or none."""
    size = nets.UNetConfig(8, channels=1, width=8, mult=(1,), blocks=1, classes=3)
    model = lively(Denoiser(nets.UNet(size), schedule, "v", "angle")).eval()
    z = noise.normal(0, 0, noise.addresses(0, 24), model.shape)
    z[1::2] *= 3  # some paths bend more
    label = torch.arange(24) % 3

    def drawn(rows: slice) -> Tensor:
        with torch.no_grad():
            return adaptive.rk45(model, z[rows], label[rows], rtol=1e-3, atol=1e-3)

    whole = drawn(slice(None))
    for rows in (slice(0, 1), slice(1, 2), slice(3, 8), slice(7, 24), slice(23, 24)):
        assert torch.equal(drawn(rows), whole[rows])


def test_images_take_steps_of_their_own():
    """One that bends does not slow the others down: they are evaluated less often."""
    seen: list[int] = []

    class Watched:
        schedule = Flow()

        def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Prediction:
            seen.append(len(x_t))
            waves = expand((40 * t).sin(), x_t) * (label == 1).view(-1, 1, 1, 1)
            return Prediction(x_t, waves.to(x_t), Levels(self.schedule, t, x_t))

    z, label = torch.zeros(64, 1, 1, 1), torch.arange(64) // 32
    adaptive.rk45(Watched(), z, label)
    assert seen[0] == 64
    assert seen[-1] == 32


def oscillator(y: Tensor, t: Tensor) -> Tensor:
    """dy/dt = y·cos t: not autonomous, solved by e^sin t."""
    return y * t.cos()


def test_a_step_of_the_pair_has_a_local_error_of_sixth_order_and_knows_one_of_fifth():
    t = torch.full((3,), 0.1, dtype=torch.float64)
    step = torch.tensor([0.4, 0.2, 0.1], dtype=torch.float64)
    y = t.sin().exp()
    after, slope, known = adaptive.dormand_prince(oscillator, y, t, step, oscillator(y, t))
    assert torch.equal(slope, oscillator(after, t + step))
    errors = (after - (t + step).sin().exp()).abs()
    assert math.log2(errors[1] / errors[2]) == pytest.approx(6, abs=0.3)
    assert math.log2((known[1] / known[2]).abs()) == pytest.approx(5, abs=0.3)


class Changed:
    """The exact denoiser of a flow whose x0 is replaced."""

    schedule = Flow()

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.change = change

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Prediction:
        guess = teacher(self.schedule)(x_t, t)
        return Prediction(x_t, self.change(guess.x0, expand(t, x_t)), guess.levels)


def test_a_velocity_that_is_not_finite_ends_it():
    broken = Changed(lambda x0, t: torch.where(t > 0.5, x0, torch.nan))
    with pytest.raises(NonFiniteError, match="is not finite; expected numbers"):
        adaptive.rk45(broken, points())


def test_a_velocity_that_is_not_smooth_ends_it_instead_of_going_on_for_ever():
    rough = Changed(lambda x0, t: x0 + (1e6 * t).sin().sign())
    with pytest.raises(KdgenError, match="3 of 3 images have not arrived after 200 steps"):
        adaptive.rk45(rough, points(), most=200)


@pytest.mark.parametrize(
    "options", [{"rtol": 0.0}, {"atol": -1.0}, {"end": 0.0}, {"end": 1.0}, {"most": 0}]
)
def test_impossible_tolerances_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match="expected them above 0, and end below 1"):
        adaptive.rk45(teacher(Flow()), points(), **options)
