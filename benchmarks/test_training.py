"""A training step through `fit` against a loop in plain torch, and its passes over the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from benchmarks import model, peers, suite
from benchmarks.roofs import Roofs
from kdgen import nets
from kdgen.data import Images, load
from kdgen.denoiser import Denoiser
from kdgen.ema import Average
from kdgen.learner import Learner
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import UNet
from kdgen.schedules import Cosine
from kdgen.training import Training, fit

Precision = Literal["fp32", "bf16"]
FEW = 4  # images
BETAS = (0.9, 0.999)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_digits_step(
    device: torch.device, precision: Precision, suite: suite.Suite, benchmark: Any
) -> None:
    images = load("digits", progress=False).to(device)
    net = nets.preset("tiny8", classes=images.classes)
    _time(suite, benchmark, net.to(device), images, "tiny8", precision, 16 if suite.smoke else 128)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cifar10_step_of_few_images(
    device: torch.device, precision: Precision, suite: suite.Suite, benchmark: Any
) -> None:
    """Few, so that a step takes seconds on a CPU."""
    _cifar10(device, precision, FEW, suite, benchmark)


@pytest.mark.parametrize("batch", [128, 512])
def test_cifar10_step(device: torch.device, batch: int, suite: suite.Suite, benchmark: Any) -> None:
    if device.type != "cuda":
        pytest.skip("a step of the 35.7M network takes half a minute on a CPU; measured on a GPU")
    _cifar10(device, "bf16", batch, suite, benchmark)


def _cifar10(
    device: torch.device, precision: Precision, batch: int, suite: suite.Suite, benchmark: Any
) -> None:
    name = "tiny32" if suite.smoke else "ddpm32"
    net, images = nets.preset(name), _noise_images(2048, (3, 32, 32)).to(device)
    _time(suite, benchmark, net.to(device), images, name, precision, batch)


@pytest.mark.parametrize("name", ["tiny8", "ddpm32"])
def test_adam(device: torch.device, name: str, suite: suite.Suite, benchmark: Any) -> None:
    """Norm of the gradients, clipping, Adam, against torch's own with its defaults."""
    ours, theirs = (_student(name, device, suite.smoke) for _ in range(2))
    learner = Learner({"student": ours}, BETAS, 1e-8, 0.01, clip=1.0)
    learner.lr.fill_(1e-4)
    adam = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=BETAS, weight_decay=0.01)
    for p in (*ours.parameters(), *theirs.parameters()):
        p.grad = torch.randn_like(p) * 1e-3
    loss = torch.zeros((), device=device)

    def plain() -> None:
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adam.step()

    # Weight, gradient and moments are read, all but the gradient written; the norm reads it first.
    _time_pass(suite, benchmark, ours, "Adam", lambda: learner.step(loss), plain, passes=8)


@pytest.mark.parametrize("name", ["tiny8", "ddpm32"])
def test_average(device: torch.device, name: str, suite: suite.Suite, benchmark: Any) -> None:
    """Of the weights, against a loop over them."""
    student, followed = (_student(name, device, suite.smoke) for _ in range(2))
    average = Average(student)
    average.keep(0.999)
    fine = torch.zeros((), device=device)
    kept = [p.detach().clone() for p in followed.parameters()]

    @torch.no_grad()
    def plain() -> None:
        for mine, theirs in zip(kept, followed.parameters(), strict=True):
            mine.lerp_(theirs, 1e-3)

    _time_pass(suite, benchmark, student, "average", lambda: average.update(fine), plain, passes=3)


def _student(name: str, device: torch.device, smoke: bool) -> Denoiser:
    return Denoiser(nets.preset("tiny8" if smoke else name), Cosine(), "v").to(device)


def _time_pass(
    suite: suite.Suite,
    benchmark: Any,
    student: Denoiser,
    what: str,
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    passes: int,
) -> None:
    """Work over all weights that reads or writes each `passes` times."""
    weights = list(student.parameters())
    moved = 4.0 * passes * sum(p.numel() for p in weights)
    suite.measure(
        benchmark,
        weights[0].device,
        torch.float32,
        [ours],
        [plain],
        predict=lambda roofs: moved / roofs.copy(moved),
        group="training",
        case=f"{what} of {sum(p.numel() for p in weights) / 1e6:.1f}M weights",
        implementation="fit",
        batch=1,
        flops=0.0,
        bytes=moved,
    )


def _time(
    suite: suite.Suite,
    benchmark: Any,
    net: UNet,
    images: Images,
    case: str,
    precision: Precision,
    batch: int,
) -> None:
    denoiser = Denoiser(net, Cosine(), "v")
    training = Training(1_000_000, batch=batch, lr=1e-4, precision=precision)
    steps = fit(Diffusion(error="v"), {"student": denoiser.copy()}, images, training)
    plain = peers.training(denoiser.copy(), images, training)
    device, dtype = images.pixels.device, torch.bfloat16 if precision == "bf16" else torch.float32
    works, style = model.walk(net), model.STYLES["kdgen"]

    def predict(roofs: Roofs) -> float:
        limits = roofs.gemm(dtype), roofs.copy()
        return model.training_roofline(works, style, batch, dtype.itemsize, *limits)

    try:
        suite.measure(
            benchmark,
            device,
            dtype,
            [lambda: next(steps)],
            [lambda: next(plain)],
            predict=predict,
            budget=10.0,
            group="training",
            case=f"{case} step",
            implementation="fit",
            batch=batch,
            images=batch,
            flops=3 * batch * model.flops(works),
            bytes=3 * batch * model.activation_bytes(works, style, dtype.itemsize)
            + 10 * model.weight_bytes(works, 4),
        )
    finally:
        steps.close()  # type: ignore[attr-defined]
        plain.close()  # type: ignore[attr-defined]


def _noise_images(n: int, shape: tuple[int, int, int]) -> Images:
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    return Images(pixels, None, 0, "noise")
