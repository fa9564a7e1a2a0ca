"""Generators: image k is image k, whatever the batch, the path and the order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import kernels, nets, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import MemoryLimitError
from kdgen.fast import FastGenerator, Generator, generator
from kdgen.schedules import EDM, Cosine, LinearVP

Lively = Callable[..., nn.Module]
BATCHES = [1, 2, 3, 5, 7, 8, 64]
CONFIG = nets.UNetConfig(8, channels=3, width=16, mult=(1, 2), blocks=1, attention=(4,), classes=4)


@pytest.fixture
def student(lively: Lively) -> Denoiser:
    """One step, conditional, as a Denoising Student is sampled."""
    net = lively(nets.UNet(CONFIG))
    return Denoiser(net, Cosine(), "residual", sampling=Sampling("ddim", 1, clip=1.0))


def plain_of(denoiser: Denoiser, classes: int = 0) -> Denoiser:
    net = nets.UNet(replace(CONFIG, classes=classes))
    own = {n: p for n, p in denoiser.net.state_dict().items() if n in net.state_dict()}
    net.load_state_dict(own)
    return denoiser.copy(net=net)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [Generator, FastGenerator])
def test_images_do_not_depend_on_the_batch(
    student: Denoiser, kind: type[Generator], dtype: torch.dtype
):
    make = kind(student, seed=3, batch=64, dtype=dtype)
    whole = make(11)
    assert whole.float().std() > 20  # pictures, not grey
    for batch in BATCHES:
        make.batch = batch
        assert torch.equal(make(11), whole), batch


@pytest.mark.parametrize("kind", [Generator, FastGenerator])
def test_image_k_does_not_depend_on_how_many_are_asked_for(
    student: Denoiser, kind: type[Generator]
):
    make = kind(student, seed=1, batch=8)
    whole = make(21)
    assert torch.equal(make(4), whole[:4])
    assert torch.equal(make(3, first=11), whole[11:14])
    assert torch.equal(make(1, first=20), whole[20:])


@pytest.mark.parametrize(
    "how",
    [
        Sampling("ddim", 1, clip=1.0),
        Sampling("ddim", 4, clip=1.0),
        Sampling("ddim", 3, clip=1.0, guidance=2.0),
        Sampling("ancestral", 3, clip=1.0),
        Sampling("heun", 3),
    ],
    ids=str,
)
def test_fast_is_plain_within_one_grey_level(student: Denoiser, how: Sampling):
    model = student.copy(parameterisation="v", sampling=how)
    plain, fast_images = (kind(model, seed=5)(12).int() for kind in (Generator, FastGenerator))
    assert (plain - fast_images).abs().max() <= 1
    assert plain.float().std() > 20


@pytest.mark.parametrize(
    ("schedule", "kind", "grid"), [(LinearVP(), "eps", "quad"), (EDM(), "edm", "karras")], ids=str
)
def test_fast_is_plain_on_other_schedules(student: Denoiser, schedule, kind: str, grid: str):
    how = Sampling("ddim", 5, grid, clip=1.0)
    model = student.copy(schedule=schedule, parameterisation=kind, time=None, sampling=how)
    plain, fast_images = (make(model)(8).int() for make in (Generator, FastGenerator))
    assert (plain - fast_images).abs().max() <= 1


def test_the_plain_generator_is_the_sampler(student: Denoiser):
    make = Generator(student, seed=9)
    label = make.labels(8)
    z = noise.normal(9, noise.Stream.SAMPLE, torch.arange(8), student.shape)
    expected = kernels.to_uint8(samplers.sample(student.eval(), z, label))
    assert torch.equal(make(8), expected.detach())


def test_seeds_give_other_images(student: Denoiser):
    assert not torch.equal(Generator(student, seed=0)(4), Generator(student, seed=1)(4))


def test_the_model_given_is_left_alone(student: Denoiser):
    before = {n: p.clone() for n, p in student.state_dict().items()}
    FastGenerator(student.train(), dtype=torch.bfloat16)(2)
    assert student.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in student.parameters())
    assert all(torch.equal(p, before[n]) for n, p in student.state_dict().items())


def test_no_images_are_an_empty_array(student: Denoiser):
    assert Generator(student)(0).shape == (0, 8, 8, 3)


def test_classes_are_drawn_by_address_and_can_be_chosen(student: Denoiser):
    make = Generator(student, seed=2)
    drawn = make.labels(9)
    assert drawn is not None
    assert set(drawn.tolist()) <= set(range(4))
    assert torch.equal(drawn[4:], make.labels(5, first=4))
    assert torch.equal(make(9), make(9, label=drawn))
    assert torch.equal(make(9), make(9, label=drawn.to(torch.int32).tolist()))
    assert torch.equal(make(3, label=2), make(3, label=[2, 2, 2]))
    assert not torch.equal(make(3, label=2), make(3, label=1))


@pytest.mark.parametrize("label", [4, -1, [0, 1], [0, 1, 9], 1.5, True, [[0, 1, 2]]], ids=str)
def test_labels_that_are_no_classes_are_refused(student: Denoiser, label: object):
    with pytest.raises(ValueError, match=r"Generator: label is .*; expected"):
        Generator(student)(3, label=label)


def test_labels_for_a_model_without_classes_are_refused(student: Denoiser):
    with pytest.raises(ValueError, match="has no classes"):
        Generator(plain_of(student))(3, label=1)
    assert Generator(plain_of(student))(3).shape == (3, 8, 8, 3)


def test_a_batch_of_none_is_refused(student: Denoiser):
    with pytest.raises(ValueError, match="batch is 0; expected at least 1"):
        Generator(student, batch=0)


@pytest.mark.parametrize("steps", [1, 6])
def test_nfe_is_what_is_counted(student: Denoiser, steps: int):
    make = generator(student, fast=False, steps=steps)
    calls: list[int] = []
    make.denoiser.net.register_forward_pre_hook(lambda *_: calls.append(1))
    make(4)
    assert (make.nfe, len(calls)) == (steps, steps)


def test_generator_picks_the_path(student: Denoiser):
    assert type(generator(student)) is FastGenerator
    assert type(generator(student, fast=False)) is Generator
    assert generator(student, steps=3).how == replace(student.sampling, steps=3)


class Small(Generator):
    """A machine with room for so many images at once."""

    room = 20
    error: type[Exception] = torch.OutOfMemoryError
    message = "CUDA out of memory. Tried to allocate 1 TiB"

    def _sample(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        if len(z) > self.room:
            raise self.error(self.message)
        return super()._sample(z, label, index)


class SmallCpu(Small):
    error = RuntimeError
    message = (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 8192 bytes."
    )


@pytest.mark.parametrize("kind", [Small, SmallCpu])
def test_batches_halve_until_they_fit_and_images_stay_the_same(
    student: Denoiser, kind: type[Small]
):
    make = kind(student, batch=64)
    assert torch.equal(make(70), Generator(student)(70))
    assert make.batch == 16


@pytest.mark.parametrize("kind", [Small, SmallCpu])
def test_memory_that_holds_nothing_is_a_refusal(
    student: Denoiser, kind: type[Small], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kind, "room", 0)
    with pytest.raises(MemoryLimitError, match=r"8 images do not fit on cpu .*wanted, .* MiB free"):
        kind(student, batch=64)(70)


def test_other_errors_are_not_taken_for_full_memory(
    student: Denoiser, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SmallCpu, "message", "shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        SmallCpu(student, batch=64)(70)
