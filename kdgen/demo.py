"""`python -m kdgen.demo`: a diffusion model of handwritten digits becomes a one-step generator.

Example:
  python -m kdgen.demo --out runs/demo

Runs the digits recipes of train and distill, measures both models, and writes OUT/report.html.
The same command again resumes, or writes the report anew.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdgen import checkpoint, cli, data, distill, grid, metrics, report, train
from kdgen.contest import contest, speeds
from kdgen.demo_page import SHOWN, Page


@dataclass(frozen=True)
class Args:
    """Train a teacher on handwritten digits, distil it to one step, measure, and report."""

    out: Path = Path("runs/demo")
    """Directory of both runs and the report."""
    seed: int = 0
    """Decides everything that is random."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "demo")


def run(args: Args) -> None:
    """Train, distil, measure, report."""
    begun = time.perf_counter()
    teacher_at, student_at = args.out / "teacher", args.out / "student"
    train.run(train.Args(recipe="digits", out=teacher_at, seed=args.seed, device=args.device))
    distill.run(
        distill.Args(teacher=teacher_at, out=student_at, seed=args.seed, device=args.device)
    )
    device = cli.device(args.device)
    teacher, student = (checkpoint.load(p).to(device) for p in (teacher_at, student_at))
    images = data.load("digits")
    many = teacher.sampling.steps
    print("measuring")
    all_three = [
        contest(f"teacher, {many} steps", teacher, many, images, args.seed),
        contest("teacher, 1 step", teacher, 1, images, args.seed),
        contest("student, 1 step", student, 1, images, args.seed),
    ]
    agreement = metrics.agreement(all_three[2].images, all_three[0].images, images.labels)
    pace = speeds(all_three[0], all_three[2], args.seed)
    seconds = time.perf_counter() - begun
    page = Page(args.out, all_three, agreement, pace, device, seconds)
    report.write(page.build(), args.out / "report.html")
    pictures = {c.name: c.images[:SHOWN] for c in (all_three[0], all_three[2])}
    grid.save_png(grid.side_by_side(pictures), args.out / "teacher-and-student.png")
    print(page.essence())
    print(f"report: {args.out / 'report.html'}")


if __name__ == "__main__":
    main()
