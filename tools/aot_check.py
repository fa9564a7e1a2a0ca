"""Compiles every Triton kernel for sm_80 and sm_90 without a GPU, and holds it to its limits.

    python tools/aot_check.py [--only NAME] [--json FILE]

Spilled registers and too much shared memory fail; a case may ask for more (tools/aot/case.py). Its
own process, because under TRITON_INTERPRET kernels are not compilable objects.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.append(str(Path(__file__).parents[1]))  # run as a file, it finds the package `tools` too

import triton

from tools.aot import cases
from tools.aot.case import ARCHS
from tools.aot.gate import build


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), choices=ARCHS)
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    chosen = [c for c in cases.every() if options.only in c.name]
    work = [(c, a) for c in chosen for a in options.arch if a in c.archs]
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda job: build(*job), work):
            rows.append(row)
            print(row, flush=True)
    if options.json:
        table = {"triton": triton.__version__, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(table, indent=1))
    bad = [r.kernel for r in rows if r.broken]
    print(f"{len(rows)} kernels, {len(bad)} fail" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
