"""Salimans & Ho 2022: two steps of the teacher are one of the student's, and nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets, noise, samplers
from kdgen.denoiser import (
    READERS,
    TIMES,
    Denoiser,
    Guided,
    Levels,
    Prediction,
    Predicts,
    Sampling,
    times,
)
from kdgen.ema import Ema
from kdgen.methods import Batch, Nets
from kdgen.methods.progressive import Progressive, share_of_first
from kdgen.nets import exact
from kdgen.nets.embedding import Waves
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule, expand
from kdgen.training import Training, fit

SHAPE = (3, 8, 8)
PIXEL = (1, 1, 1)
MEAN, STD = 0.3, 0.5
CIRCLE = Cosine(math.inf)  # alpha = cos(π/2·t), sigma = sin(π/2·t)
PATHS = [
    (Cosine(), "uniform"),
    (CIRCLE, "uniform"),
    (LinearVP(), "uniform"),
    (Flow(), "uniform"),
    (EDM(), "ramp"),
]
every = pytest.mark.parametrize(("q", "grid"), PATHS, ids=str)


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[Progressive, Nets, Batch]]:
    """Data that is one grey image; and a Gaussian, whose two steps from t = 1 are affine."""
    images, how = torch.full((1, *SHAPE), 0.25), Sampling(steps=3)
    for q, weight, grid in (
        (Cosine(), "truncated", "uniform"),
        (Cosine(), "snr+1", "uniform"),
        (EDM(), "constant", "ramp"),
    ):
        roles = {
            "student": Denoiser(exact.Affine(SHAPE, 0.0, 0.25), q, "x0"),
            "teacher": exact.dataset(q, images, sampling=how),
        }
        yield Progressive(4, weight=weight, grid=grid), Nets(roles), batch(shape=SHAPE)
    roles = {
        "student": Denoiser(exact.Affine(SHAPE, 0.2, MEAN), Flow(), "x0"),
        "teacher": exact.gaussian(Flow(), SHAPE, MEAN, STD, sampling=how),
    }
    yield Progressive(1), Nets(roles), batch(shape=SHAPE)


class Table:
    """x0 = gain·x_t + offset, a gain and an offset for each of some times: what a round can learn
    at best about Gaussian data."""

    def __init__(self, q: NoiseSchedule, marks: Tensor, gain: Tensor, offset: Tensor) -> None:
        self.schedule, self.gain, self.offset = q, gain, offset
        self.edges = (marks[1:] + marks[:-1]) / 2

    def __call__(self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None) -> Prediction:
        t = times(t, x_t)
        k = torch.bucketize(t, self.edges)
        x0 = expand(self.gain[k], x_t) * x_t + expand(self.offset[k], x_t)
        return Prediction(x_t, x0, Levels(self.schedule, t, x_t))


def steps_of(method: Progressive, q: NoiseSchedule, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(t, m, s) of all of its student's steps, the one to the image first."""
    u = (torch.arange(method.steps, dtype=dtype) + 0.5) / method.steps
    return method.times(q, u)


def optimum(method: Progressive, teacher: Predicts, dtype: torch.dtype) -> Table:
    """The student whose loss is zero, by its targets for x_t = 0 and x_t = 1."""
    t, m, s = steps_of(method, teacher.schedule, dtype)
    nothing = torch.zeros(len(t), *PIXEL, dtype=dtype)
    offset = method.target(teacher, nothing, t, m, s)
    gain = method.target(teacher, nothing + 1, t, m, s) - offset
    return Table(teacher.schedule, t, gain.flatten(), offset.flatten())


def distilled(method: Progressive, teacher: Predicts, dtype: torch.dtype) -> Predicts:
    for stage in method.rounds():
        teacher = optimum(stage, teacher, dtype)
    return teacher


def affine(denoiser: Predicts, steps: int, grid: str, dtype: torch.dtype) -> tuple[float, float]:
    """(gain, offset) of the sampler, which is affine in z."""
    z = torch.tensor([0.0, 1.0], dtype=dtype).view(2, *PIXEL)
    x0 = samplers.ddim(denoiser, z, steps, grid=grid).flatten().double()
    return (x0[1] - x0[0]).item(), x0[0].item()


def chain(q: NoiseSchedule, std: float, steps: int, grid: str) -> tuple[float, float]:
    """The exact teacher's, in float64."""
    return affine(exact.gaussian(q, PIXEL, MEAN, std).double(), steps, grid, torch.float64)


class Says:
    """A teacher that answers as told, whatever it is asked."""

    def __init__(self, q: NoiseSchedule, *answers: Tensor) -> None:
        self.schedule, self._answers = q, iter(answers)

    def __call__(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Prediction:
        return Prediction(x_t, next(self._answers), Levels(self.schedule, times(t, x_t), x_t))


def told(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, first guess, second guess), (n, 1, 1, 4) each."""
    r = torch.Generator().manual_seed(n)
    drawn = torch.randn(3, n, 1, 1, 4, generator=r, dtype=torch.float64)
    x_t, first, second = drawn.to(dtype)
    return x_t, first, second


# One step of the student


@every
@pytest.mark.parametrize("steps", [1, 2, 8, 128])
def test_one_step_along_the_target_lands_where_two_of_the_teacher_do(
    q: NoiseSchedule, grid: str, steps: int
):
    method = Progressive(steps, grid=grid)
    t, m, s = steps_of(method, q, torch.float64)
    x_t, first, second = told(steps)
    x0 = method.target(Says(q, first, second), x_t, t, m, s)
    landed = q.step(q.step(x_t, first, t, m), second, m, s)
    torch.testing.assert_close(q.step(x_t, x0, t, s), landed, rtol=1e-12, atol=1e-12)
    if grid == "uniform":  # the last step is to the image itself
        assert torch.equal(x0[0], second[0])


@every
def test_the_second_guess_is_asked_from_midway(q: NoiseSchedule, grid: str):
    method = Progressive(8, grid=grid)
    t, m, s = steps_of(method, q, torch.float64)
    x_t, _, _ = told(8)
    teacher = exact.gaussian(q, (1, 1, 4), MEAN, STD).double()
    first = teacher(x_t, t).x0
    second = teacher(q.step(x_t, first, t, m), m).x0
    expected = method.target(Says(q, first, second), x_t, t, m, s)
    torch.testing.assert_close(method.target(teacher, x_t, t, m, s), expected)


@pytest.mark.parametrize("q", [Cosine(), CIRCLE, LinearVP(), Flow(), EDM()], ids=repr)
def test_the_last_student_learns_the_teachers_second_guess(q: NoiseSchedule):
    """For any teacher: with one step, s is 0."""
    one, x_t = torch.ones(3, dtype=torch.float64), told(3)[0]
    _, first, second = told(3)
    x0 = Progressive(1).target(Says(q, first, second), x_t, one, one / 2, one * 0)
    assert torch.equal(x0, second)


@pytest.mark.parametrize("steps", [2, 32])
def test_the_targets_gain_is_the_teachers_two(steps: int):
    """(g1·g2 − r)/(alpha_s − alpha_t·r), r = sigma_s/sigma_t and g the gain of one DDIM step on
    Gaussian data, (alpha_s·alpha_t·c² + sigma_s·sigma_t)/V_t."""
    q, method = Cosine(), Progressive(steps)
    marks = [v.tolist() for v in steps_of(method, q, torch.float64)]
    student = optimum(method, exact.gaussian(q, PIXEL, MEAN, STD).double(), torch.float64)

    def gain(t: float, s: float) -> float:
        (a_t, s_t), (a_s, s_s) = q.levels(t), q.levels(s)
        return (a_s * a_t * STD**2 + s_s * s_t) / ((a_t * STD) ** 2 + s_t**2)

    for k, (t, m, s) in list(enumerate(zip(*marks, strict=True)))[1:]:
        (a_t, s_t), (a_s, s_s) = q.levels(t), q.levels(s)
        r = s_s / s_t
        expected = (gain(t, m) * gain(m, s) - r) / (a_s - a_t * r)
        assert student.gain[k].item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("q", [Cosine(), CIRCLE], ids=repr)
def test_where_angles_are_evenly_spaced_the_shares_are_those_of_sigma(q: NoiseSchedule):
    """sigma_s/(sigma_s + sigma_t), and nothing of the first guess in the last step."""
    t, m, s = steps_of(Progressive(64), q, torch.float64)
    (_, sigma_t), (_, sigma_s) = q.alpha_sigma(t), q.alpha_sigma(s)
    expected = torch.where(s == 0, 0, sigma_s / (sigma_s + sigma_t))
    torch.testing.assert_close(share_of_first(q, t, m, s), expected, rtol=1e-10, atol=0)


def test_the_share_on_edms_path():
    """With r1 = sigma_m/sigma_t and r2 = sigma_s/sigma_m: r2·(1 − r1)/(1 − r1·r2)."""
    q = EDM()
    t, m, s = steps_of(Progressive(18, 9, grid="ramp"), q, torch.float64)
    r1, r2 = m / t, s / m
    torch.testing.assert_close(share_of_first(q, t, m, s), r2 * (1 - r1) / (1 - r1 * r2))


# Precision


def explicit(q: NoiseSchedule, x_t: Tensor, first: Tensor, second: Tensor, *at: Tensor) -> Tensor:
    """Algorithm 2 as it stands: the two steps, then the inverse of one."""
    t, m, s = at
    return q.landing(x_t, q.step(q.step(x_t, first, t, m), second, m, s), t, s)


@pytest.mark.parametrize("steps", [1, 2, 4, 1024, 4096])
def test_the_target_is_algorithm_2s(steps: int):
    q, method = Cosine(), Progressive(steps)
    at, drawn = steps_of(method, q, torch.float64), told(steps)
    x0 = method.target(Says(q, *drawn[1:]), drawn[0], *at)
    torch.testing.assert_close(x0, explicit(q, *drawn, *at), rtol=1e-11, atol=1e-11)


def worst(steps: int, dtype: torch.dtype, algorithm_2: bool = False) -> float:
    """Largest error of any step's target, of guesses of size 1."""
    q, method, drawn = Cosine(), Progressive(steps), told(steps, dtype)
    at = steps_of(method, q, torch.float32)  # exact: steps is a power of two
    wide = [v.double() for v in drawn]
    truth = method.target(Says(q, *wide[1:]), wide[0], *(v.double() for v in at))
    if algorithm_2:
        x0 = explicit(q, *drawn, *at)
    else:
        x0 = method.target(Says(q, *drawn[1:]), drawn[0], *at)
    return ((x0.double() - truth).abs() / (1 + truth.abs())).max().item()


@pytest.mark.parametrize("steps", [1, 2, 4, 1024, 4096])
def test_the_target_keeps_its_digits_at_any_number_of_steps(steps: int):
    assert worst(steps, torch.float32) < 1e-6
    assert worst(steps, torch.bfloat16) < 3e-2


def test_algorithm_2_as_it_stands_does_not():
    assert worst(4096, torch.float32, algorithm_2=True) > 1e-5
    assert worst(4096, torch.bfloat16, algorithm_2=True) > 1


# What bfloat16 leaves of the published settings, where 4096 is the first round's number of steps.


def error_of_eps(form: str, t: float) -> float:
    """Root mean square of the error of eps, where a network says all of x0, eps or v that its form
    asks for, rounded to bfloat16; 1 is what saying nothing of the noise costs."""
    index = torch.arange(512)
    x0 = 2 * noise.uniform(0, 1, index, 192).view(-1, *SHAPE) - 1
    eps, at = noise.normal(0, 2, index, SHAPE), torch.full((512,), t)
    x_t, levels = Cosine().noise(x0, eps, at), Levels(Cosine(), at, x0)
    said = {"x0": x0, "v": levels.alpha * eps - levels.sigma * x0, "both": torch.cat([x0, eps], 1)}
    guess = READERS[form](x_t, said[form].bfloat16().float(), levels)
    return (guess.eps - eps).square().mean().sqrt().item()


def test_an_image_in_bfloat16_knows_less_of_the_last_noise_than_nothing():
    """So the CIFAR-10 recipe, x0 under truncated SNR, is in float32; both heads and v bear it."""
    assert 1.5 < error_of_eps("x0", 1 / 4096) < 2.5
    assert error_of_eps("both", 1 / 4096) < 5e-3
    assert error_of_eps("v", 1 / 4096) < 5e-3


def test_4096_times_stay_apart_in_bfloat16():
    """The embedding is made in float32; its layers see it rounded."""
    t = torch.arange(1, 4097) / 4096
    waves = Waves(nets.PRESETS["pd32"].wave_width // 2, cos_first=False)
    seen = waves(TIMES["angle"](Cosine(), t)).bfloat16()
    assert len(seen.unique(dim=0)) == 4096


def test_the_first_round_is_finite_in_bfloat16(batch: Callable[..., Batch]):
    """The weight reaches 5e6, in float32."""
    teacher = Denoiser(nets.UNet(nets.UNetConfig(8, width=8, mult=(1,), blocks=1)), Cosine(), "x0")
    method, drawn = Progressive(4096), batch()
    assert Cosine().snr(torch.tensor(1 / 4096)) > 5e6
    roles = method.cast(teacher)
    for u in (0.0, 0.5, 1 - 2**-24):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = method.loss("main", roles, replace(drawn, u=torch.full((8, 4), u)))
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()


# All rounds


@pytest.mark.parametrize("steps", [2, 4, 8, 16, 1024])
def test_on_a_circle_nothing_of_the_teachers_product_is_lost(steps: int):
    """Unit Gaussian data: DDIM shrinks it by cos(π/2N) a step."""
    teacher = exact.gaussian(CIRCLE, PIXEL, 0.0, 1.0).double()
    student = distilled(Progressive(steps // 2), teacher, torch.float64)
    gain, offset = affine(student, 1, "uniform", torch.float64)
    assert gain == pytest.approx(math.cos(math.pi / 2 / steps) ** steps, abs=1e-12)
    assert offset == pytest.approx(0, abs=1e-12)


def test_the_published_constants():
    known = {2: 0.5, 4: 0.72855339, 8: 0.85623212, 16: 0.92567649, 1024: 0.99879594}
    for steps, gain in known.items():
        assert chain(CIRCLE, 1.0, steps, "uniform")[0] == pytest.approx(gain, abs=5e-9)
    assert chain(Cosine(), 0.5, 32, "uniform")[0] == pytest.approx(0.47645799, abs=5e-9)


@every
@pytest.mark.parametrize("until", [1, 4])
def test_every_round_samples_what_the_first_teacher_did(q: NoiseSchedule, grid: str, until: int):
    teacher = exact.gaussian(q, PIXEL, MEAN, STD).double()
    student = distilled(Progressive(16, until, grid=grid), teacher, torch.float64)
    assert affine(student, until, grid, torch.float64) == pytest.approx(
        chain(q, STD, 32, grid), abs=1e-11
    )


@pytest.mark.parametrize(("q", "std"), [(Cosine(), 0.5), (CIRCLE, 1.0), (CIRCLE, 0.5)], ids=str)
def test_thirteen_rounds_in_float32_lose_nothing(q: NoiseSchedule, std: float):
    """From 8192 steps to one: the paper's whole chain."""
    teacher = exact.gaussian(q, PIXEL, MEAN, std)
    method = Progressive(4096)
    assert len(list(method.rounds())) == 13
    student = distilled(method, teacher, torch.float32)
    gain, offset = affine(student, 1, "uniform", torch.float32)
    assert (gain, offset) == pytest.approx(chain(q, std, 8192, "uniform"), abs=1e-6)


class Swapped(Progressive):
    """Goes to the end first, then midway."""

    def target(self, teacher: Predicts, x_t: Tensor, t: Tensor, m: Tensor, s: Tensor) -> Tensor:
        return super().target(teacher, x_t, t, s, m)


class Endless(Progressive):
    """Forgets that the last step lands on x0, also where sigma(0) is not quite 0."""

    def times(self, q: NoiseSchedule, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, m, s = super().times(q, u)
        return t, m, s.clamp(min=1e-300)


@pytest.mark.parametrize(
    ("kind", "breaks"), [(Progressive, False), (Swapped, True), (Endless, True)]
)
def test_two_known_mistakes_would_be_noticed(kind: type[Progressive], breaks: bool):
    teacher = exact.gaussian(Cosine(), PIXEL, MEAN, STD).double()
    student = optimum(kind(16), teacher, torch.float64)
    found = affine(student, 16, "uniform", torch.float64)
    error = max(abs(a - b) for a, b in zip(found, chain(Cosine(), STD, 32, "uniform"), strict=True))
    assert (error > 1e-7) if breaks else (error < 1e-12)


# The loss


@every
def test_times_are_those_the_student_and_its_teacher_are_sampled_at(q: NoiseSchedule, grid: str):
    method = Progressive(8, grid=grid)
    t, m, s = steps_of(method, q, torch.float64)
    mine = torch.from_numpy(q.grid(8, grid)).flip(0)
    theirs = torch.from_numpy(q.grid(16, grid)).flip(0)
    close = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(t, mine[1:], **close)
    torch.testing.assert_close(s, mine[:-1], **close)
    torch.testing.assert_close(m, theirs[1::2], **close)


@pytest.mark.parametrize("steps", [1, 3, 6, 20, 1000, 4095, 8192])
def test_the_last_uniform_is_still_a_step(steps: int):
    """The product of a count and 1 - 2⁻²⁴ does not round up to the count."""
    t, _, _ = Progressive(steps, until=steps).times(Cosine(), torch.tensor([1 - 2**-24]))
    assert t.item() == 1


def test_steps_are_drawn_equally_often_up_to_the_last_uniform():
    u = torch.cat([(torch.arange(4000) + 0.5) / 4000, torch.tensor([1 - 2**-24])])
    t, _, _ = Progressive(8).times(Cosine(), u)
    values, counts = t.unique(return_counts=True)
    assert torch.equal(values, torch.arange(1, 9) / 8)
    assert counts.tolist() == [500] * 7 + [501]


@pytest.mark.parametrize("name", ["truncated", "constant", "snr", "snr+1"])
def test_the_loss_is_the_weighted_distance_to_the_target(name: str, batch: Callable[..., Batch]):
    q, drawn, method = Cosine(), batch(dtype=torch.float64), Progressive(4, weight=name)
    teacher = exact.gaussian(q, SHAPE, MEAN, STD).double()
    student = Denoiser(exact.Affine(SHAPE, 0.5, 0.1), q, "v").double()
    t, m, s = method.times(q, drawn.u[:, 0])
    x_t = q.noise(drawn.x0, drawn.eps, t)
    wrong = student(x_t, t).x0 - method.target(teacher, x_t, t, m, s)
    snr = q.snr(t)
    weight = {"truncated": snr.clamp(min=1), "constant": 1, "snr": snr, "snr+1": snr + 1}[name]
    loss = method.loss("main", Nets({"student": student, "teacher": teacher}), drawn)
    expected = weight * wrong.square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)


def test_targets_are_not_clipped(batch: Callable[..., Batch]):
    bright = Denoiser(exact.Affine(SHAPE, 0.0, 3.0), Cosine(), "x0")
    roles = Nets({"student": bright, "teacher": bright.copy()})
    assert Progressive(4).loss("main", roles, batch(shape=SHAPE)).abs().max() < 1e-5


def test_a_teacher_is_distilled_together_with_its_guidance(batch: Callable[..., Batch]):
    images = torch.stack([torch.full(SHAPE, v) for v in (-0.5, 0.0, 0.5)])
    labels, drawn = torch.arange(3), batch(shape=SHAPE, classes=3)
    method, q = Progressive(4), Cosine()
    teacher = exact.Mixture(q, images, 0.5, labels, sampling=Sampling(guidance=2.0))
    student = Denoiser(exact.Affine(SHAPE, 0.0, 0.0), q, "x0")
    t, m, s = method.times(q, drawn.u[:, 0])
    x_t = q.noise(drawn.x0, drawn.eps, t)
    target = method.target(Guided(teacher, 2.0), x_t, t, m, s, drawn.label)
    loss = replace(method, weight="x0").loss(
        "main", Nets({"student": student, "teacher": teacher}), drawn
    )
    torch.testing.assert_close(loss, target.square().mean((1, 2, 3)))
    plain = method.target(teacher, x_t, t, m, s, drawn.label)
    assert not torch.allclose(target, plain, atol=1e-2)


# Rounds


def test_rounds_halve_down_to_the_last():
    assert [r.steps for r in Progressive(8).rounds()] == [8, 4, 2, 1]
    assert [r.steps for r in Progressive(12, until=3).rounds()] == [12, 6, 3]
    assert list(Progressive(4, until=4).rounds()) == [Progressive(4, until=4)]


def test_the_shortest_students_learn_longest():
    assert [r.length for r in Progressive(8).rounds()] == [1, 1, 2, 2]
    assert [r.length for r in Progressive(4, last_length=3.0).rounds()] == [1, 3, 3]


def test_a_student_is_sampled_in_the_steps_of_its_round():
    q = EDM()
    student = Denoiser(exact.Affine(PIXEL), q, "x0")
    for stage in Progressive(4, grid="ramp", clip=0.9).rounds():
        assert stage.sampling(student) == Sampling("ddim", stage.steps, "ramp", clip=0.9)
        assert samplers.evaluations(q, stage.sampling(student)) == stage.steps


def test_the_student_begins_as_its_teacher_without_dropout():
    net = nets.preset("tiny8", dropout=0.1)
    teacher = Denoiser(net, Cosine(), "v", sampling=Sampling("ancestral", 50, guidance=2.0))
    student = Progressive(4).student(teacher)
    assert student.net.facts.dropout == 0
    assert student.sampling == Sampling("ddim", 4, clip=1.0)
    assert (student.schedule, student.parameterisation) == (teacher.schedule, "v")
    for name, value in net.state_dict().items():
        assert torch.equal(value, student.net.state_dict()[name]), name


def test_a_ramp_takes_student_and_teacher_to_edms_path():
    teacher = Denoiser(nets.preset("tiny8"), Cosine(), "v")
    method = Progressive(4, grid="ramp")
    roles = method.cast(teacher)
    method.check(roles)
    assert roles.student.schedule == roles.teacher.schedule == EDM()
    narrow = EDM(sigma_max=20.0)
    assert method.student(teacher.copy(schedule=narrow)).schedule == narrow


@pytest.mark.parametrize("q", [EDM(), Cosine(), LinearVP(), Flow()], ids=lambda q: q.name)
def test_every_path_has_a_grid_of_its_own(q: NoiseSchedule):
    """What is left out is the published one: Karras's ramp for EDM, uniform in t elsewhere."""
    grid = "ramp" if isinstance(q, EDM) else "uniform"
    chosen, left_out = Progressive(8, grid=grid), Progressive(8)
    found, expected = (steps_of(method, q, torch.float64) for method in (left_out, chosen))
    assert all(map(torch.equal, found, expected))
    student = left_out.student(Denoiser(exact.Affine(PIXEL), q, "x0"))
    assert (student.schedule, student.sampling.grid) == (q, grid)
    left_out.check(Nets({"student": student, "teacher": student.copy()}))


class Levelled(nn.Module):
    """gain·x + offset with an own pair for each of n times on a flow."""

    classes = 0

    def __init__(self, shape: tuple[int, int, int], gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.gain, self.offset = nn.Parameter(gain), nn.Parameter(offset)

    def forward(
        self, x: Tensor, time: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        k = (time * len(self.gain)).round().long() - 1
        return expand(self.gain[k], x) * x + expand(self.offset[k], x)

    def config(self) -> dict[str, Any]:
        return {"name": "levelled"}


def levelled(steps: int, shape: tuple[int, int, int]) -> Denoiser:
    """A network that is exact about Gaussian data at the times of so many steps."""
    q, t = Flow(), torch.arange(1, steps + 1) / steps
    alpha, sigma = q.alpha_sigma(t)
    slope = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2)
    size = (alpha**2 + sigma**2).sqrt()  # networks for x0 see x_t at unit power
    net = Levelled(shape, slope * size, MEAN * (1 - slope * alpha))
    return Denoiser(net, q, "x0", time="raw", sampling=Sampling(steps=steps))


class Grey:
    """Gaussian images."""

    name, digest, classes, shape = "grey", "0", 0, (1, 4, 4)

    def __init__(self) -> None:
        drawn = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.x0 = MEAN + STD * drawn

    def __len__(self) -> int:
        return len(self.x0)

    def take(self, index: Tensor) -> tuple[Tensor, None]:
        return self.x0[index], None


def test_training_takes_four_steps_to_one():
    """Two rounds of the real loop: the student ends with its teacher's product of four gains."""
    method, teacher = Progressive(2, last_length=1.0, clip=None), levelled(4, Grey.shape)
    expected = affine_of(teacher)
    roles = method.cast(teacher)
    method.check(roles)
    steps = Training(
        steps=250, batch=16, lr=0.05, decay="linear", ema=Ema.none(), clip=None, log_every=250
    )
    *_, last = fit(method, roles, Grey(), steps)
    student = last.nets.student
    assert last.number == 500
    assert student.sampling == Sampling("ddim", 1)
    assert affine_of(student) == pytest.approx(expected, abs=2e-3)
    assert affine_of(teacher) == expected
    assert affine_of(method.student(levelled(1, Grey.shape)))[0] == pytest.approx(0)


def affine_of(denoiser: Denoiser) -> tuple[float, float]:
    z = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, *denoiser.shape)
    with torch.no_grad():
        low, high = samplers.sample(denoiser, z)[:, 0, 0, 0].tolist()
    return high - low, low


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0, until 1"),
        ({"steps": 12}, "steps is 12, until 1; expected"),
        ({"steps": 8, "until": 3}, "steps is 8, until 3"),
        ({"steps": 2, "until": 4}, "steps is 2, until 4"),
        ({"steps": 4, "until": 0}, "until 0"),
        ({"weight": "edm"}, "unknown weight 'edm'"),
        ({"grid": "karras"}, "unknown grid 'karras'; expected uniform, ramp"),
        ({"last_length": 0.0}, "last_length is 0.0"),
        ({"clip": 0.0}, "clip 0.0"),
    ],
    ids=str,
)
def test_impossible_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Progressive(**options)


def roles(student: NoiseSchedule, teacher: NoiseSchedule, *forms: str) -> Nets:
    return Nets(
        {
            role: Denoiser(exact.Affine(SHAPE), q, form)
            for role, q, form in zip(("student", "teacher"), (student, teacher), forms, strict=True)
        }
    )


@pytest.mark.parametrize(
    ("grid", "given", "message"),
    [
        ("uniform", (Flow(), Cosine(), "v", "v"), "expected one path. Use teacher.copy"),
        ("ramp", (Cosine(), Cosine(), "v", "v"), "cosine has no grid 'ramp'; expected uniform"),
        ("uniform", (Cosine(), Cosine(), "v", "residual"), "the teacher is read as 'residual'"),
        ("uniform", (Cosine(), Cosine(), "residual", "v"), "the student is read as 'residual'"),
        ("ramp", (EDM(), EDM(), "edm", "consistency"), "the teacher is read as 'consistency'"),
        ("uniform", (EDM(), EDM(), "edm", "edm"), "is uniform in sigma: .* Leave grid out"),
    ],
    ids=str,
)
def test_denoisers_that_do_not_fit_are_refused(grid: str, given: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Progressive(4, grid=grid).check(roles(*given))


def test_denoisers_that_fit_are_not():
    Progressive(4).check(roles(Cosine(), Cosine(), "v", "x0"))
    for grid in (None, "ramp"):
        Progressive(4, grid=grid).check(roles(EDM(), EDM(), "edm", "edm"))
    exactly = roles(Cosine(), Cosine(), "v", "v")
    exactly["teacher"] = exact.gaussian(Cosine(), SHAPE)
    Progressive(4).check(exactly)


def test_eps_is_refused_where_nothing_is_left_of_the_image():
    with pytest.raises(ValueError, match="'eps' divides by alpha"):
        roles(Cosine(), Cosine(), "eps", "eps")
