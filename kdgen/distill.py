"""`python -m kdgen.distill`: distil a teacher into a one-step student.

Examples:
  python -m kdgen.distill --teacher runs/digits --out runs/digits-1step
  python -m kdgen.distill cifar10-denoising-student --teacher runs/cifar10 --out runs/cifar10-1step
  python -m kdgen.distill --teacher runs/digits --online --dry-run

The teacher's pairs are made once, in OUT/pairs; the same command again resumes, in either part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from kdgen import checkpoint, cli, pairs, recipes
from kdgen.denoiser import Denoiser
from kdgen.pairs import PairStore
from kdgen.run import Run
from kdgen.train import Overrides, dry_run, picture, settings
from kdgen.training import fit


@dataclass(frozen=True)
class Args(Overrides):
    """Distil a teacher into a one-step Denoising Student. The same command again resumes."""

    recipe: Annotated[str, tyro.conf.Positional] = "digits-denoising-student"
    """Named run; `kdgen recipes` lists them."""
    teacher: Path = Path("runs/teacher")
    """Run directory or checkpoint of the teacher."""
    out: Path = Path("runs/student")
    """Run directory."""
    pairs: int | None = None
    """Teacher pairs to make; default: the recipe's."""
    teacher_steps: int | None = None
    """Steps of the teacher's sampler; default: the recipe's."""
    online: bool = False
    """Make the teacher's images as training goes instead of storing pairs."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "distill")


def run(args: Args) -> None:
    """Distil as the arguments say."""
    recipe = _recipe(args)
    teacher = checkpoint.load(args.teacher).to(cli.device(args.device))
    nets = {"student": recipe.method.student(teacher)}
    if recipe.method.online:
        nets["teacher"] = teacher
    if args.dry_run:
        _dry_run(recipe, teacher, nets)
        return
    wanted = plan(recipe, teacher)
    config = {**recipe.config(), "recipe": args.recipe, "pairs": asdict(wanted)}
    training = recipe.training
    with Run(args.out, config) as directory:
        store = (
            None
            if recipe.method.online
            else make_pairs(args.out / "pairs", teacher, wanted, directory)
        )
        steps = fit(recipe.method, nets, store, training, run=directory)
        for step in cli.bar(steps, training.steps, training.batch, "student"):
            if step.every(args.sample_every) or step.number == step.steps:
                picture(step.ema, args.out / "samples" / f"step-{step.number:06d}.png")
    print(f"student in {args.out}; next: python -m kdgen.sample --fast --checkpoint {args.out}")


def plan(recipe: recipes.Student, teacher: Denoiser) -> pairs.Plan:
    """The pairs a recipe asks of this teacher."""
    return pairs.plan(teacher, recipe.pairs, sampling=recipe.sampling, seed=recipe.training.seed)


def make_pairs(path: Path, teacher: Denoiser, wanted: pairs.Plan, run: Run) -> PairStore:
    """Fill the store at `path` with a progress line, obeying signals, and open it."""
    with cli.line(wanted.count, "pairs", "pair") as line:
        for done in pairs.generate(path, teacher, wanted):
            line.update(done - line.n)
            run.check()
    return PairStore(path)


def _recipe(args: Args) -> recipes.Student:
    recipe = recipes.student(args.recipe)
    sampling = recipe.sampling
    if args.teacher_steps is not None:
        sampling = replace(sampling, steps=args.teacher_steps)
    count = recipe.pairs if args.pairs is None else args.pairs
    method = replace(recipe.method, online=args.online, sampling=sampling)
    return replace(
        recipe,
        method=method,
        training=settings(recipe.training, args),
        pairs=count,
        sampling=sampling,
    )


def _dry_run(recipe: recipes.Student, teacher: Denoiser, nets: dict[str, Denoiser]) -> None:
    """Time the teacher on one batch of pairs, if any are wanted, and three steps of training."""
    if recipe.method.online:
        dry_run(recipe.method, nets, None, recipe.training)
        return
    wanted = plan(recipe, teacher)
    begun = time.perf_counter()
    index = wanted.indices(0)[: recipe.training.batch]
    pairs.teach(teacher, wanted, index)
    rate = len(index) / (time.perf_counter() - begun)
    print(f"pairs: {wanted.count:,} at {rate:,.1f} a second: {wanted.count / rate / 60:,.1f} min")
    dry_run(recipe.method, nets, _Blank(wanted), recipe.training)


@dataclass(frozen=True)
class _Blank:
    """The pairs of a plan without their images, for timing a step before any are made."""

    wanted: pairs.Plan
    kind = "pairs"

    def __len__(self) -> int:
        return self.wanted.count

    def take(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        z = self.wanted.z(index)
        return z, z.clamp(-1, 1), self.wanted.label(index)


if __name__ == "__main__":
    main()
