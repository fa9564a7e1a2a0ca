"""Cores, memory, disk and GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from kdgen import build
from kdgen.diagnosis.finding import Finding, gigabytes

DISK, MEMORY = 2 << 30, 1 << 30  # bytes; with less free, a run may well fail


def memory() -> Finding:
    """CPU cores, and the memory that is left."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = _free_memory()
    if free is None:
        return Finding("machine", "ok", f"CPU cores: {cores}")
    text = f"CPU cores: {cores}, memory free: {gigabytes(free)}"
    if free < MEMORY:
        return Finding("machine", "note", text, "free some memory: a run may not fit")
    return Finding("machine", "ok", text)


def disk() -> Finding:
    """Room where runs would be written."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{gigabytes(free)} free in {here}"
    if free < DISK:
        return Finding("disk", "note", text, "make room: a run may not fit")
    return Finding("disk", "ok", text)


def gpu() -> Finding:
    """What torch can use."""
    import torch

    if torch.cuda.is_available():
        found = [_describe(index) for index in range(torch.cuda.device_count())]
        return Finding("gpu", "ok", "; ".join(found))
    if torch.version.cuda is None:
        return Finding("gpu", "note", "none: this torch is a CPU build")
    return Finding("gpu", "note", f"none that torch (CUDA {torch.version.cuda}) can use")


def driver() -> Finding:
    """What the driver says through nvidia-ml-py; torch may not be able to use all of it."""
    try:
        import pynvml
    except ImportError:
        return Finding("driver", "note", "not asked: nvidia-ml-py is not installed (extra bench)")
    try:
        pynvml.nvmlInit()
        version, count = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Finding("driver", "note", f"none from NVIDIA ({error})")
    return _driver(version, count)


def toolkit() -> Finding:
    """The CUDA compiler."""
    nvcc = build.nvcc()
    if not nvcc:
        return Finding("toolkit", "note", "no nvcc; only the CUDA kernels are built with it")
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release ([\d.]+)", done.stdout)
    return Finding("toolkit", "ok", f"nvcc {release[1] if release else '?'}, {nvcc}")


def _describe(index: int) -> str:
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    size = f"memory free: {gigabytes(free)} of {gigabytes(total)}"
    return f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}, {size}"


def _driver(version: str, count: int) -> Finding:
    import torch

    text = f"NVIDIA {version}, GPUs: {count}"
    if count and not torch.cuda.is_available():
        fix = "install a torch for CUDA: https://pytorch.org/get-started"
        return Finding("driver", "note", f"{text}, which torch cannot use", fix)
    return Finding("driver", "ok", text)


def _free_memory() -> int | None:
    """Bytes this process can still have, on Linux: of the machine, and of its control group."""
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        free = int(text.partition("MemAvailable:")[2].split()[0]) << 10
        with suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            limit = int((group / "memory.max").read_text())
            free = min(free, limit - int((group / "memory.current").read_text()))
        return free
    return None
