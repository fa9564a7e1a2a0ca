"""Generated images beside the real ones, in each space that a measure looks at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdgen.errors import MetricError
from kdgen.metrics import frechet
from kdgen.metrics.classifier import Classifier, Labelled
from kdgen.metrics.floors import RealSets, real_sets
from kdgen.metrics.pixels import Range, as_uint8, check_same_shape, grey

COMPONENTS = 64
# Principal components settle long before this many rows, and this many take a second.
FIT_ROWS = 10_000


@dataclass(frozen=True)
class Space:
    """Both sets as rows of numbers, float64."""

    label: str  # as it stands in the brackets of a measure's name
    extractor: str  # what made the numbers
    fake: Tensor  # (n, d)
    real: Tensor  # (N, d)


@dataclass(frozen=True, eq=False)
class Comparison:
    """n generated images, N real ones, and which of the real ones make up the floors."""

    fake: Tensor  # uint8 (n, C, H, W)
    real: Tensor  # uint8 (N, C, H, W)
    labels: Tensor | None  # (n,) the classes that the generated images were asked to show
    classifier: Classifier | None
    sets: RealSets
    seed: int

    @property
    def n(self) -> int:
        return len(self.fake)

    @cached_property
    def features(self) -> Space:
        """The classifier's features."""
        c = self.classifier
        if c is None:
            raise MetricError("evaluate: no classifier given. Pass one from classifier_for.")
        return Space(c.name, c.identity, c.features(self.fake), c.features(self.real))

    @cached_property
    def components(self) -> Space:
        """Principal components of the real pixels, on the scale [-1, 1]."""
        rows = torch.linspace(0, len(self.real) - 1, min(FIT_ROWS, len(self.real))).long()
        fitted = frechet.pca(_scaled(self.real[rows]), COMPONENTS)
        label = f"pixel-pca{fitted.components}"
        return Space(label, label, _project(fitted, self.fake), _project(fitted, self.real))


def compare(
    samples: Tensor,
    reference: Labelled,
    labels: Tensor | None,
    classifier: Classifier | None,
    seed: int,
    value_range: Range | None,
) -> Comparison:
    """Check what is compared; MetricError when the two sides do not match."""
    fake = as_uint8(samples, value_range, "evaluate")
    real = as_uint8(reference.pixels, None, "evaluate")
    check_same_shape("evaluate", fake, real)
    n, total = len(fake), len(real)
    if n > total:
        raise MetricError(
            f"evaluate: n={n:,} samples against {total:,} real images; expected at most {total:,}, "
            f"because both sides need the same n. Pass the first {total:,}."
        )
    if labels is not None and labels.shape != (n,):
        raise MetricError(
            f"evaluate: labels have shape {tuple(labels.shape)}; expected ({n},), one per sample."
        )
    strata = reference.labels if labels is not None else None
    return Comparison(fake, real, labels, classifier, real_sets(total, n, strata, seed), seed)


def _scaled(pixels: Tensor) -> Tensor:
    return grey(pixels) / 127.5 - 1


def _project(fitted: frechet.PCA, pixels: Tensor) -> Tensor:
    return torch.cat([fitted(_scaled(chunk)) for chunk in torch.split(pixels, FIT_ROWS)])
