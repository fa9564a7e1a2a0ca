"""Distances between sets of images that need no features: spectrum, histogram, projections."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen.metrics.pixels import check_same_n

LEVELS = 256
CHUNK = 4_096


def power_spectrum(images: Tensor) -> Tensor:
    """Mean power in decibel at each integer radius 1 … size/2 of the 2-D spectrum.

    The rounding noise of 8-bit images (1/12 of a level squared per pixel) is added, so that flat
    images have a finite level.
    """
    height, width = images.shape[-2:]
    power = torch.full((height, width), height * width / 12, dtype=torch.float64)
    for chunk in torch.split(images, CHUNK):
        transformed = torch.fft.fft2(chunk.double().mean(1))
        power += transformed.abs().square().sum(0) / len(images)
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    size = min(height, width)
    radius = (torch.hypot(rows[:, None], columns[None, :]) * size).round().long().reshape(-1)
    total = torch.zeros(int(radius.max()) + 1, dtype=torch.float64)
    total.index_add_(0, radius, power.reshape(-1))
    mean = total / torch.bincount(radius).clamp(min=1)
    return 10 * mean[1 : max(2, size // 2 + 1)].log10()


def spectrum_distance(x: Tensor, y: Tensor) -> float:
    """Root mean square difference of the two radial power spectra, in decibel."""
    return float((power_spectrum(x) - power_spectrum(y)).square().mean().sqrt())


def histogram_distance(x: Tensor, y: Tensor) -> float:
    """Earth mover's distance between the pixel values, in grey levels, averaged over channels."""
    return float((_cumulative(x) - _cumulative(y)).abs().sum(1).mean())


def sliced_wasserstein(
    x: Tensor, y: Tensor, directions: int = 256, seed: int = 0
) -> tuple[float, float]:
    """Mean W1 along random directions in pixel space, in grey levels, and its standard deviation.

    The standard deviation is that of the mean over directions: the noise of the choice of seed.
    """
    check_same_n("sliced Wasserstein", x, y)
    a, b = x.flatten(1).float(), y.flatten(1).float()
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(directions, a.shape[1], generator=generator)
    lines = lines / lines.norm(dim=1, keepdim=True)
    gaps = torch.cat([_gap(a, b, chunk) for chunk in lines.split(64)]).double()
    return float(gaps.mean()), float(gaps.std() / directions**0.5)


def _gap(a: Tensor, b: Tensor, lines: Tensor) -> Tensor:
    return ((lines @ a.T).sort(1).values - (lines @ b.T).sort(1).values).abs().mean(1)


def _cumulative(images: Tensor) -> Tensor:
    """Cumulative share of pixels at or below each grey level: (C, 256)."""
    counts = [torch.bincount(c.reshape(-1), minlength=LEVELS) for c in images.unbind(1)]
    shares = torch.stack(counts).double()
    return (shares / shares.sum(1, keepdim=True)).cumsum(1)
