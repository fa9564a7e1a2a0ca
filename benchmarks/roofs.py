"""The device's own limits, measured in the same session as everything that is held against them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from . import machine

REPEATS = 7  # the best counts: a roof is what the device can do, not what it usually does


class Roofs:
    """Copies in bytes/s and matrix products in FLOP/s, each measured when first asked for.

    `tiny`: of sizes that say nothing about the device, but cost nothing either.
    """

    def __init__(self, device: torch.device, *, tiny: bool = False) -> None:
        self.device, self.tiny = device, tiny
        self._known: dict[tuple[str, Any], float] = {}

    def copy(self, moved: float | None = None) -> float:
        """Of a copy that moves `moved` bytes, to a factor of two; None: beyond any cache."""
        far = 64 if self.device.type == "cuda" else 8
        most = 1 << 16 if self.tiny else far * machine.last_cache(self.device)
        size = most if moved is None else min(most, max(1 << 14, int(moved)))
        return self._once("copy", 1 << (size.bit_length() - 1), self._measure_copy)

    def gemm(self, dtype: torch.dtype) -> float:
        """Square matrix product; TF32 as the process has it set (off, unless you turned it on);
        int8 is summed in int32."""
        return self._once("gemm", dtype, self._measure_gemm)

    def table(self) -> dict[str, float]:
        """Everything measured so far, by a readable name."""
        return {
            f"{what} {str(how).removeprefix('torch.')}": v for (what, how), v in self._known.items()
        }

    def _once(self, what: str, how: Any, measure: Callable[[Any], float]) -> float:
        if (what, how) not in self._known:
            self._known[what, how] = measure(how)
        return self._known[what, how]

    def _measure_copy(self, moved: int) -> float:
        source = torch.rand(moved // 8, device=self.device)
        target = torch.empty_like(source)
        return moved / self._best(lambda: target.copy_(source))

    def _measure_gemm(self, dtype: torch.dtype) -> float:
        n = 32 if self.tiny else 8192 if self.device.type == "cuda" else 1536
        whole = dtype is torch.int8
        a, b = (
            (40 * torch.randn(n, n, device=self.device)).clamp(-127, 127).to(dtype)
            for _ in range(2)
        )
        out = torch.empty_like(a, dtype=torch.int32 if whole else dtype)
        multiply = torch._int_mm if whole else torch.mm
        with torch.inference_mode():
            return 2 * n**3 / self._best(lambda: multiply(a, b, out=out))

    def _best(self, run: Callable[[], Any]) -> float:
        """Seconds a call; short ones are repeated until the clock can see them."""
        calls, best = 1, float("inf")
        for _ in range(2):
            once = self._time(run, 1)
        calls = max(1, min(10_000, int(5e-3 / once)))
        for _ in range(REPEATS):
            best = min(best, self._time(run, calls) / calls)
        return best

    def _time(self, run: Callable[[], Any], calls: int) -> float:
        machine.synchronise(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        machine.synchronise(self.device)
        return time.perf_counter() - start
