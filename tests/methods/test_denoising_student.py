"""Luhman & Luhman 2021: the student is the teacher's deterministic sample, in one evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdgen import kernels, nets, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.nets import exact
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

SHAPE = (3, 8, 8)
MEAN, STD = 0.3, 0.5
GAIN = 0.49269564  # oracle O-3, quad-100 on linear betas
QUAD = Sampling("ddim", 100, "quad")


def offset(gain: float) -> float:
    """B = m·(1 - A·a_T), a_T where the chain starts: index 800."""
    return MEAN * (1 - gain * math.sqrt(0.00150752))


def student(form: str, gain: float = GAIN, schedule: NoiseSchedule | None = None) -> Denoiser:
    """S(z) = A·z + B, read through `form`."""
    sign = -1 if form == "residual" else 1
    net = exact.Affine(SHAPE, 1 - gain if sign < 0 else gain, sign * offset(gain))
    return Denoiser(net, schedule or LinearVP(), form)


def pairs(batch: Callable[..., Batch], **options: object) -> Batch:
    drawn = batch(shape=SHAPE, **options)
    teacher = exact.gaussian(LinearVP(), SHAPE, MEAN, STD).double()
    x0 = samplers.sample(teacher, drawn.z.double(), how=QUAD)
    return replace(drawn, x0=x0.to(drawn.z.dtype))


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[DenoisingStudent, Nets, Batch]]:
    """Oracle O-4: the closed form is the optimum of every error and form."""
    for form in ("residual", "x0"):
        for error in ("l1", "l2", "huber"):
            method = DenoisingStudent(error=error, form=form)
            yield method, Nets({"student": student(form)}), pairs(batch)
    images = torch.full((1, *SHAPE), 0.25)
    roles = {
        "student": Denoiser(exact.Affine(SHAPE, 0.0, 0.25), Cosine(), "x0"),
        "teacher": exact.dataset(Cosine(), images, sampling=Sampling(steps=3)),
    }
    yield DenoisingStudent(form="x0", online=True), Nets(roles), batch(shape=SHAPE)


@pytest.mark.parametrize("form", ["residual", "x0"])
@pytest.mark.parametrize("error", ["l1", "l2"])
def test_training_finds_the_gain_of_the_teachers_chain(
    form: str, error: str, batch: Callable[..., Batch]
):
    """Oracle O-4: A = Π g, B = m·(1 - A·a_T); with S = z - F, F is (1 - A)·z - B."""
    drawn = pairs(batch, n=32, dtype=torch.float64)
    denoiser = student(form, gain=0.9).double()
    method, roles = DenoisingStudent(error=error, form=form), Nets({"student": denoiser})
    adam = torch.optim.Adam(denoiser.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, 0.975)
    for _ in range(400):
        adam.zero_grad()
        method.loss("main", roles, drawn).mean().backward()
        adam.step()
        schedule.step()
    sign = -1 if form == "residual" else 1
    expected = (1 - GAIN if sign < 0 else GAIN), sign * offset(GAIN)
    assert (denoiser.net.gain.item(), denoiser.net.offset.item()) == pytest.approx(
        expected, abs=1e-3
    )


def test_the_optimum_is_the_published_constant(batch: Callable[..., Batch]):
    """Oracle O-4 by least squares on the pairs, to eight digits."""
    drawn = pairs(batch, dtype=torch.float64)
    design = torch.stack([drawn.z.flatten(), torch.ones(drawn.z.numel()).double()], 1)
    slope, intercept = torch.linalg.lstsq(design, drawn.x0.flatten()[:, None]).solution.flatten()
    assert slope.item() == pytest.approx(GAIN, abs=1e-8)
    assert intercept.item() == pytest.approx(offset(GAIN), abs=1e-7)


def test_a_student_begins_as_noise_minus_the_teachers_noise():
    """Oracle O-4: S0 = z - (s/V)·(z - a·m) at index 999, when the teacher's network is exact."""
    schedule = LinearVP()
    a, s = schedule.levels(1.0)
    slope = s / ((a * STD) ** 2 + s**2)
    teacher = Denoiser(
        exact.Affine(SHAPE, slope, -slope * a * MEAN), schedule, "eps", sampling=QUAD
    )
    z = torch.randn(4, *SHAPE)
    first = DenoisingStudent().student(teacher)
    torch.testing.assert_close(first(z, 1.0).x0, z - slope * (z - a * MEAN), rtol=0, atol=1e-6)
    assert first.sampling == Sampling("ddim", 1, clip=1.0)
    seen: list[Tensor] = []
    first.net.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    first(z, 1.0)
    assert (seen[0] == 999).all()
    with torch.no_grad():
        first.net.gain.zero_()
    assert teacher.net.gain.item() == pytest.approx(slope)


def test_a_student_is_sampled_the_way_it_was_trained(batch: Callable[..., Batch]):
    """On every schedule, also where x_t at t = 1 is not the unit noise itself."""
    for schedule in (LinearVP(), Cosine(), EDM(), Flow()):
        for form in ("residual", "x0"):
            method = DenoisingStudent(error="l2", form=form)
            model = student(form, 0.3, schedule).copy(sampling=Sampling(steps=1))
            drawn = batch(shape=SHAPE)
            drawn = replace(drawn, x0=method.generate(model, drawn.z))
            assert method.loss("main", Nets({"student": model}), drawn).max() < 1e-8


def test_truncated_targets_are_half_a_level_too_dark_and_rounded_ones_are_not(
    batch: Callable[..., Batch],
):
    """Oracle O-4: trunc(127.5·x + 127.5), as the released pairs, shifts by -1/255 ± 5e-4."""
    drawn = pairs(batch, n=64)
    kept = drawn.x0.clamp(-1, 1)
    inside = kept.abs() < 1
    truncated = (kept * 127.5 + 127.5).trunc() / 127.5 - 1
    rounded = kernels.to_uint8(kept).permute(0, 3, 1, 2) / 127.5 - 1
    assert (truncated - kept)[inside].mean().item() == pytest.approx(-1 / 255, abs=5e-4)
    assert (rounded - kept)[inside].mean().item() == pytest.approx(0, abs=5e-4)
    assert (rounded - kept).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(("error", "expected"), [("l1", 0.7), ("l2", 0.49), ("huber", 0.5 * 0.49)])
def test_errors_are_their_means(error: str, expected: float, batch: Callable[..., Batch]):
    drawn = batch(shape=SHAPE)
    drawn = replace(drawn, x0=torch.zeros_like(drawn.x0))
    model = Denoiser(exact.Affine(SHAPE, 0.0, 0.7), Cosine(), "x0")
    loss = DenoisingStudent(error=error, form="x0").loss("main", Nets({"student": model}), drawn)
    torch.testing.assert_close(loss, torch.full((8,), expected))


def test_online_learns_from_what_a_store_would_hold(batch: Callable[..., Batch]):
    drawn = batch(shape=SHAPE)
    teacher = exact.gaussian(LinearVP(), SHAPE, 0.0, 0.3, sampling=QUAD)
    roles = Nets({"student": student("residual"), "teacher": teacher})
    stored = replace(drawn, x0=samplers.sample(teacher, drawn.z).clamp(-1, 1))
    online = DenoisingStudent(online=True).loss("main", roles, drawn)
    torch.testing.assert_close(online, DenoisingStudent().loss("main", roles, stored))


def test_online_follows_the_sampling_it_is_told(batch: Callable[..., Batch]):
    drawn, how = batch(shape=SHAPE), Sampling("ddim", 2, clip=0.1)
    teacher = exact.gaussian(LinearVP(), SHAPE, 0.0, 0.9, sampling=QUAD)
    roles = Nets({"student": student("residual"), "teacher": teacher})
    stored = replace(drawn, x0=samplers.sample(teacher, drawn.z, how=how).clamp(-1, 1))
    online = DenoisingStudent(online=True, how=how).loss("main", roles, drawn)
    torch.testing.assert_close(online, DenoisingStudent().loss("main", roles, stored))


def test_a_teacher_that_adds_noise_is_refused_online(batch: Callable[..., Batch]):
    teacher = exact.gaussian(LinearVP(), SHAPE, sampling=Sampling("ancestral", 3))
    roles = Nets({"student": student("residual"), "teacher": teacher})
    with pytest.raises(ValueError, match="expected a deterministic sampler"):
        DenoisingStudent(online=True).loss("main", roles, batch(shape=SHAPE))


def test_roles_and_data_follow_from_online():
    stored, online = DenoisingStudent(), DenoisingStudent(online=True)
    assert (stored.roles, stored.data) == (("student",), "pairs")
    assert (online.roles, online.data) == (("student", "teacher"), "noise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"error": "lpips"}, "unknown error 'lpips'; expected l1, l2, huber"),
        ({"form": "eps"}, "unknown form 'eps'; expected residual, x0"),
    ],
    ids=str,
)
def test_unknown_options_list_the_known_ones(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DenoisingStudent(**options)


def test_the_student_has_no_dropout_even_when_its_teacher_does():
    """Regression under dropout would learn another function than the one that is sampled."""
    net = nets.preset("tiny8", dropout=0.1)
    teacher = Denoiser(net, LinearVP(), "eps")
    student = DenoisingStudent().student(teacher)
    assert student.net.facts.dropout == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, student.net.state_dict()[name]), name
