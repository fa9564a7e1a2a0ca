"""Is the engine still as much faster than torch as it was? A few layers, timed in turns.

    python -m benchmarks.cpu_peers.gate            # exits 1 where a ratio is below its floor
    python -m benchmarks.cpu_peers.gate --record   # on a quiet machine: set the floors anew

Only ratios of one run are compared. The floors, by instruction set, are a generous part of what was
measured, and a layer fails only if it stays below in every one of several tries. A floor whose
layer was not timed fails too: the engine no longer says that it multiplies so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .figures import Spread
from .layers import BF16, FP32, INT8, LAYERS, WORST, Layer, Pair, program

FLOORS = Path(__file__).with_name("floors.json")
SLACK = 0.6  # of a measured ratio: identical code differed by 30 % on a shared two-core machine
ROUNDS, TRIES = 15, 3
ROUND_SECONDS = 0.02

Floors = dict[str, float]


@dataclass(frozen=True)
class Result:
    """`ratios` are torch's time over ours, one a round; `error` is ours."""

    layer: Layer
    seconds: float
    ratios: tuple[float, ...]
    error: float

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    def verdict(self, floor: float | None) -> str:
        if not self.error <= WORST[self.layer.dtype]:  # NaN is wrong, too
            return "WRONG"
        if floor is None:
            return "no floor"
        return "LOWER" if self.ratio < floor else "ok"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write what is measured as floors")
    parser.add_argument("--slack", type=float, default=SLACK, help="share of a ratio that is kept")
    parser.add_argument("--floors", type=Path, default=FLOORS)
    a = parser.parse_args(argv)
    make = program()
    if isinstance(make, str):
        print(f"engine gate: skipped: {make}")
        return 0
    isa, layers = _here(make())
    results = [_measured(make, layer) for layer in layers]
    if a.record:
        _record(a.floors, isa, results, a.slack)
    floors = read(a.floors).get(isa, {})
    if not a.record:
        results = settled(results, floors, lambda layer: _measured(make, layer))
    for line in _table(isa, results, floors):
        print(line)
    lost = sorted(floors.keys() - {r.layer.key for r in results})
    for key in lost:
        print(f"{'LOST':<9}{key}: has a floor for {isa}, and was not timed")
    bad = any(r.verdict(floors.get(r.layer.key)) in ("LOWER", "WRONG") for r in results)
    return int(bad or bool(lost))


def settled(
    results: Sequence[Result], floors: Floors, measure: Callable[[Layer], Result]
) -> list[Result]:
    """With each that is lower measured again, until it is not or the tries are spent: the best."""
    final = []
    for result in results:
        floor = floors.get(result.layer.key)
        for _ in range(TRIES - 1):
            if result.verdict(floor) != "LOWER":
                break
            result = max(result, measure(result.layer), key=lambda r: r.ratio)
        final.append(result)
    return final


def read(path: Path) -> dict[str, Floors]:
    """Floors by instruction set; none where there is no file."""
    found: dict[str, Floors] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _here(engine: Any) -> tuple[str, list[Layer]]:
    """The instruction set, and the layers that are worth their time on it: products that it would
    have to emulate are never chosen."""
    fast = {FP32: True, BF16: engine.fast_bf16, INT8: engine.fast_int8}
    return engine.isa, [la for la in LAYERS if fast[la.dtype]]


def _measured(make: Callable[[], Any], layer: Layer) -> Result:
    pair = Pair(make(), layer, torch.get_num_threads())
    error = pair.error()
    calls = max(1, round(ROUND_SECONDS / min(_timed(pair.torchs, 1) for _ in range(3))))
    ours, ratios = [], []
    for _ in range(ROUNDS):
        ours.append(_timed(pair.ours, calls))
        ratios.append(_timed(pair.torchs, calls) / ours[-1])
    return Result(layer, median(ours), tuple(ratios), error)


def _timed(call: Callable[[], Any], calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _record(path: Path, isa: str, results: Sequence[Result], slack: float) -> None:
    floors = {r.layer.key: float(f"{slack * r.ratio:.3g}") for r in results}
    document = {**read(path), isa: floors}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _table(isa: str, results: Sequence[Result], floors: Floors) -> list[str]:
    """One line a layer."""
    threads = torch.get_num_threads()
    lines = [
        f"engine gate: {isa}, {threads} threads, torch {torch.__version__}; times torch's conv2d"
    ]
    for r in results:
        floor, spread = floors.get(r.layer.key), Spread.of(r.ratios)
        shown, rate = "none" if floor is None else f"{floor:.2f}", r.layer.flops / r.seconds / 1e9
        lines.append(
            f"{r.verdict(floor):<9}{r.ratio:5.2f} ({spread.low:.2f}–{spread.high:.2f})  floor "
            f"{shown}  {rate:5.0f} GFLOP/s  error {r.error:.0e}  {r.layer.key}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
