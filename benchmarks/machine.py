"""What the figures were measured on; and waiting for it to finish."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import kdgen

ROOT = Path(__file__).parents[1]


def synchronise(device: torch.device) -> None:
    """Return when everything launched on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def devices(wanted: str) -> list[torch.device]:
    """ "auto" is the GPU where there is one, else the CPU; "all" is both."""
    gpu = torch.cuda.is_available()
    if wanted == "cuda" and not gpu:
        raise ValueError(
            "benchmarks: --device is cuda, but torch sees no GPU; expected one. Use --device cpu."
        )
    names = {
        "auto": ["cuda" if gpu else "cpu"],
        "all": ["cpu", "cuda"] if gpu else ["cpu"],
    }
    return [torch.device(name) for name in names.get(wanted, [wanted])]


@cache
def name(device: torch.device) -> str:
    """As people call it: "NVIDIA H200", "AMD EPYC, 2 threads, avx512bf16"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    parts = [_cpu_model(), f"{threads} thread{'s' * (threads > 1)}"]
    return ", ".join([*parts, isa] if (isa := native()["isa"]) else parts)


def slug(device: torch.device) -> str:
    """`name` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name(device).lower()).strip("-")


def last_cache(device: torch.device) -> int:
    """Bytes of the cache nearest to memory; 32 MiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [int(p.read_text().strip().removesuffix("K")) << 10 for p in found]
    return max(sizes, default=32 << 20)


def facts() -> dict[str, Any]:
    """JSON-able, for the head of every result."""
    return {
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "last_cache": last_cache(torch.device("cpu")),
        },
        "gpu": gpu(),
        "native": native(),
        "versions": {
            "kdgen": kdgen.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            **{p: _version(p) for p in ("triton", "numpy", "pytest-benchmark")},
        },
        "commit": commit(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if _shapes_speed(k)},
    }


def steady_memory() -> bool:
    """Whether glibc keeps freed memory; else large outputs may cost a page fault every 4 KiB."""
    return {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} <= set(os.environ)


def native() -> dict[str, Any]:
    """The compiled part: version and instruction set, or why it is missing."""
    try:
        from kdgen import _native
    except ImportError as error:
        return {"isa": "", "missing": str(error)}
    return {"isa": _native.isa(), "version": _native.version, "openmp": _native.openmp}


def gpu() -> dict[str, Any]:
    """What the driver says about the first GPU, now; {"missing": why} where it says nothing."""
    try:
        import pynvml
    except ImportError:
        return {"missing": "nvidia-ml-py is not installed"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"missing": str(error)}
    try:
        return _describe(pynvml, pynvml.nvmlDeviceGetHandleByIndex(0))
    except pynvml.NVMLError as error:
        return {"missing": str(error)}
    finally:
        pynvml.nvmlShutdown()


def _describe(nv: Any, handle: Any) -> dict[str, Any]:
    """Facts one by one: virtual and partitioned GPUs refuse some of them."""
    questions: dict[str, Callable[[], Any]] = {
        "name": lambda: _text(nv.nvmlDeviceGetName(handle)),
        "driver": lambda: _text(nv.nvmlSystemGetDriverVersion()),
        "memory": lambda: nv.nvmlDeviceGetMemoryInfo(handle).total,
        "sm_clock_mhz": lambda: nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM),
        "sm_clock_max_mhz": lambda: nv.nvmlDeviceGetMaxClockInfo(handle, nv.NVML_CLOCK_SM),
        "memory_clock_max_mhz": lambda: nv.nvmlDeviceGetMaxClockInfo(handle, nv.NVML_CLOCK_MEM),
        "power_w": lambda: nv.nvmlDeviceGetPowerUsage(handle) / 1000,
        "power_limit_w": lambda: nv.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU),
        "throttle_reasons": lambda: nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    known: dict[str, Any] = {}
    for what, ask in questions.items():
        try:
            known[what] = ask()
        except nv.NVMLError as error:
            known[what] = f"unknown ({error})"
    return known


def commit() -> str:
    """The commit checked out, "+" when files differ from it, "" outside a repository."""
    found = _git("rev-parse", "--short=12", "HEAD")
    return found + "+" if found and _git("status", "--porcelain") else found


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _shapes_speed(variable: str) -> bool:
    return variable.startswith(("MALLOC_", "OMP_", "MKL_", "KDGEN_", "TORCH_", "CUDA_VISIBLE"))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
