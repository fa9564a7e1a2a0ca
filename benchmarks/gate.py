"""Is anything slower than it was? Compares results by their ratio to torch, never by their times.

    python -m benchmarks.gate benchmarks/results runs/bench [runs/bench2 ...]

The first argument is the baseline, the others are runs of the same device; each is a result file or
a folder of them. A ratio counts as lower only if it is below the baseline's by more than the
tolerance in every run given. Exits 1 then, else 0; a device without a baseline is not an error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Ratios of identical code jumped by 30 % between processes on a shared two-core machine.
TOLERANCE = 0.4

Ratios = dict[str, float]


@dataclass(frozen=True)
class Verdict:
    key: str
    before: float
    now: float

    def lower(self, tolerance: float) -> bool:
        return self.now < self.before * (1 - tolerance)


def ratios(path: Path) -> dict[str, Ratios]:
    """Device -> row -> torch's best time over ours, of a result file or a folder of them.

    Raises ValueError for files that are not results.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return dict(_read(file) for file in files)


def _read(file: Path) -> tuple[str, Ratios]:
    try:
        document = json.loads(file.read_text())
        rows = document["rows"]
        found = {key: float(row["best_ratio"]) for key, row in rows.items() if "best_ratio" in row}
        return str(document["device"]), found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"gate: {file} is not a benchmark result ({type(error).__name__}: {error}); expected a "
            "file that `pytest benchmarks --results FOLDER` wrote. Name one."
        ) from error


def compare(before: Ratios, runs: Sequence[Ratios]) -> list[Verdict]:
    """One verdict for every row of the baseline that a run has, with the best of the runs."""
    return [
        Verdict(key, ratio, max(found))
        for key, ratio in before.items()
        if (found := [run[key] for run in runs if key in run])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="share of the ratio")
    a = parser.parse_args(argv)
    try:
        before = ratios(a.baseline) if a.baseline.exists() else {}
        runs = [ratios(path) for path in a.runs]
    except ValueError as error:
        parser.error(str(error))
    measured = list(dict.fromkeys(device for run in runs for device in run))
    return int(any([_judge(d, before.get(d), runs, a.tolerance) for d in measured]))


def _judge(
    device: str, before: Ratios | None, runs: Sequence[dict[str, Ratios]], tolerance: float
) -> bool:
    """Print what changed; whether anything is lower."""
    if before is None:
        print(f"{device}: no baseline, nothing to compare with")
        return False
    now = [run[device] for run in runs if device in run]
    verdicts = compare(before, now)
    lower = [v for v in verdicts if v.lower(tolerance)]
    for v in lower:
        print(f"LOWER  {v.now:6.2f}x torch, was {v.before:.2f}x   {v.key}")
    gone = sorted(set(before) - {v.key for v in verdicts})
    new = len({key for run in now for key in run} - set(before))
    print(
        f"{device}: {len(verdicts)} ratios to torch compared, {len(lower)} lower by more than "
        f"{tolerance:.0%}; {len(gone)} not measured this time, {new} new"
    )
    return bool(lower)


if __name__ == "__main__":
    raise SystemExit(main())
