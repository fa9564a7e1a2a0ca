"""One training step through `fit`, against a loop in plain torch."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from benchmarks import model, peers, suite
from benchmarks.roofs import Roofs
from kdgen import nets
from kdgen.data import Images, load
from kdgen.denoiser import Denoiser
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import UNet
from kdgen.schedules import Cosine
from kdgen.training import Training, fit

Precision = Literal["fp32", "bf16"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_digits_step(
    device: torch.device, precision: Precision, suite: suite.Suite, benchmark: Any
) -> None:
    images = load("digits", progress=False).to(device)
    net = nets.preset("tiny8", classes=images.classes)
    _time(suite, benchmark, net.to(device), images, "tiny8", precision, 16 if suite.smoke else 128)


@pytest.mark.parametrize("batch", [128, 512])
def test_cifar10_step(device: torch.device, batch: int, suite: suite.Suite, benchmark: Any) -> None:
    if device.type != "cuda":
        pytest.skip("a step of the 35.7M network takes half a minute on a CPU; measured on a GPU")
    name = "tiny32" if suite.smoke else "ddpm32"
    net, images = nets.preset(name), _noise_images(2048, (3, 32, 32)).to(device)
    _time(suite, benchmark, net.to(device), images, name, "bf16", batch)


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
