"""Does a second run say the same? Its ratios against the spread of the first one's.

    python -m benchmarks.cpu_peers.again FIRST.json SECOND.json

A claim is confirmed if the second run's median lies between the extremes of the first run's rounds,
or above. Exits 1 where one is not, also for want of a figure, unless the second run was not asked
for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import figures
from .claims import Verdict, verdicts
from .tables import number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    a = parser.parse_args(argv)
    try:
        first, second = (_known(path) for path in (a.first, a.second))
    except ValueError as error:
        parser.error(str(error))
    both = [(v, second[key]) for key, v in first.items() if v.ratio and key in second]
    for line in _lines(both):
        print(line)
    if not both:
        print("nothing was measured in both")
    return int(not both or not all(confirmed(*pair) for pair in both))


def confirmed(first: Verdict, second: Verdict) -> bool:
    """Not without the peer that was the fastest: the others would let ours look better."""
    assert first.ratio is not None
    if gone(first, second):
        return False
    assert second.ratio is not None
    return second.ratio.middle >= first.ratio.least


def gone(first: Verdict, second: Verdict) -> bool:
    """Whether the second run has nothing to hold against the first."""
    return second.ratio is None or first.peer in second.absent


def _known(path: Path) -> dict[str, Verdict]:
    found = (v for r in figures.networks(figures.read(path)) for v in verdicts(r))
    return {v.key: v for v in found if v.asked}


def _lines(both: Sequence[tuple[Verdict, Verdict]]) -> Iterator[str]:
    for first, second in both:
        a, b = first.ratio, second.ratio
        assert a is not None
        lost = gone(first, second)
        said = "confirmed" if confirmed(first, second) else "GONE" if lost else "LOWER"
        then = number(b.middle) if b and not lost else second.why or f"nothing of {first.peer}"
        yield (
            f"{said:<9}  {number(a.middle)} ({number(a.least)}–{number(a.most)}), then {then}   "
            f"{first.key}"
        )


if __name__ == "__main__":
    sys.exit(main())
