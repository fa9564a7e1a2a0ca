"""Time two implementations in turns, so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median, quantiles
from typing import Any

import torch

from . import machine

ROUND_SECONDS = 0.01  # a round repeats short calls until it lasts this long
FEWEST, MOST = 5, 40  # rounds
WARM_CALLS, WARM_SECONDS = 3, 2.0  # untimed, whichever comes first

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value a round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.rounds)

    @property
    def best(self) -> float:
        return min(self.rounds)

    @property
    def middle(self) -> tuple[float, float]:
        """Between which three fifths of the rounds lie."""
        if len(self.rounds) < 2:
            return self.best, self.best
        cuts = quantiles(self.rounds, n=5, method="inclusive")
        return cuts[0], cuts[-1]


@dataclass(frozen=True)
class Race:
    ours: Timing
    peer: Timing | None
    calls: int  # in a round

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer: medians."""
        return None if self.peer is None else self.peer.median / self.ours.median

    @property
    def best_ratio(self) -> float | None:
        """The same of the fastest rounds, which other work on the machine disturbs least."""
        return None if self.peer is None else self.peer.best / self.ours.best


def race(
    benchmark: Any,
    device: torch.device,
    ours: Sequence[Call],
    peer: Sequence[Call] = (),
    *,
    budget: float,
) -> Race:
    """Rounds of `peer` and `ours` in turns, within about `budget` seconds.

    Each is a ring of calls that do the same on other copies of their inputs. pytest-benchmark times
    our rounds (`calls` calls each), the peer's run between them. Under --benchmark-disable
    everything runs once.
    """
    contestants = [_Contestant(device, calls) for calls in (ours, peer) if calls]
    calls, rounds = (1, 1) if benchmark.disabled else _plan(contestants, budget)
    mine, *others = contestants

    def before() -> None:
        for other in others:
            other.round(calls)

    benchmark.pedantic(mine.round, args=(calls,), setup=before, rounds=rounds, iterations=1)
    benchmark.extra_info["calls"] = calls
    return Race(mine.timing, others[0].timing if others else None, calls)


class _Contestant:
    def __init__(self, device: torch.device, calls: Sequence[Call]) -> None:
        self._device, self._calls, self._seconds = device, cycle(calls), list[float]()

    @property
    def timing(self) -> Timing:
        return Timing(tuple(self._seconds))

    def round(self, calls: int) -> None:
        """Everything launched is finished when the clock stops."""
        machine.synchronise(self._device)
        start = time.perf_counter()
        for _ in range(calls):
            next(self._calls)()
        machine.synchronise(self._device)
        self._seconds.append((time.perf_counter() - start) / calls)

    def warm_up(self) -> float:
        """Seconds a call, after the calls that compile, plan and fill caches."""
        while len(self._seconds) < WARM_CALLS and sum(self._seconds) < WARM_SECONDS:
            self.round(1)
        once = self._seconds[-1]
        self._seconds.clear()
        return once


def _plan(contestants: Sequence[_Contestant], budget: float) -> tuple[int, int]:
    """Calls in a round, and rounds."""
    seconds = [c.warm_up() for c in contestants]
    calls = max(1, min(10_000, round(ROUND_SECONDS / min(seconds))))
    return calls, int(max(FEWEST, min(MOST, budget / (calls * sum(seconds)))))
