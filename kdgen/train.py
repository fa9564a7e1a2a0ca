"""`python -m kdgen.train`: train a teacher.

Examples:
  python -m kdgen.train digits --out runs/digits
  python -m kdgen.train images-tiny --data my-images/ --size 32 --out runs/mine --dry-run
  python -m kdgen.train cifar10-ddpm --data cifar-10-python.tar.gz --out runs/cifar10

The same command again resumes where the run stopped.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from kdgen import cli, data, grid, recipes
from kdgen.batches import Source
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import UsageError
from kdgen.fast import FastGenerator
from kdgen.methods import Method
from kdgen.nets import UNet
from kdgen.recipes.cost import size
from kdgen.run import Run
from kdgen.training import Training, fit

PROBE_FLOPS = 2e11  # of one evaluation of a batch that a dry run measures without a GPU


@dataclass(frozen=True)
class Overrides:
    """What train and distill may change of a recipe's training."""

    steps: int | None = None
    """Optimizer updates; default: the recipe's (this and the next five)."""
    batch: int | None = None
    """Images per update."""
    lr: float | None = None
    """Adam's learning rate."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16 runs the networks under autocast."""
    graph: Literal["auto", "on", "off"] | None = None
    """Replay training steps as a CUDA graph; auto: where that is possible."""
    save_every: int | None = None
    """Steps between checkpoints."""
    seed: int = 0
    """Decides initial weights, data order, noise and pairs."""
    sample_every: int = 250
    """Steps between sample grids in OUT/samples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    require_kernels: bool = False
    """A fast kernel that is missing or cannot be compiled is an error, exit code 8."""
    dry_run: bool = False
    """Print parameters, memory, measured s/step and time, and stop."""


@dataclass(frozen=True)
class Args(Overrides):
    """Train a teacher. The same command again resumes."""

    recipe: Annotated[str, tyro.conf.Positional] = "digits"
    """Named run; `kdgen recipes` lists them."""
    out: Path = Path("runs/teacher")
    """Run directory."""
    data: str | None = None
    """"digits", an image folder or .zip, or CIFAR-10's archive; default: what the recipe brings."""
    size: int | None = None
    """Crop to the middle square and resize to this many pixels."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "train")


def run(args: Args) -> None:
    """Train as the arguments say."""
    recipe = recipes.teacher(args.recipe)
    training = settings(recipe.training, args)
    if args.dry_run:
        _dry_run(args, recipe, training)
        return
    images = _images(args, recipe)
    print(images)
    torch.manual_seed(args.seed)  # initial weights
    student = recipe.denoiser(images).to(cli.device(args.device))
    nets = recipe.method.cast(student, student)
    config = {
        **recipe.config(),
        "training": asdict(training),
        "recipe": args.recipe,
        "data": images.digest,
    }
    updates = sum(recipe.method.updates(training.steps))
    with Run(args.out, config) as directory:
        steps = fit(recipe.method, nets, images, training, run=directory)
        for step in cli.bar(steps, updates, training.batch, "teacher"):
            if step.number == 50 or step.every(args.sample_every) or step.number == step.steps:
                picture(step.ema, args.out / "samples" / f"step-{step.number:06d}.png")
    print(f"teacher in {args.out}; next: python -m kdgen.distill --teacher {args.out}")


def settings(training: Training, args: Overrides) -> Training:
    """The recipe's settings with what the command line replaces."""
    if args.sample_every < 1:
        raise UsageError(f"--sample-every is {args.sample_every}; expected at least 1. Raise it.")
    names = ("steps", "batch", "lr", "precision", "graph", "save_every", "seed")
    changes = {n: v for n in names if (v := getattr(args, n)) is not None}
    if "steps" in changes:  # keep the shape of short runs
        changes["warmup"] = min(training.warmup, changes["steps"] // 10)
    return replace(training, **changes)


def picture(denoiser: Denoiser, path: Path, n: int = 64) -> None:
    """A grid of n samples of seed 0; classes in turn where there are classes."""
    label = torch.arange(n) % denoiser.classes if denoiser.classes else None
    grid.save_png(grid.grid(FastGenerator(denoiser, batch=n, tile=n)(n, label=label)), path)


def dry_run(
    method: Method, nets: Mapping[str, Denoiser], source: Source | None, training: Training
) -> None:
    """Print size, memory and time, measured on three steps of copies."""
    copies = {role: net.copy() for role, net in nets.items()}
    tried = probe(nets["student"], training)
    begun, stamps = time.perf_counter(), []
    for step in islice(fit(method, copies, source, tried), 4):
        float(step.loss)  # wait for the device
        stamps.append(time.perf_counter())
    steps = [b - a for a, b in pairwise(stamps)] or [stamps[0] - begun]
    pace = statistics.median(steps) * training.batch / tried.batch
    updates = sum(method.updates(training.steps))
    print(f"dry run, nothing written\n{estimate(nets, method, training, updates, pace)}")
    if tried.batch < training.batch:
        print(f"  (measured on batches of {tried.batch}, scaled)")


def probe(student: Denoiser, training: Training) -> Training:
    """The same training on batches that take seconds, where no GPU helps."""
    batch = training.batch
    if next(student.parameters()).device.type == "cpu" and isinstance(student.net, UNet):
        batch = min(batch, max(1, int(PROBE_FLOPS / size(student.net.facts).flops)))
    return replace(training, batch=batch, accumulate=1, save_every=10**9)


def estimate(
    nets: Mapping[str, Denoiser], method: Method, training: Training, updates: int, pace: float
) -> str:
    """What a run costs, for people."""
    student = nets["student"]
    parameters = sum(p.numel() for p in student.parameters())
    trained = [method.trained(phase) for phase in method.phases]
    weights = _weights(nets, method.roles)
    learning = _weights(nets, {role for roles in trained for role in roles})
    averaged = parameters if training.ema.kind != "none" else 0
    # float32; two Adam moments of what is trained, the gradients of one phase at a time
    gradients = max(_weights(nets, roles) for roles in trained)
    states = 4 * (weights + 2 * learning + gradients + averaged) / 2**20
    saved = 4 * (3 * learning + averaged) / 2**20
    hours = updates * pace / 3600
    length = f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    device = cli.device_name(next(student.parameters()).device)
    facts = {
        "parameters": f"{parameters:,}",
        "training state": f"{states:,.0f} MiB",
        "peak memory": f"{peak_memory(next(student.parameters()).device):,.0f} MiB measured",
        "checkpoint": f"{saved:,.0f} MiB, 3 at most",
        "one step": f"{pace:.3f} s (batch {training.batch}, {training.precision}, {device})",
        f"{updates:,} steps": length,
    }
    return "\n".join(f"  {name:<18}{value}" for name, value in facts.items())


def _weights(nets: Mapping[str, Denoiser], roles: Iterable[str]) -> int:
    return sum(p.numel() for role in roles for p in nets[role].parameters())


def peak_memory(device: torch.device) -> float:
    """The most this process has held so far, in MiB: of the GPU where it computes there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def _dry_run(args: Args, recipe: recipes.Teacher, training: Training) -> None:
    """On the images given, or on grey ones of the shape that the recipe is for."""
    source: Source | None = None
    if args.data or recipe.data:
        images = _images(args, recipe)
        print(images)
        student, source = recipe.denoiser(images), images
    else:
        student = recipe.build()
        print(f"no --data: grey images {student.shape}, {student.classes or 'no'} classes")
    student = student.to(cli.device(args.device))
    nets = recipe.method.cast(student, student)
    dry_run(recipe.method, nets, source or Blank(student, recipe.method.data), training)


def _images(args: Args, recipe: recipes.Teacher) -> Images:
    spec = args.data or recipe.data
    if spec is None:
        raise UsageError(
            f"train: recipe {args.recipe} brings no images; expected --data. "
            "Pass a folder, .zip or CIFAR-10 archive."
        )
    return data.load(spec, size=args.size)


class Blank:
    """Grey images, or pairs of them, for timing a step before there are any."""

    def __init__(self, student: Denoiser, kind: str) -> None:
        self.kind, self.shape, self.classes = kind, student.shape, student.classes

    def __len__(self) -> int:
        return 1_000_000

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x0 = torch.zeros(len(index), *self.shape)
        label = torch.zeros(len(index), dtype=torch.int64) if self.classes else None
        return (x0, x0, label) if self.kind == "pairs" else (x0, label)


if __name__ == "__main__":
    main()
