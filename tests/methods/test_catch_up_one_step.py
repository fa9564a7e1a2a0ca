"""The last stages of catch-up distillation: one evaluation, taught by the middle of a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdgen import nets, samplers, solvers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods import Batch, Nets
from kdgen.methods.catch_up_one_step import STAGES, TRAJECTORY, CatchUpOneStep
from kdgen.nets import exact
from kdgen.schedules import Cosine, Flow

SHAPE = (3, 8, 8)


def grey() -> Denoiser:
    """Of data that is one grey image: right in one step already."""
    return Denoiser(exact.Affine(SHAPE, 0.0, 0.25), Flow(), "x0")


def answers(batch: Callable[..., Batch]) -> Iterator[tuple[CatchUpOneStep, Nets, Batch]]:
    """Straight paths: every prediction along the chain is the image."""
    drawn = batch(shape=SHAPE)
    for k in STAGES:
        x0 = solvers.prediction_along(grey(), drawn.z, TRAJECTORY, k).detach()
        roles = Nets({"student": grey(), "teacher": grey()})
        yield CatchUpOneStep(), roles, replace(drawn, x0=x0)


def affine(gain: float, offset: float) -> Denoiser:
    """velocity = gain·x + offset."""
    return Denoiser(exact.Affine(SHAPE, gain, offset), Flow(), "velocity").double()


def pairs(teacher: exact.Mixture, index: int, batch: Callable[..., Batch]) -> Batch:
    drawn = batch(shape=SHAPE, dtype=torch.float64)
    x0 = solvers.prediction_along(teacher, drawn.z, TRAJECTORY, index)
    return replace(drawn, x0=x0)


@pytest.mark.parametrize("index", STAGES)
@pytest.mark.parametrize("anchor", [0.0, 0.1])
def test_training_rests_where_target_and_anchor_agree(
    index: int, anchor: float, batch: Callable[..., Batch]
):
    """The velocity at z is (z − x0 + anchor·v_teacher)/(1 + anchor), affine on Gaussian data."""
    teacher = exact.gaussian(Flow(), SHAPE).double()
    drawn = pairs(teacher, index, batch)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, *SHAPE)
    wanted = ends - solvers.prediction_along(teacher, ends, TRAJECTORY, index)
    wanted = (wanted + anchor * teacher(ends, 1.0).velocity) / (1 + anchor)
    offset, end = wanted.flatten(1)[:, 0].tolist()
    student = affine(end - offset, offset)
    method, roles = CatchUpOneStep(anchor=anchor), Nets({"student": student, "teacher": teacher})
    loss = method.loss("main", roles, drawn)
    assert (loss.max() < 1e-12) == (anchor == 0)
    loss.mean().backward()
    assert max(p.grad.abs().item() for p in student.parameters()) < 1e-6
    elsewhere = Nets({"student": affine(end - offset + 0.1, offset), "teacher": teacher})
    assert method.loss("main", elsewhere, drawn).mean() > loss.mean()


def test_later_stages_ask_for_more_of_the_image():
    """On Gaussian data the gain from z grows from 0, the mean, towards that of the whole chain."""
    teacher = exact.gaussian(Flow(), SHAPE).double()
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, *SHAPE)

    def gain(image: Tensor) -> float:
        return (image[1] - image[0]).mean().item()

    gains = [gain(solvers.prediction_along(teacher, z, TRAJECTORY, k)) for k in (0, *STAGES)]
    assert gains == sorted(gains)
    assert gains[0] == pytest.approx(0, abs=1e-12)
    assert gains[-1] < gain(samplers.ddim(teacher, z, TRAJECTORY))


def test_the_loss_is_the_papers(batch: Callable[..., Batch]):
    drawn = batch(shape=SHAPE, dtype=torch.float64)
    student, teacher = affine(0.7, 0.1), affine(0.9, -0.2)
    v, began = 0.7 * drawn.z + 0.1, 0.9 * drawn.z - 0.2
    expected = (drawn.z - v - drawn.x0).square() + 0.1 * (v - began).square()
    loss = CatchUpOneStep().loss("main", Nets({"student": student, "teacher": teacher}), drawn)
    torch.testing.assert_close(loss, expected.mean((1, 2, 3)), rtol=1e-6, atol=1e-7)


def test_a_student_is_its_teacher_in_one_step():
    net = nets.preset("tiny8", channels=3, dropout=0.1, outputs=2)
    teacher = Denoiser(net, Flow(), "velocity", sampling=Sampling("velocity_heun", 8))
    roles = CatchUpOneStep().cast(teacher)
    CatchUpOneStep().check(roles)
    assert roles.student.sampling == Sampling("ddim", 1, clip=1.0)
    assert roles.student.net.facts.dropout == 0
    z = torch.randn(2, *SHAPE)
    began = roles.teacher.eval()(z, 1.0)
    torch.testing.assert_close(roles.student(z, 1.0).velocity, began.velocity)
    image = CatchUpOneStep().generate(roles.student, z)
    torch.testing.assert_close(image, (z - began.velocity).clamp(-1, 1))


def test_only_flows_suit_it():
    flow = Denoiser(exact.Affine(SHAPE), Flow(), "v")
    roles = Nets({"student": flow.copy(schedule=Cosine()), "teacher": flow})
    with pytest.raises(ValueError, match="the student is on cosine; expected flow"):
        CatchUpOneStep().check(roles)
    roles = Nets({"student": flow, "teacher": flow.copy(schedule=Cosine())})
    with pytest.raises(ValueError, match="the teacher is on cosine; expected flow"):
        CatchUpOneStep().check(roles)


def test_a_negative_anchor_is_refused():
    with pytest.raises(ValueError, match=r"anchor is -0\.1; expected at least 0"):
        CatchUpOneStep(anchor=-0.1)
