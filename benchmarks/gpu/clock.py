"""Seconds of device work: events around replays of a captured graph, contestants in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kdgen import graph

from ..machine import last_cache, synchronise
from ..race import Timing

Call = Callable[[], Any]
LEAST = 0.05  # seconds a round lasts at least
ROUNDS = 20
PAUSE = 1.0  # seconds between groups, so that one's heat is not the next one's clock


@dataclass(frozen=True)
class Contestant:
    """`run` does the same `count` times; `captured`: without the cost of launching from Python."""

    run: Call
    count: int = 1
    captured: bool = False


@cache
def driver(device: torch.device) -> graph.Driver | None:
    """What records graphs there; None where there are none."""
    return None if graph.available(device) else graph.Cuda(device)


@contextmanager
def recordable(device: torch.device) -> Iterator[None]:
    """What runs inside may go on in a graph: autograd takes a gradient on its forward's stream."""
    side = driver(device)
    with nullcontext() if side is None else side.aside():
        yield


def captured(ring: Sequence[Call], device: torch.device) -> Contestant:
    """A contestant that replays the calls as one graph; on a CPU, or where they cannot be captured,
    one that makes them."""

    def once() -> None:
        for call in ring:
            call()

    side = driver(device)
    if side is not None:
        with suppress(graph.CaptureError):
            made = graph.capture(once, driver=side, where="benchmarks")
            return Contestant(made.replay, len(ring), captured=True)
    return Contestant(once, len(ring))


def race(
    contestants: Mapping[str, Contestant],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    least: float = LEAST,
) -> dict[str, Timing]:
    """Seconds a call for each, `rounds` rounds of at least `least` seconds, taken in turns."""
    repeats = {name: _repeats(c, device, least) for name, c in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, c in contestants.items():
            spent = elapsed(c.run, repeats[name], device)
            seconds[name].append(spent / (repeats[name] * c.count))
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def elapsed(run: Call, repeats: int, device: torch.device) -> float:
    """Seconds that `repeats` runs keep the device busy."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronise(device)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    synchronise(device)
    return float(begin.elapsed_time(end)) * 1e-3


def _repeats(c: Contestant, device: torch.device, least: float) -> int:
    for _ in range(2):
        once = elapsed(c.run, 1, device)
    return max(1, math.ceil(least / max(once, 1e-7)))


def copies(moved: float, device: torch.device, *, most: int = 32) -> int:
    """Sets of inputs, of `moved` bytes each, that no cache holds together."""
    return max(1, min(most, math.ceil(2 * last_cache(device) / max(moved, 1.0))))
