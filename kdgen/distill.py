"""`python -m kdgen.distill`: distil a teacher into a generator of one or a few steps.

Examples:
  python -m kdgen.distill --teacher runs/digits --out runs/digits-1step
  python -m kdgen.distill digits-progressive --teacher runs/digits --out runs/progressive
  python -m kdgen.distill cifar10-sid --teacher runs/cifar10-edm --out runs/sid --dry-run

Earlier stages of a recipe, pairs and every round's student are kept in OUT; the same command again
resumes, wherever it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from kdgen import checkpoint, cli, data, pairs, recipes
from kdgen.batches import Source
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import UsageError
from kdgen.loop import Step
from kdgen.methods import Method, Nets
from kdgen.nets import UNet
from kdgen.pairs import PairStore
from kdgen.recipes import Stage
from kdgen.run import Run
from kdgen.train import Blank, Overrides, dry_run, picture, settings
from kdgen.training import fit

ROUNDS = "rounds"  # in a run directory: the students of rounds that have ended


@dataclass(frozen=True)
class Args(Overrides):
    """Distil a teacher into a one- or few-step student. The same command again resumes."""

    recipe: Annotated[str, tyro.conf.Positional] = "digits-denoising-student"
    """Named run; `kdgen recipes` lists them."""
    teacher: Path = Path("runs/teacher")
    """Run directory or checkpoint of the teacher."""
    out: Path = Path("runs/student")
    """Run directory."""
    data: str | None = None
    """Images, for methods that learn from them: as for train; default: what the recipe brings."""
    size: int | None = None
    """Crop to the middle square and resize to this many pixels."""
    pairs: int | None = None
    """Teacher pairs to make, for methods that learn from them; default: the recipe's."""
    teacher_steps: int | None = None
    """Steps of the sampler that makes the pairs; default: the recipe's."""
    online: bool = False
    """Make the teacher's images as training goes instead of storing pairs."""
    width: int | None = None
    """Channels of a smaller student's first level; default: the teacher's."""
    blocks: int | None = None
    """Residual blocks a level of a smaller student; default: the teacher's."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "distill")


def run(args: Args) -> None:
    """Distil as the arguments say."""
    recipe = recipes.student(args.recipe)
    if args.online and not any(hasattr(s.method, "online") for s in recipe.stages):
        raise UsageError(
            f"distill: recipe {args.recipe} makes no pairs as it goes; expected one that can. "
            "Leave --online out."
        )
    stages = tuple(_changed(stage, args) for stage in recipe.stages)
    models = [_teacher(args, recipe).to(cli.device(args.device))]
    images = _images(args, recipe, stages)
    torch.manual_seed(args.seed)  # initial weights of what no teacher has
    for k, stage in enumerate(stages, 1):
        teacher = tutor(stage, models)
        nets = stage.method.cast(teacher, _student(stage.method, models[-1], args, k))
        if args.dry_run:
            print(f"stage {k} of {len(stages)}: {stage.method.name}")
            _dry_run(stage, teacher, nets, images)
            models.append(nets.student)
            continue
        models.append(_distil(stage, teacher, nets, images, folder(args.out, stages, k), args))
    if not args.dry_run:
        print(f"student in {args.out}; next: kdgen sample --fast --checkpoint {args.out}")


def _distil(
    stage: Stage, teacher: Denoiser, nets: Nets, images: Images | None, out: Path, args: Args
) -> Denoiser:
    """One stage, with a grid of samples now and then; the average of its student."""
    for step in steps(stage, teacher, nets, images, out, args.recipe):
        if step.every(args.sample_every) or step.number == step.steps:
            picture(step.ema, out / "samples" / f"step-{step.number:06d}.png")
    return step.ema


def tutor(stage: Stage, models: Sequence[Denoiser]) -> Denoiser:
    """Who teaches a stage, of the run's teacher and the students of the stages before."""
    return models[-1 if stage.taught_by is None else stage.taught_by]


def folder(out: Path, stages: Sequence[Stage], k: int) -> Path:
    """The run directory of stage k, counted from 1; that of the last is `out` itself."""
    return out if k == len(stages) else out / "stages" / f"{k}-{stages[k - 1].method.name}"


def steps(
    stage: Stage, teacher: Denoiser, nets: Nets, images: Images | None, out: Path, recipe: str
) -> Iterator[Step]:
    """The steps of one stage in its run directory `out`, where its pairs and rounds are kept.

    The same call resumes; a finished stage yields its last step once more.
    """
    training = stage.training
    source: Source | None = _source(stage, images)
    config: dict[str, Any] = {
        **stage.config(),
        "recipe": recipe,
        "teacher": checkpoint.tensors_digest(teacher.state_dict()),
    }
    wanted = plan(stage, teacher)
    if wanted is not None:
        config["pairs"] = asdict(wanted)
    if isinstance(source, Images):
        config["data"] = source.digest
    rounds = list(stage.method.rounds())
    with Run(out, config) as directory:
        if wanted is not None:
            source = make_pairs(out / "pairs", teacher, wanted, directory)
        total = sum(stage.method.updates(training.steps))
        updates = fit(stage.method, nets, source, training, run=directory)
        for step in cli.bar(updates, total, training.batch, stage.method.name):
            yield step
            if len(rounds) > 1 and step.ends_round:
                keep_round(step, out)


def keep_round(step: Step, out: Path) -> None:
    """Store the student of a round that has ended, as a checkpoint of its own."""
    name = f"{step.round + 1:02d}-{step.ema.sampling.steps}-steps"
    checkpoint.save(out / ROUNDS / name, step.ema, {"method": step.method.config()})


def plan(stage: Stage, teacher: Denoiser) -> pairs.Plan | None:
    """The pairs a stage asks of this teacher; None where it learns from something else."""
    if stage.method.data != "pairs":
        return None
    seed = stage.training.seed
    return pairs.plan(teacher, stage.pairs, sampling=stage.how, seed=seed, at=stage.at)


def make_pairs(path: Path, teacher: Denoiser, wanted: pairs.Plan, run: Run) -> PairStore:
    """Fill the store at `path` with a progress line, obeying signals, and open it."""
    with cli.line(wanted.count, "pairs", "pair") as line:
        for done in pairs.generate(path, teacher, wanted):
            line.update(done - line.n)
            run.check()
    return PairStore(path)


def _source(stage: Stage, images: Images | None) -> Images | None:
    return images if stage.method.data == "images" else None


def _teacher(args: Args, recipe: recipes.Student) -> Denoiser:
    """The trained teacher; for a dry run without one, the recipe's, untrained."""
    if args.dry_run and not args.teacher.exists():
        print(f"{args.teacher}: not there; an untrained {recipe.teacher} stands in for it")
        return recipes.teacher(recipe.teacher).build().eval()
    return checkpoint.load(args.teacher)


def _images(args: Args, recipe: recipes.Student, stages: Sequence[Stage]) -> Images | None:
    if all(stage.method.data != "images" for stage in stages):
        return None
    spec = args.data or recipe.data
    if spec is None:
        if args.dry_run:
            return None
        raise UsageError(
            f"distill: recipe {args.recipe} learns from images and brings none; expected --data. "
            "Pass a folder, .zip or CIFAR-10 archive."
        )
    return data.load(spec, size=args.size)


def _student(method: Method, start: Denoiser, args: Args, stage: int) -> Denoiser:
    """The untrained student, smaller in the first stage where that is asked for."""
    wanted = {n: v for n in ("width", "blocks") if (v := getattr(args, n)) is not None}
    if wanted and stage == 1:
        if not isinstance(start.net, UNet):
            raise UsageError("distill: --width and --blocks need a U-Net. Leave them out.")
        start = start.copy(net=start.net.copy(**wanted))
    return method.student(start)


def _changed(stage: Stage, args: Args) -> Stage:
    """The recipe's stage with what the command line replaces."""
    how, method = stage.how, stage.method
    if args.teacher_steps is not None and how is not None:
        how = replace(how, steps=args.teacher_steps)
    known = {f.name for f in fields(method)}
    if args.online and "online" in known:
        changes: dict[str, Any] = {"online": True, **({"how": how} if "how" in known else {})}
        method = replace(method, **changes)
    count = stage.pairs if args.pairs is None else args.pairs
    training = settings(stage.training, args)
    return replace(stage, method=method, training=training, how=how, pairs=count)


def _dry_run(stage: Stage, teacher: Denoiser, nets: Nets, images: Images | None) -> None:
    """Time the teacher on one batch of pairs, if any are wanted, and three steps of training."""
    source: Source | None = _source(stage, images)
    wanted = plan(stage, teacher)
    if wanted is not None:
        made = pairs.Tutor(teacher, wanted)  # once, however many pairs
        begun = time.perf_counter()
        index = wanted.indices(0)[: min(stage.training.batch, 16)]
        made(index)
        rate = len(index) / (time.perf_counter() - begun)
        length = f"{wanted.count / rate / 60:,.1f} min"
        print(f"pairs: {wanted.count:,} at {rate:,.1f} a second: {length}")
        source = Blank(nets.student, "pairs")
    elif stage.method.data == "images" and source is None:
        source = Blank(nets.student, "images")
    dry_run(stage.method, nets, source, stage.training)


if __name__ == "__main__":
    main()
