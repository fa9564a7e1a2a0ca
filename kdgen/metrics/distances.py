"""Measures that are a distance between two sets, with floors at equal n and between halves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kdgen.metrics import frechet, kernel, spectra
from kdgen.metrics.comparison import Comparison, Space
from kdgen.metrics.measure import Measure, jackknife

Distance = Callable[[Tensor, Tensor], float]


def fd_features(at: Comparison) -> list[Measure]:
    """Fréchet distance on the classifier's features."""
    caveat = (
        "Sees what the classifier needs to tell classes apart, and is blind to the rest. Compares "
        "only with the same classifier and n. A copy of the training set scores 0. Not FID."
    )
    return [_fd(at, at.features, caveat)]


def fd_pixels(at: Comparison) -> list[Measure]:
    """Fréchet distance on the first principal components of the pixels."""
    caveat = "Coarse layout and colour; blur can score better. Compares at equal n only. Not FID."
    return [_fd(at, at.components, caveat)]


def mmd(at: Comparison) -> list[Measure]:
    """Unbiased polynomial MMD on the classifier's features, with a bootstrap interval."""
    space = at.features
    found = kernel.mmd(space.fake, space.real[at.sets.match], seed=at.seed)
    measure = _measure(
        at,
        f"MMD[{space.label}, n={found.n}]",
        lambda x, y: kernel.mmd(x, y, draws=0).value,
        (space.fake, space.real),
        "Unbiased in n, may fall below 0; high variance. Floor: mean size between real sets.",
        extractor=space.extractor,
        spread=found.spread,
        interval=found.interval,
    )
    return [measure]


def sliced_wasserstein(at: Comparison) -> list[Measure]:
    """Sliced Wasserstein distance on pixels."""
    matched = at.real[at.sets.match]
    _, spread = spectra.sliced_wasserstein(at.fake, matched, seed=at.seed)
    measure = _measure(
        at,
        f"sliced Wasserstein[pixels, n={at.n}]",
        lambda x, y: spectra.sliced_wasserstein(x, y, seed=at.seed)[0],
        (at.fake, at.real),
        "Grey levels along random directions in pixel space; weak in high dimension. "
        "The spread is that of the choice of directions.",
        spread=spread,
    )
    return [measure]


def power_spectrum(at: Comparison) -> list[Measure]:
    """Root mean square difference of radial power spectra, in decibel."""
    caveat = "Decibel per radius: an alarm for blur and high-frequency noise, no ranking."
    name = f"power spectrum[pixels, n={at.n}]"
    return [_measure(at, name, spectra.spectrum_distance, (at.fake, at.real), caveat)]


def histogram(at: Comparison) -> list[Measure]:
    """Wasserstein distance of grey-level histograms."""
    caveat = "Grey levels: an alarm for brightness, contrast, saturation; blind to structure."
    name = f"histogram[pixels, n={at.n}]"
    return [_measure(at, name, spectra.histogram_distance, (at.fake, at.real), caveat)]


def _fd(at: Comparison, space: Space, caveat: str) -> Measure:
    name = f"FD[{space.label}, n={at.n}]"
    smallest = min(at.n, len(at.sets.halves[0]))
    frechet.check_enough(name, smallest, space.fake.shape[1])

    def distance(x: Tensor, y: Tensor) -> float:
        return frechet.frechet(frechet.moments(x), frechet.moments(y))

    return _measure(at, name, distance, (space.fake, space.real), caveat, space.extractor)


def _measure(
    at: Comparison,
    name: str,
    distance: Distance,
    sets: tuple[Tensor, Tensor],
    caveat: str,
    extractor: str = "",
    spread: float | None = None,
    interval: tuple[float, float] | None = None,
) -> Measure:
    fake, real = sets
    matched = real[at.sets.match]
    first, second = at.sets.halves
    if spread is None:
        spread = jackknife(lambda x: distance(x, matched), fake)
    # An unbiased distance scatters around 0 between real sets: its size is the floor.
    floors = [abs(distance(real[a], real[b])) for a, b in at.sets.pairs]
    return Measure(
        name=name,
        value=distance(fake, matched),
        spread=spread,
        floor=sum(floors) / len(floors),
        n=at.n,
        seed=at.seed,
        caveat=caveat,
        floor_of=at.sets.how,
        half_floor=abs(distance(real[first], real[second])),
        half_n=len(first),
        interval=interval,
        features=extractor,
    )
