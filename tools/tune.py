"""Times the cuts of every Triton kernel on this GPU and writes those that beat the kernels' rules.

    python tools/tune.py [--only NAME] [--out FILE]

The file, kernels/configs/<device>.json, is read when kernels run on a GPU of that name, and ships
with the package. Nothing is ever timed then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # run as a file, it finds the package `tools` too

import torch
from torch import Tensor

from kdgen.kernels import configs
from tools import tuning
from tools.tuning import Fields, Tunable

WORTH = 0.97  # a cut is kept when it takes at most this share of the rule's time
CLOSE = 2e-2  # of the largest value: another order of sums, in bfloat16

Clock = Callable[[Callable[[], Any]], float]  # seconds, or any unit, of one call
Cuts = dict[str, dict[str, Fields]]


def tune(tunables: Iterable[Tunable], clock: Clock, say: Callable[[str], None] = print) -> Cuts:
    """kernel -> call -> the fastest cut, where it beats the rule. One that fails, or computes
    something else, is passed over."""
    found: Cuts = {}
    for t in tunables:
        with configs.using(t.kernel, **t.rule):
            expected, ruled = t.run(), clock(t.run)
        best, time = t.rule, ruled
        for cut in t.others:
            taken = _time(t, cut, expected, clock, say)
            if taken is not None and taken < time:
                best, time = cut, taken
        if time <= WORTH * ruled:
            found.setdefault(t.kernel, {})[t.call] = best
        say(f"{t.kernel} {t.call}: rule {ruled:.4g}, best {time:.4g} with {_text(best)}")
    return found


def _time(
    t: Tunable, cut: Fields, expected: Tensor, clock: Clock, say: Callable[[str], None]
) -> float | None:
    with configs.using(t.kernel, **cut):
        try:
            if not _agree(t.run(), expected):
                say(f"{t.kernel} {t.call}: {_text(cut)} computes something else; passed over")
                return None
            return clock(t.run)
        except Exception as error:  # out of registers or shared memory: Triton has many types
            say(f"{t.kernel} {t.call}: {_text(cut)} fails ({type(error).__name__}); passed over")
            return None


def _agree(got: Tensor, expected: Tensor) -> bool:
    gap = (got.float() - expected.float()).abs().max()
    return bool(gap <= CLOSE * expected.float().abs().max())


def _text(cut: Fields) -> str:
    return ", ".join(f"{name} {value}" for name, value in cut.items())


def write(path: Path, device: str, cuts: Cuts, versions: dict[str, str]) -> None:
    """All at once, so that a reader never sees half a file."""
    content = {"device": device, "versions": versions, "cuts": cuts}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--out", type=Path, help="write here instead")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: no CUDA GPU here; expected one. Run it where the kernels will run.")
        return 1
    import triton
    from triton.testing import do_bench

    name = torch.cuda.get_device_name()
    # One after another: each holds the tensors of its call.
    chosen = (t for t in tuning.every(torch.device("cuda")) if options.only in t.kernel)
    cuts = tune(chosen, lambda run: float(do_bench(run, return_mode="median")))
    path = options.out or configs.file_of(name)
    write(path, name, cuts, {"torch": torch.__version__, "triton": triton.__version__})
    print(f"wrote {path}: {sum(map(len, cuts.values()))} calls are cut otherwise than by rule")
    return 0


if __name__ == "__main__":
    sys.exit(main())
