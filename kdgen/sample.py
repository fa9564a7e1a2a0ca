"""`python -m kdgen.sample`: make images.

Examples:
  python -m kdgen.sample --fast
  python -m kdgen.sample --fast --n 50000 --out samples.npz --checkpoint runs/student
  python -m kdgen.sample --n 64 --label 3 --seed 7 --out threes.png
  python -m kdgen.sample --fast --explain --checkpoint runs/student
  python -m kdgen.sample --fast --accuracy bf16 --checkpoint runs/student

Without --checkpoint the bundled one-step digits student is used. The images follow from --seed
alone; --batch only changes the speed. docs/fast.md says what --fast does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from kdgen import checkpoint, cli
from kdgen.background import Background
from kdgen.denoiser import Denoiser
from kdgen.errors import UsageError
from kdgen.fast import FastGenerator, Generator, generator
from kdgen.writers import Writer, writer

BUNDLED = Path(__file__).parent / "assets" / "digits-student"


@dataclass(frozen=True)
class Args:
    """Make images with a model. Image k of a seed is the same whatever the batch."""

    n: int = 64
    """Number of images."""
    fast: bool = False
    """Folded network, fused steps, CUDA graphs; the same images within one grey level."""
    explain: bool = False
    """With --fast: say what runs, and what falls back and why; make nothing."""
    seed: int = 0
    """Decides the images, and their classes unless --label is given."""
    batch: int | None = None
    """Images per batch; fewer when memory runs out. Default: 256 on a CPU, a multiple of its
    processors on a GPU."""
    out: Path = Path("samples.png")
    """.png (a grid), .npz (arr_0 uint8 NHWC), .zip (EDM layout), or a folder (a PNG each)."""
    checkpoint: Path | None = None
    """Run directory or checkpoint; default: the bundled student."""
    label: int | None = None
    """One class for all images; default: drawn from the seed."""
    steps: int | None = None
    """Steps of the sampler; default: the model's own."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network; noise and the final step stay float32."""
    engine: Literal["auto", "native", "torch"] = "auto"
    """With --fast on a CPU: who runs the network. native insists on the compiled engine (exit code
    8 where it cannot), auto lets torch step in."""
    accuracy: Literal["exact", "fp32", "bf16", "fastest"] | None = None
    """Of the compiled engine; default: that of --dtype. docs/engine.md says what each bounds."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    require_kernels: bool = False
    """A fast kernel that is missing or cannot be compiled is an error, exit code 8."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "sample")


def run(args: Args) -> None:
    """Sample as the arguments say."""
    if args.n < 1:
        raise UsageError(f"sample: --n is {args.n}; expected at least 1. Ask for one or more.")
    device = cli.device(args.device)
    model = load(args.checkpoint, args.steps).to(device)
    dtype = getattr(torch, cli.DTYPES[args.dtype])
    _check_engine(args)
    make = generator(
        model,
        fast=args.fast,
        seed=args.seed,
        batch=args.batch,
        dtype=dtype,
        steps=args.steps,
        engine=args.engine,
        accuracy=args.accuracy,
    )
    labels = make.labels(args.n, label=args.label)  # refuses a bad one before anything is written
    if args.explain:
        print(explanation(make))
        return
    with cli.terminable("sample"):
        target = Background(writer(args.out, model.classes, args.n))
        try:
            make.warm_up(args.n, labels)
            seconds = _write(make, args.n, labels, target)
            where = target.close()
        except BaseException:
            target.abort()
            raise
    print(summary(make, model, args, seconds, device, f"{written(target)} -> {where}"))


def _check_engine(args: Args) -> None:
    if not args.fast and (args.engine != "auto" or args.accuracy is not None):
        raise UsageError(
            f"--engine {args.engine}, --accuracy {args.accuracy}: only --fast has an engine; "
            "expected --fast too. Add it."
        )


def explanation(make: Generator) -> str:
    """What --explain prints."""
    if not isinstance(make, FastGenerator):
        raise UsageError("--explain: says what --fast does; expected --fast too. Add it.")
    return make.explain()


def load(path: Path | None, steps: int | None) -> Denoiser:
    """The model at `path`, or the bundled one; UsageError for steps it was not trained to take."""
    model = checkpoint.load(path or BUNDLED)
    count = len(model.sampling.times) if model.sampling.sampler == "few_step" else 1
    fixed = model.parameterisation == "residual" or model.sampling.sampler == "few_step"
    if fixed and steps not in (None, count):
        raise UsageError(
            f"--steps is {steps}; expected {count}: this student was trained for "
            f"{'one step' if count == 1 else f'{count} steps'}. Leave it out."
        )
    return model


def _write(make: Generator, n: int, labels: torch.Tensor | None, target: Writer) -> float:
    """Seconds spent generating; writing is not counted."""
    seconds, done = 0.0, 0
    batches = make.batches(n, label=labels)
    classes = None if labels is None else labels.cpu()
    with tqdm(total=n, desc="sample", unit="image", delay=2, leave=False) as line:
        while done < n:
            begun = time.perf_counter()
            images = next(batches)
            seconds += time.perf_counter() - begun
            target.add(images, None if classes is None else classes[done : done + len(images)])
            done += len(images)
            line.update(len(images))
    return seconds


def written(target: Background) -> str:
    """The writer's time, which ran beside the generator's."""
    stalled = f", {target.waited:.2f} s of it waited for" if target.waited > 0.01 else ""
    return f"I/O {target.busy:.2f} s{stalled}"


def summary(
    make: Generator, model: Denoiser, args: Args, seconds: float, device: torch.device, end: str
) -> str:
    """The line that says what was measured."""
    c, h, w = model.shape
    return (
        f"{args.n:,} images {h}x{w}x{c} · NFE {make.nfe or 'adaptive'} · {seconds:.3f} s · "
        f"{args.n / seconds:,.0f} images/s · {cli.device_name(device)} · {args.dtype} · "
        f"batch {make.batch}{' · fast' if args.fast else ''} · torch {torch.__version__} · {end}"
    )


if __name__ == "__main__":
    main()
