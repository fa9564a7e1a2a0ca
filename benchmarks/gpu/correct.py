"""No figure of a kernel that is wrong: the GPU tests, then the memory checker over the kernels."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from ..machine import ROOT
from .bench import Bench

# What compute-sanitizer sees: slow under it, so few tests, but every kernel.
SANITISED = "accurate_as_the_reference and cuda"
KEPT = 20  # lines of a failing run
PROBE = 60.0  # seconds for the checker to show that it works


def run(bench: Bench) -> None:
    where = ["tests/kernels/test_house.py"] if bench.tiny else ["-m", "gpu", "tests"]
    checker = "" if bench.tiny else sanitizer()
    found = _pytest([], where, bench.left * (0.65 if checker else 1.0))
    bench.record.note("correct", tests=found)
    print(f"  tests: {found['summary']}", flush=True)
    if not checker:
        bench.record.note("correct", sanitizer="compute-sanitizer is not there, or cannot run")
        return
    command = [checker, "--error-exitcode", "86", "--target-processes", "all"]
    checked = _pytest(command, ["tests/kernels", "-m", "gpu", "-k", SANITISED], bench.left)
    bench.record.note("correct", sanitizer=checked)
    print(f"  compute-sanitizer: {checked['summary']}", flush=True)


def sanitizer() -> str:
    """Where it is; "" too where it cannot look into this GPU, as in some virtual machines."""
    found = shutil.which("compute-sanitizer") or ""
    if not found:
        return ""
    once = [
        found,
        "--error-exitcode",
        "86",
        sys.executable,
        "-c",
        "import torch; torch.ones(1).cuda()",
    ]
    try:
        done = subprocess.run(once, cwd=ROOT, capture_output=True, timeout=PROBE, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return found if done.returncode == 0 else ""


def _pytest(before: Sequence[str], where: Sequence[str], seconds: float) -> dict[str, object]:
    command = [*before, sys.executable, "-m", "pytest", *where, "-q", "--maxfail=25", "-rf"]
    if not before and importlib.util.find_spec("xdist"):  # most of it is waiting for compilers
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    command.append("--continue-on-collection-errors")  # of tests whose packages are not there
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(1.0, seconds),
            # Its own blocks hide from the checker what lies between the tensors inside them.
            env=os.environ | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if before else {}),
        )
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return {"summary": f"stopped after {seconds:.0f} s", "tail": text.splitlines()[-KEPT:]}
    return summary(done.stdout + done.stderr, done.returncode)


def summary(output: str, code: int) -> dict[str, object]:
    """The runner's closing line, and what failed."""
    lines = output.splitlines()
    closing = [line for line in lines if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    failed = [line.split(" ")[1] for line in lines if line.startswith("FAILED ")]
    found: dict[str, object] = {"summary": closing[-1].strip("= ") if closing else f"exit {code}"}
    found["exit"] = code
    if code:
        found |= {"failed": failed, "tail": lines[-KEPT:]}
    return found
