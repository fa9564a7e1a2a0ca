"""`python -m kdgen.evaluate`: measure a model's images against real ones.

Examples:
  python -m kdgen.evaluate
  python -m kdgen.evaluate --checkpoint runs/student --json student.json
  python -m kdgen.evaluate --checkpoint runs/teacher --steps 1

No pretrained network is needed, and no number is FID: they rank models on one data set at one n,
with the floor beside each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdgen import cli, data, durable, metrics, sample
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import DataError, UsageError
from kdgen.fast import generator
from kdgen.metrics import Measure

FEWEST = 130  # two halves of more images than the classifier has features


@dataclass(frozen=True)
class Args:
    """Measure a model's images: each number with its floor (real against real), n, seed, caveat."""

    checkpoint: Path | None = None
    """Run directory or checkpoint; default: the bundled student."""
    data: str = "digits"
    """Real images: "digits", a folder, a .zip, or CIFAR-10's archive."""
    size: int | None = None
    """Crop to the middle square and resize to this many pixels."""
    n: int | None = None
    """Images to compare on each side; default: as many as there are real ones, at most 10,000."""
    steps: int | None = None
    """Steps of the sampler; default: the model's own."""
    seed: int = 0
    """Decides the images and the real ones of the floors."""
    batch: int = 256
    """Images per network call."""
    classifier: Path | None = None
    """File to keep the feature classifier in, where kdgen brings none for the data."""
    json: Path | None = None
    """Write the numbers here too."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "evaluate")


def run(args: Args) -> None:
    """Measure as the arguments say."""
    model = sample.load(args.checkpoint, args.steps).to(cli.device(args.device))
    images = data.load(args.data, size=args.size)
    check(model, images)
    n = count(args.n, images)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # refused now, not after measuring
    measures = measure(model, images, n, args.seed, args.steps, args.batch, args.classifier)
    print(metrics.table(measures, "text"))
    if args.json is not None:
        durable.replace_file(args.json, metrics.table(measures, "json").encode())


def count(n: int | None, images: Images) -> int:
    """How many images to compare: `n`, or all, at most 10,000. UsageError for too few or many."""
    n = min(len(images), 10_000) if n is None else n
    if not FEWEST <= n <= len(images):
        raise UsageError(
            f"evaluate: --n is {n} of {len(images)} real images; expected {FEWEST} … "
            f"{len(images)}: below {FEWEST} distances between sets mean nothing. Bring more images."
        )
    return n


def measure(
    model: Denoiser,
    images: Images,
    n: int,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 256,
    classifier: Path | None = None,
) -> list[Measure]:
    """Every measure of n images of the model; its classes are those of n of the real images."""
    samples, labels = draw(model, images, n, seed, steps, batch)
    judge = metrics.classifier_for(images, classifier) if images.labels is not None else None
    return metrics.evaluate(samples, images, labels, seed=seed, classifier=judge)


def draw(
    model: Denoiser, images: Images, n: int, seed: int, steps: int | None, batch: int = 256
) -> tuple[Tensor, Tensor | None]:
    """(uint8 (n, C, H, W), labels (n,) or None): the same noise and classes for every model."""
    labels = None
    if model.classes and images.labels is not None:
        labels = (
            images.labels
            if n == len(images)
            else images.labels[data.order(len(images), seed, 0)[:n]]
        )
    samples = generator(model, seed=seed, batch=batch, steps=steps)(n, label=labels)
    return samples.permute(0, 3, 1, 2), labels


def check(model: Denoiser, images: Images) -> None:
    """DataError unless the images are of the model's shape and classes."""
    if model.shape != images.shape:
        raise DataError(
            f"{images.name}: images are {images.shape}; expected {model.shape}, the model's. "
            "Pass --size, or other data."
        )
    if model.classes and model.classes != images.classes:
        raise DataError(
            f"{images.name}: has {images.classes} classes; expected {model.classes}, the model's. "
            "Pass the data it was trained on."
        )


if __name__ == "__main__":
    main()
