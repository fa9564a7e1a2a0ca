"""`python -m kdgen.compare`: one teacher, all methods, and one budget where it is given.

Examples:
  python -m kdgen.compare --out runs/compare
  python -m kdgen.compare --teacher runs/digits --methods digits-sid digits-progressive --seeds 3
  python -m kdgen.compare --teacher runs/digits --evaluations 500000

Trains the family's teacher first where none is given. Writes OUT/compare.html, .json, .md and .png;
the same command again resumes, and repeats nothing that is finished.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kdgen import (
    budget,
    checkpoint,
    cli,
    data,
    durable,
    evaluate,
    metrics,
    recipes,
    report,
    samplers,
    sidebyside,
    train,
)
from kdgen.compare_page import Comparison, Page
from kdgen.contest import interleaved
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import DataError, UsageError
from kdgen.fast import generator
from kdgen.recipes import Stage
from kdgen.tournament import Course, Judge, Record, play, shorter

SHOWN = 32  # images in the report's grids


@dataclass(frozen=True)
class Args:
    """Distil one teacher by every method and measure them side by side; each recipe spends what it
    says, unless --evaluations or --minutes gives all the same."""

    teacher: Path | None = None
    """Run directory or checkpoint; default: the family's own teacher, trained into OUT/teacher."""
    out: Path = Path("runs/compare")
    """Directory of all runs and the report."""
    family: str = "digits"
    """Recipes that begin with this, and their teacher."""
    methods: tuple[str, ...] = ()
    """Recipes to compare; default: all of the family."""
    data: str | None = None
    """Real images to learn from and to compare with; default: what the family brings."""
    size: int | None = None
    """Crop to the middle square and resize to this many pixels."""
    evaluations: int | None = None
    """Network evaluations that each method may spend; default: each recipe's own."""
    minutes: float | None = None
    """The same in minutes, converted by a short trial of every method."""
    n: int | None = None
    """Images to compare on each side; default: as many as there are real ones, at most 10,000."""
    seeds: int = 1
    """How many times, with seeds SEED, SEED + 1, …: other pairs, students and samples."""
    seed: int = 0
    """The first one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Methods at once, each with its share of the cores; default: one a core on a CPU, one on a
    GPU."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "compare")


def run(args: Args) -> None:
    """Compare as the arguments say."""
    begun = time.perf_counter()
    names = _names(args)
    _check(args)
    images = data.load(_data(args), size=args.size)
    if images.labels is None:
        raise DataError(
            f"{images.name}: has no classes; expected some, for the classifier whose features are "
            "compared. Bring labelled images."
        )
    n = evaluate.count(args.n, images)
    teacher = _given(args, images)
    evaluate.check(teacher, images)
    if teacher.sampling.sampler == "rk45":
        raise UsageError(
            "compare: the teacher is sampled with 'rk45', whose evaluations vary; expected "
            "a sampler of fixed cost. Save it with another `sampling`."
        )
    # Before anything is trained: what does not suit, or cannot be paid for, is refused now.
    plans = {name: _plan(name, args, teacher, images) for name in names}
    if args.teacher is None:
        teacher = _trained(args)
    classifier = metrics.classifier_for(images, args.out / "classifier.safetensors")
    judges = [Judge(images, classifier, args.seed + k, n) for k in range(args.seeds)]
    records = _played(args, plans, teacher, judges)
    comparison = _gather(args, teacher, records, judges)
    page = Page(comparison, time.perf_counter() - begun)
    page.write(args.out)
    report.write(page.build(), args.out / "compare.html")
    print(page.markdown())
    print(f"report: {args.out / 'compare.html'}")


def _played(
    args: Args, plans: dict[str, tuple[Stage, ...]], teacher: Denoiser, judges: Sequence[Judge]
) -> list[Record]:
    """Every method with every seed; the dearest begin, so that no worker ends long after others."""
    dear = {
        name: budget.evaluations(stages, budget.prices(stages, teacher))
        for name, stages in plans.items()
    }
    jobs = [(judge, row) for judge in judges for row in _courses(args, plans, judge.seed)]
    jobs.sort(key=lambda job: sum(dear[course.name] for course in job[1]), reverse=True)
    workers = args.workers or sidebyside.usual(cli.device(args.device))
    rows = sidebyside.run([partial(_row, row, teacher, judge) for judge, row in jobs], workers)
    found = {(r.seed, r.method): r for records in rows for r in records}
    return [found[judge.seed, name] for judge in judges for name in plans]


def _courses(args: Args, plans: dict[str, tuple[Stage, ...]], seed: int) -> list[list[Course]]:
    """Of a seed; in a row those that begin with the stages of the first, which are done once."""
    root = args.out / f"seed-{seed}"
    courses = [Course(n, budget.seeded(stages, seed), root / n) for n, stages in plans.items()]
    firsts = [c for c in courses if not any(other.leads_to(c) for other in courses)]
    rows = {first.name: [first] for first in firsts}
    for course in courses:
        first = next((f for f in firsts if f.leads_to(course)), None)
        if first is not None:
            own = course.place(1).folder.exists()  # begun by itself, in an earlier run
            rows[first.name].append(course if own else replace(course, begun=first))
    return list(rows.values())


def _row(courses: Sequence[Course], teacher: Denoiser, judge: Judge) -> list[Record]:
    return [play(course, teacher, judge) for course in courses]


def _names(args: Args) -> list[str]:
    """The recipes to compare."""
    family = [n for n in recipes.STUDENTS if n.startswith(f"{args.family}-")]
    if not family:
        known = ", ".join(t for t in recipes.TEACHERS if "-" not in t)
        raise UsageError(
            f"compare: no recipes of family {args.family!r}; expected {known}. Pick one."
        )
    for name in args.methods:
        if name not in recipes.STUDENTS:
            near = difflib.get_close_matches(name, recipes.STUDENTS, n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}?" if near else "Pick some."
            raise UsageError(
                f"compare: unknown method {name!r}; expected {', '.join(family)}. {hint}"
            )
    return list(dict.fromkeys(args.methods)) or family


def _check(args: Args) -> None:
    if args.evaluations is not None and args.minutes is not None:
        raise UsageError(
            "compare: --evaluations and --minutes are both given; expected one. Drop one."
        )
    if args.seeds < 1 or args.seed < 0:
        raise UsageError(
            f"compare: --seeds is {args.seeds}, --seed {args.seed}; expected at least 1, at least "
            "0. Correct them."
        )
    if args.workers is not None and args.workers < 1:
        raise UsageError(
            f"compare: --workers is {args.workers}; expected at least 1. Leave it out."
        )
    if (args.minutes or 1) <= 0 or (args.evaluations or 1) <= 0:
        raise UsageError("compare: the budget is not above 0; expected more. Raise it.")


def _data(args: Args) -> str:
    spec = (
        args.data or recipes.teacher(args.family).data
        if args.family in recipes.TEACHERS
        else args.data
    )
    if spec is None:
        raise UsageError(
            f"compare: family {args.family} brings no images; expected --data. Pass a folder, .zip "
            "or CIFAR-10 archive."
        )
    return spec


def _given(args: Args, images: Images) -> Denoiser:
    """The teacher given, or the family's, still to be trained."""
    if args.teacher is not None:
        return checkpoint.load(args.teacher).to(cli.device(args.device))
    if args.family not in recipes.TEACHERS:
        raise UsageError(
            f"compare: family {args.family!r} has no teacher of its own; expected --teacher. Pass "
            "one."
        )
    return recipes.teacher(args.family).denoiser(images).to(cli.device(args.device)).eval()


def _trained(args: Args) -> Denoiser:
    """The family's own teacher, trained now or before."""
    path = args.out / "teacher"
    run = train.Args(recipe=args.family, out=path, data=args.data, size=args.size, seed=args.seed)
    train.run(replace(run, device=args.device))
    return checkpoint.load(path).to(cli.device(args.device))


def _plan(name: str, args: Args, teacher: Denoiser, images: Images) -> tuple[Stage, ...]:
    """The stages of a recipe within the budget. Refuses a teacher that does not suit a method."""
    stages = recipes.student(name).stages
    prices = budget.prices(stages, teacher)
    wanted = args.evaluations
    if args.minutes is not None:
        wanted = _paid_by(args.minutes, args.out / "minutes.json", name)
        if wanted is None:
            wanted = round(args.minutes * 60 * budget.pace(stages, prices, teacher, images))
            _remember(wanted, args.minutes, args.out / "minutes.json", name)
    return stages if wanted is None else budget.fitted(stages, prices, wanted, name)


def _paid_by(minutes: float, path: Path, name: str) -> int | None:
    """Evaluations that an earlier run of this command found these minutes to pay for."""
    known = json.loads(path.read_bytes()) if path.exists() else {}
    return known.get(f"{name} {minutes:g}")


def _remember(evaluations: int, minutes: float, path: Path, name: str) -> None:
    """So that the same command goes on with the same budget."""
    known = json.loads(path.read_bytes()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    known[f"{name} {minutes:g}"] = evaluations
    durable.replace_file(path, json.dumps(known, indent=1).encode())


def _gather(
    args: Args, teacher: Denoiser, records: list[Record], judges: Sequence[Judge]
) -> Comparison:
    """What the report needs: the teacher's own numbers, speeds and pictures of the first seed."""
    first, device = judges[0], cli.device(args.device)
    chains = {samplers.evaluations(teacher.schedule, s): s for s in shorter(teacher)}
    models = {
        r.method: checkpoint.load(args.out / f"seed-{r.seed}" / r.method).to(device)
        for r in records
        if r.seed == args.seed
    }
    makers = {n: generator(m, seed=args.seed) for n, m in {"teacher": teacher, **models}.items()}
    known = first.images.labels
    label = known[:SHOWN] if teacher.classes and known is not None else None
    return Comparison(
        records=records,
        teacher={n: [j.distance(teacher, how) for j in judges] for n, how in chains.items()},
        full=first.measure(teacher),
        teacher_straightness=first.straightness(teacher),
        speeds=interleaved(makers),
        pictures={n: make(SHOWN, label=label) for n, make in makers.items()},
        nfe={n: make.nfe or 0 for n, make in makers.items()},
        device=cli.device_name(device),
        budget=_budget(args),
    )


def _budget(args: Args) -> str:
    if args.evaluations is not None:
        return f"{args.evaluations:,} evaluations each"
    if args.minutes is not None:
        return f"{args.minutes:g} minutes each"
    return "each recipe's own"


if __name__ == "__main__":
    main()
