"""One contestant in a process of its own, which computes only when it is asked to.

    python -m benchmarks.cpu_peers.worker JOB [--prepare]

Questions come as lines of JSON on the standard input, answers leave on the standard output; what
libraries print goes to the standard error. Imports nothing that its contestant does not need.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from . import case
from .runners import Call, Job, Refused, Runner, module
from .variants import BY_NAME

WARM_CALLS, WARM_SECONDS = 3, 2.0  # untimed, whichever comes first
_STATUS = Path("/proc/self/status")


def main(arguments: list[str]) -> None:
    answers = _answers()
    job = _job(json.loads(arguments[0]))
    if "--prepare" in arguments:
        _say(answers, _guarded(lambda: _prepare(job)))
        return
    contestant = Contestant(job)
    started = _guarded(contestant.start)
    _say(answers, started)
    if "failed" in started:
        return
    for line in sys.stdin:
        question = json.loads(line)
        act = partial(getattr(contestant, question.pop("do")), **question)
        _say(answers, _guarded(act))


class Contestant:
    """Its public methods are the questions."""

    runner: Runner

    def __init__(self, job: Job) -> None:
        self.job, self.calls = job, dict[int, Call]()

    def start(self) -> dict[str, Any]:
        """Up to the first image; the clock is the parent's, which began with the process."""
        self.runner = module(self.job.variant).start(self.job)
        self._call(self.job.batches[0])()
        return {}

    def warm(self, batch: int) -> dict[str, Any]:
        """Compile for this batch, call until everything is in place, and judge the answer."""
        call = self._call(batch)
        _timed(call, 1)  # what compiles does it now: this says nothing about the next call
        seconds = [_timed(call, 1)]
        while len(seconds) < WARM_CALLS and sum(seconds) < WARM_SECONDS:
            seconds.append(_timed(call, 1))
        out = np.asarray(call(), dtype=np.float32)
        error = case.error(out, self.job.folder, batch)
        runner = self.runner
        said = {"note": runner.note, "dtype": runner.dtype}
        return {
            "seconds": seconds[-1],
            "error": error,
            "said": {k: v for k, v in said.items() if v},
        }

    def round(self, batch: int, calls: int) -> dict[str, Any]:
        """Seconds a call. Another one before is not timed: others have had the caches."""
        call = self.calls[batch]
        call()
        return {"seconds": _timed(call, calls) / calls}

    def memory(self) -> dict[str, Any]:
        """The most that was resident so far, in bytes."""
        return {"bytes": peak()}

    def _call(self, batch: int) -> Call:
        if batch not in self.calls:
            self.calls[batch] = self.runner.call(*case.inputs(self.job.case, batch))
        return self.calls[batch]


def peak() -> int:
    """Bytes. getrusage on Linux also remembers what the parent was before it became this one."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used << 10


def _timed(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _prepare(job: Job) -> dict[str, Any]:
    module(job.variant).prepare(job)
    return {}


def _job(said: dict[str, Any]) -> Job:
    folder = Path(said["folder"])
    return Job(
        BY_NAME[said["variant"]],
        case.read(folder),
        folder,
        Path(said["work"]),
        said["threads"],
        tuple(said["batches"]),
    )


def _guarded(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it answers, or {"failed": why}."""
    try:
        return act()
    except Refused as why:
        return {"failed": str(why)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {_line(str(error))}"}


def _line(text: str) -> str:
    """The first that is not empty, at a length for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no message"])[0][:300]


def _answers() -> TextIO:
    """The standard output for us alone; for everybody else it is the standard error from now on."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


def _say(answers: TextIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
