"""How close an accelerated network is to what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgen.acceleration.source import Source
from kdgen.denoiser import SIGMA_DATA

Answer = Callable[..., Tensor]


@dataclass(frozen=True)
class Error:
    """Of an answer, relative to the expected one: in the L2 norm, and the largest of an element to
    the largest element."""

    l2: float
    largest: float

    def __str__(self) -> str:
        return f"{self.l2:.1e} L2, {self.largest:.1e} largest"


@dataclass(frozen=True)
class Report:
    """Measured on `images` random inputs of the size and spread that the network sees, the worst of
    its times. `difference` is from the original, in its own dtype; the others are each from the
    original in float64."""

    images: int
    difference: Error
    original: Error
    accelerated: Error

    def __str__(self) -> str:
        return (
            f"accelerated is {self.difference} from the original ({self.images} random images);\n"
            f"from float64, the original is {self.original},\n"
            f"             the accelerated {self.accelerated}"
        )


@torch.no_grad()
def compare(source: Source, fast: Answer, images: int) -> Report:
    """The report on `fast`, whose device the inputs are made on."""
    training = source.module.training
    source.module.eval()
    try:
        errors = [_errors(source, fast, t, time, images) for t, time in _pairs(source)]
    finally:
        source.module.train(training)
    return Report(images, *(_worst([e[k] for e in errors]) for k in range(3)))


def _pairs(source: Source) -> list[tuple[float, float]]:
    return list(zip(source.asked, source.times, strict=True))


def _errors(
    source: Source, fast: Answer, t: float, time: float, images: int
) -> tuple[Error, Error, Error]:
    weight = next(source.module.parameters())
    x, label = inputs(source, time, images)
    exact = source.original(torch.float64)(x, t, label)
    own = source.original()(x.to(weight.dtype), t, label)
    there = fast.device  # type: ignore[attr-defined]
    given = None if label is None else label.to(there)
    said = fast(x.to(there, weight.dtype), given, t).to(weight.device)
    return error(said, own), error(own, exact), error(said, exact)


def inputs(source: Source, time: float, images: int) -> tuple[Tensor, Tensor | None]:
    """Noisy images as they are at that time, float64, and classes; where the module is."""
    device = next(source.module.parameters()).device
    r = torch.Generator().manual_seed(0)
    x = torch.randn(images, *source.denoiser.shape, generator=r, dtype=torch.float64)
    if not source.bare:
        alpha, sigma = source.denoiser.schedule.levels(time)
        x = x * math.hypot(SIGMA_DATA * alpha, sigma)
    if source.centred:
        x = (x + 1) / 2
    if not (classes := source.denoiser.classes):
        return x.to(device), None
    return x.to(device), (torch.arange(images) % classes).to(device)


def error(said: Tensor, expected: Tensor) -> Error:
    """Of `said`."""
    said, expected = said.double(), expected.double()
    difference = said - expected
    return Error(
        (difference.norm() / expected.norm()).item(),
        (difference.abs().max() / expected.abs().max()).item(),
    )


def _worst(errors: list[Error]) -> Error:
    return Error(max(e.l2 for e in errors), max(e.largest for e in errors))
