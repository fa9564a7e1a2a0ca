"""Hardware counters of the slow kernels through ncu: what they really move, and what holds them."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys

from ..machine import ROOT
from .bench import Bench

METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block_dynamic",
    "smsp__inst_executed_op_local_ld.sum",
    "smsp__inst_executed_op_local_st.sum",
)
# op, backend, which of its cases: what `python -m benchmarks.gpu.one` runs.
SLOW = (
    ("group_norm_silu", "triton", 0),
    ("group_norm_silu", "cuda", 0),
    ("group_norm_silu", "triton", 2),
    ("attention", "triton", 0),
    ("attention", "cuda", 0),
    ("bias_residual", "triton", 0),
)


def run(bench: Bench) -> None:
    tool = shutil.which("ncu")
    if not tool or bench.device.type != "cuda":
        bench.record.note("profile", missing="ncu was not found" if not tool else "no GPU")
        return
    for op, backend, case in SLOW:
        key = f"{op} {backend} {case}"
        if bench.time_for(f"profile · {key}", 15.0):
            bench.record.note("profile", **{key: _counters(tool, op, backend, case, bench.left)})


def _counters(tool: str, op: str, backend: str, case: int, seconds: float) -> object:
    # --clock-control none: the card's clocks are not ours to set
    command = [tool, "--csv", "--clock-control", "none", "--metrics", ",".join(METRICS)]
    command += [sys.executable, "-m", "benchmarks.gpu.one", op, backend, str(case)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    return table(done.stdout) or (done.stdout + done.stderr).strip().splitlines()[-3:]


def table(output: str) -> dict[str, dict[str, float]]:
    """Kernel -> metric -> value, of its last launch; {} where there is no table in the output."""
    lines = output.splitlines()
    head = next((k for k, line in enumerate(lines) if line.startswith('"ID"')), None)
    if head is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for line in csv.DictReader(io.StringIO("\n".join(lines[head:]))):
        name, metric, value = (line.get(k) for k in ("Kernel Name", "Metric Name", "Metric Value"))
        if not name or not metric or not value:
            continue
        number, unit = float(value.replace(",", "")), line.get("Metric Unit") or ""
        found.setdefault(name.split("(")[0], {})[metric] = number * UNITS.get(unit, 1.0)
    return found


UNITS = {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "usecond": 1e-6, "us": 1e-6, "ns": 1e-9}
UNITS |= {"msecond": 1e-3, "ms": 1e-3, "nsecond": 1e-9, "Kbyte/block": 1e3}
