"""Measure generators against each other: quality at equal n, speed in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kdgen import metrics
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.evaluate import draw
from kdgen.fast import Generator, generator
from kdgen.metrics import Measure

TIMED = 512  # images per timed call
ROUNDS = 5  # timed calls of each kind, interleaved


@dataclass(frozen=True)
class Contestant:
    """One way of making digits, with its images and what was measured on them."""

    name: str
    model: Denoiser
    steps: int
    images: Tensor  # uint8 (n, C, H, W), the same noise and classes for all
    measures: list[Measure]

    @property
    def distance(self) -> Measure:
        """Fréchet distance on the classifier's features."""
        return next(m for m in self.measures if m.kind == "FD" and m.features)


def contest(name: str, model: Denoiser, steps: int, images: Images, seed: int) -> Contestant:
    """Sample as many images as there are real ones, with the real ones' classes, and measure."""
    samples, labels = draw(model, images, len(images), seed, steps)
    judge = metrics.classifier_for(images)
    measured = metrics.evaluate(samples, images, labels, seed=seed, classifier=judge)
    return Contestant(name, model, steps, samples, measured)


def speeds(teacher: Contestant, student: Contestant, seed: int) -> dict[str, list[float]]:
    """Images/s of every path, ROUNDS times each, interleaved so that drift hits all alike."""
    paths = {
        f"{teacher.name}, plain": generator(teacher.model, fast=False, seed=seed),
        f"{teacher.name}, fast": generator(teacher.model, seed=seed),
        f"{student.name}, plain": generator(student.model, fast=False, seed=seed),
        f"{student.name}, fast": generator(student.model, seed=seed),
    }
    return interleaved(paths)


def interleaved(paths: Mapping[str, Generator]) -> dict[str, list[float]]:
    """Images/s of every generator, ROUNDS times TIMED images, after one that does not count."""
    for make in paths.values():
        make(TIMED)
    found: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, make in paths.items():
            found[name].append(_rate(make))
    return found


def _rate(make: Generator) -> float:
    begun = time.perf_counter()
    make(TIMED)
    return TIMED / (time.perf_counter() - begun)
