"""A worker as its parent sees it: started, asked with a deadline, and ended with all it started."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_SHOWN = 200  # characters of the last line of a log


class Failed(Exception):
    """A contestant that said no, died or took too long; the reason, for its row."""


class Process:
    """`command` speaks lines of JSON; what else it prints goes to `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log, self._heard, self._begun = log, b"", time.monotonic()
        with log.open("ab") as file:
            self._child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # compilers that it starts end with it
            )

    def ask(self, limit: float, do: str, **what: Any) -> dict[str, Any]:
        """Its answer within `limit` seconds; else it is ended. Raises Failed."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise Failed(self._ended()) from None
        return self.answer(limit)

    def answer(self, limit: float) -> dict[str, Any]:
        """The next one. Raises Failed, with the reason it gives if it gives one."""
        deadline = time.monotonic() + limit
        while b"\n" not in self._heard:
            self._hear(deadline, limit)
        line, _, self._heard = self._heard.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if why := said.get("failed"):
            raise Failed(why)
        return said

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    def stop(self) -> None:
        """End it and everything it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _hear(self, deadline: float, limit: float) -> None:
        assert self._child.stdout is not None
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([self._child.stdout], [], [], left)
        if not ready:
            self.stop()
            raise Failed(f"over the budget of {limit:.0f} s")
        heard = os.read(self._child.stdout.fileno(), 1 << 16)
        if not heard:
            raise Failed(self._ended())
        self._heard += heard

    def _ended(self) -> str:
        code = self._child.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()[:_SHOWN]}" if lines else ""
        return f"its process ended with {how}{last}"


def command(said: Mapping[str, Any], *more: str) -> list[str]:
    """A worker's command line."""
    return [sys.executable, "-m", "benchmarks.cpu_peers.worker", json.dumps(said), *more]
