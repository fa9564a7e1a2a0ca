"""Joules, from the counter that the driver keeps; over windows long enough for its coarse ticks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ..machine import synchronise

WINDOW = 2.0  # seconds at least: the counter moves every 10 to 100 ms


def of(run: Callable[[], Any], device: torch.device) -> tuple[float, float] | str:
    """(joules, watts) of one `run`, averaged over a window; or why there is no answer."""
    if device.type != "cuda":
        return "no GPU"
    try:
        import pynvml as nv
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        nv.nvmlInit()
        handle = nv.nvmlDeviceGetHandleByIndex(device.index or 0)
        return measured(run, lambda: float(nv.nvmlDeviceGetTotalEnergyConsumption(handle)), device)
    except nv.NVMLError as error:
        return str(error)


def measured(
    run: Callable[[], Any], counter: Callable[[], float], device: torch.device
) -> tuple[float, float]:
    """As `of`; `counter` gives millijoules that only grow."""
    synchronise(device)
    before, start, runs = counter(), time.perf_counter(), 0
    while time.perf_counter() - start < WINDOW:
        run()
        synchronise(device)
        runs += 1
    spent = time.perf_counter() - start
    joules = (counter() - before) * 1e-3
    return joules / runs, joules / spent
