"""Runs side by side: a small network keeps one core busy, not several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import torch

T = TypeVar("T")


def usual(device: torch.device) -> int:
    """Processes worth having: one a core on a CPU, one on a GPU."""
    return (os.cpu_count() or 1) if device.type == "cpu" else 1


def run(jobs: Sequence[Callable[[], T]], workers: int) -> list[T]:
    """What the jobs return, in their order; at most `workers` at once, each in a process of its own
    with its share of the cores, begun in the order given. One worker is this process.

    Jobs must be picklable. The first error ends the rest that has not begun, and is raised.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        return [job() for job in jobs]
    threads = max(1, torch.get_num_threads() // workers)
    # A forked process would inherit torch's threads half alive.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        futures = [pool.submit(job) for job in jobs]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
