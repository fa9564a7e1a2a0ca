"""The command line: stages one after the other, each a process with a deadline."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kdgen import kernels

from .. import machine, model
from ..rows import duration
from . import __doc__ as about
from . import expected, report, stages
from .bench import Bench
from .record import Record
from .stages import Stage

MINUTES = 27.0
GRACE = 20.0  # seconds that a stage may take beyond its deadline before it is stopped


@dataclass(frozen=True)
class Run:
    device: torch.device
    path: Path
    minutes: float
    stages: list[Stage]
    tiny: bool
    more: bool = False  # than what the file holds


def main(argv: Sequence[str] | None = None) -> int:
    a = _parser().parse_args(argv)
    if a.stage:  # inside a child
        bench = Bench(torch.device(a.device), Record(a.file), a.seconds, a.rehearse)
        _set_up(bench.device)
        importlib.import_module(f"benchmarks.gpu.{a.stage}").run(bench)
        if fell := kernels.fallbacks():  # then figures are not of the kernels they name
            told = {f"{op} {backend}": asdict(f) for (op, backend), f in fell.items()}
            bench.record.note(a.stage, fallbacks=told)
        return 0
    try:
        chosen = stages.chosen(a.stages)
    except ValueError as error:
        _parser().error(str(error))
    if not a.rehearse and not torch.cuda.is_available():
        print("\n".join(_intentions(chosen, a.minutes)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if a.rehearse else a.out
        device = torch.device("cpu" if a.rehearse else "cuda")
        path = folder / f"{machine.slug(device)}.json"
        more = bool(a.stages)  # a part of the plan joins what other parts have found
        return _measure(Run(device, path, a.minutes, chosen, a.rehearse, more))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all stages together")
    parser.add_argument("--stages", default="", help=f"some of {', '.join(stages.BY_NAME)}")
    parser.add_argument("--out", type=Path, default=machine.ROOT / "benchmarks" / "results")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny, nothing kept")
    for hidden in ("--stage", "--device"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600.0, help=argparse.SUPPRESS)
    return parser


def _measure(run: Run) -> int:
    """Every stage, then the table; 1 if a stage failed."""
    record = Record.start(run.path, run.device, more=run.more)
    limits = stages.deadlines(run.stages, run.minutes)
    failed = []
    for stage in run.stages:
        print(f"{stage.name}: {stage.what}", flush=True)
        if why := _child(run, stage, limits[stage.name]):
            print(f"  {stage.name} {why}", flush=True)
            failed.append(stage.name)
            record = Record(run.path)
            record.note(stage.name, failed=why)
    document = Record(run.path).document
    print("\n".join(["", *report.lines(document)]))
    if not run.tiny:
        print(f"results: {run.path}")
    return int(bool(failed))


def _child(run: Run, stage: Stage, seconds: float) -> str:
    """How it failed, or ""."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", stage.name]
    command += ["--device", str(run.device), "--file", str(run.path), "--seconds", str(seconds)]
    command += ["--rehearse"] if run.tiny else []
    try:
        done = subprocess.run(command, cwd=machine.ROOT, timeout=seconds + GRACE, check=False)
    except subprocess.TimeoutExpired:
        return f"was stopped {GRACE:.0f} s after its deadline of {seconds:.0f} s"
    return f"ended with exit code {done.returncode}" if done.returncode else ""


def _set_up(device: torch.device) -> None:
    """cuDNN searches for its fastest algorithms, for all alike; fp32 means fp32, not TF32."""
    torch.manual_seed(20_210_107)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _intentions(chosen: list[Stage], minutes: float) -> list[str]:
    """What a GPU would be asked, and what is expected of it: predictions, nothing measured."""
    limits = stages.deadlines(chosen, minutes)
    out = ["torch sees no GPU here. On a machine that has one, this command would run:"]
    out += [f"  {s.name:<13} {limits[s.name]:4.0f} s  {s.what}" for s in chosen]
    out += [
        "and write benchmarks/results/<device>.json after every figure.",
        "",
        "Predictions for one H200 in bf16 at 63 % of 790 TFLOP/s in convolutions and 82 % of "
        "4.3 TB/s elsewhere; nothing of this was measured:",
    ]
    for name in ("ddpm32", "edm32", "adm64"):
        works = model.walk(model.PRESETS[name])
        eager, ours = (expected.images(works, 1056, style=s) / 1056 for s in ("eager", "kdgen"))
        step = expected.step(works, 512)
        out.append(
            f"  {name}: 50,000 images in {duration(50_000 * ours)} (torch eager "
            f"{duration(50_000 * eager)}), a training step at batch 512 in {duration(step)}"
        )
    return [*out, "Try the code on this machine with: python -m benchmarks.gpu --rehearse"]


if __name__ == "__main__":
    sys.exit(main())
