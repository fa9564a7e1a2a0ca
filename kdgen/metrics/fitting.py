"""Training the small classifier that features come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from kdgen.errors import MetricError
from kdgen.metrics.classifier import FEATURES, Classifier, FeatureNet, Labelled, unit
from kdgen.metrics.frechet import moments

WHITENED_SHARE = 1e-5
WHITENING_ROWS = 10_000


def train_classifier(
    images: Labelled, *, steps: int | None = None, seed: int = 0, rate: float = 4e-3
) -> Classifier:
    """Train on four fifths of the labelled images; the last fifth gives the stated accuracy.

    Depends on the images and the seed alone, up to the rounding of the machine's convolutions.
    """
    labels = images.labels
    if labels is None or images.classes < 2:
        raise MetricError(
            f"classifier: {images.name} has no labels; expected at least 2 classes. "
            "Use the measures on pixels."
        )
    generator = torch.Generator().manual_seed(seed)
    held, kept = torch.randperm(len(labels), generator=generator).tensor_split([len(labels) // 5])
    net = _new_net(images, seed)
    pixels, labels = images.pixels.cpu(), labels.cpu()
    with _threads(1 if pixels.shape[-1] <= 16 else torch.get_num_threads()):
        _train(net, pixels[kept], labels[kept], steps or _steps(len(kept)), rate, generator)
    made = Classifier(net, f"{images.name}-classifier-{FEATURES}", images.digest, 0.0, len(held))
    _whiten(made, pixels[kept])
    right = made.predict(pixels[held]) == labels[held]
    return Classifier(net, made.name, made.data, float(right.double().mean()), len(held))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """Small images gain nothing from a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _new_net(images: Labelled, seed: int) -> FeatureNet:
    _, channels, height, width = images.pixels.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = min(height, width)
        return FeatureNet(channels, images.classes, size, width=16 if size <= 16 else 48)


def _steps(n: int) -> int:
    """600 batches reach 99% on the digits; a large set gets more."""
    return 600 if n < 10_000 else 1_200


def _train(
    net: FeatureNet,
    pixels: Tensor,
    labels: Tensor,
    steps: int,
    rate: float,
    generator: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(pixels), (128,), generator=generator)
        x = unit(pixels[index])
        # A little noise keeps the features of real and generated images on the same footing.
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels[index], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    net.eval().requires_grad_(False)


def _whiten(classifier: Classifier, pixels: Tensor) -> None:
    """Set the whitening of the features from these images; predictions stay as they are."""
    fitted = moments(classifier.features(pixels[:WHITENING_ROWS]))
    variances, axes = torch.linalg.eigh(fitted.covariance)
    # A direction that the network hardly uses must not be blown up to the size of the others.
    least = WHITENED_SHARE * variances.mean()
    net = classifier.net
    net.mean.copy_(fitted.mean)
    net.whitening.copy_(axes * (variances + least).rsqrt())
