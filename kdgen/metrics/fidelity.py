"""Measures that look at one image at a time: neighbours among the others, and its label."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdgen.errors import MetricError
from kdgen.metrics import neighbours
from kdgen.metrics.comparison import Comparison
from kdgen.metrics.measure import Measure, jackknife

K = 3
# Nearest neighbours are sought for at most this many images, evenly spaced.
ROWS = 2_000


def precision_recall(at: Comparison) -> list[Measure]:
    """On disjoint halves when n needs them: a resampled real image would be its own neighbour."""
    space = at.features
    first, second = at.sets.halves
    fake = space.fake[_thin(torch.arange(at.n), len(first))]
    real, other = space.real[first], space.real[second]
    values = neighbours.precision_recall(real, fake, K)
    floors = neighbours.precision_recall(real, other, K)
    caveats = (
        "Share of samples near real ones: fidelity, blind to missing variety. ",
        "Share of real images near samples: variety, blind to implausible samples. ",
    )
    return [
        Measure(
            name=f"{name}[{space.label}, k={K}, n={len(first)}]",
            value=value,
            spread=_binomial(value, len(first)),
            floor=floor,
            n=len(first),
            seed=at.seed,
            caveat=caveat + "Depends on k and n; sensitive to outliers.",
            better="higher",
            floor_of="real against real, two disjoint sets of n",
            features=space.extractor,
        )
        for name, value, floor, caveat in zip(
            ("precision", "recall"), values, floors, caveats, strict=True
        )
    ]


def label_agreement(at: Comparison) -> list[Measure]:
    """Share of samples that the classifier takes for the class asked for."""
    c, labels = at.classifier, at.labels
    if c is None or labels is None:
        raise MetricError("evaluate: label agreement needs labels and a classifier. Pass both.")
    value = float((c.predict(at.fake) == labels.cpu()).double().mean())
    measure = Measure(
        name=f"label agreement[{c.name}, n={at.n}]",
        value=value,
        spread=_binomial(value, at.n),
        floor=c.accuracy,
        n=at.n,
        seed=at.seed,
        caveat="Share of samples that the classifier takes for the class asked for. Blind to "
        "variety; may exceed real images, since samples can be more typical than those.",
        better="higher",
        floor_of=f"the classifier on {c.held_out} held-out real images",
        features=c.identity,
    )
    return [measure]


def nearest_training_image(at: Comparison) -> list[Measure]:
    """How near samples come to training images, relative to real images."""
    space = at.components
    fake = space.fake[_thin(torch.arange(at.n), ROWS)]
    usual = _leave_one_out(space.real, _thin(at.sets.match, ROWS))
    distances = neighbours.nearest(fake, space.real)
    first, second = (space.real[half] for half in at.sets.halves)
    rows = _thin(torch.arange(len(second)), ROWS)
    usual_half = _leave_one_out(second, rows)
    measure = Measure(
        name=f"nearest training image[{space.label}, n={len(fake)}]",
        value=float(distances.median()) / usual,
        spread=jackknife(lambda d: float(d.median()) / usual, distances),
        floor=float(neighbours.nearest(first[rows], second).median()) / usual_half,
        n=len(fake),
        seed=at.seed,
        caveat="Median distance to the nearest training image, over that of a real image to the "
        "nearest other one. Far below 1: copies; far above: unlike the data. Misses shifted ones.",
        better="near 1",
        floor_of=f"one half of the real images against the other, n={len(rows)}",
        features=space.extractor,
    )
    return [measure]


def _leave_one_out(real: Tensor, rows: Tensor) -> float:
    """Median distance of the real images `rows` to their nearest other one."""
    usual = float(neighbours.nearest(real[rows], real, own=rows).median())
    if usual <= 0:
        raise MetricError(
            "nearest training image: more than half of the real images occur twice; expected "
            "distinct images. Remove the repeats, or leave this measure out."
        )
    return usual


def _thin(index: Tensor, most: int) -> Tensor:
    """At most this many of the rows, evenly spaced."""
    return index[torch.linspace(0, len(index) - 1, min(most, len(index))).long()]


def _binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
