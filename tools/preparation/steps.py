"""What every step needs: a line for people, a log for the rest, one run at a time."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(os.environ.get("VENV") or ".venv").absolute()
PYTHON = str(VENV / "bin" / "python")
LOG = ROOT / "build" / "setup.log"
LOG_BYTES = 4 << 20  # then a new one is begun
STRICT = os.environ.get("KDGEN_STRICT", "0").lower() in ("1", "on", "true", "yes")
NO_NETWORK = re.compile(
    "NewConnectionError|Failed to establish|name resolution|Network is unreachable|ConnectTimeout"
    "|Read timed out"
)
# How long pip tries; an address that swallows everything costs one such time for every try.
PATIENT = ("--retries", "2")
HASTY = ("--retries", "1", "--timeout", "3")
EMPTY: Mapping[str, str] = {}


class Failed(Exception):
    """A step that did not work, in one line."""


def say(line: str) -> None:
    print(f"setup: {line}", file=sys.stderr, flush=True)


def pip(
    arguments: Sequence[str],
    what: str,
    environment: Mapping[str, str] = EMPTY,
    *,
    hasty: bool = False,
) -> str:
    """`hasty`: for what one can do without, give up soon where there is no network."""
    options = ["--disable-pip-version-check", "--no-input", *(HASTY if hasty else PATIENT)]
    return run([PYTHON, "-m", "pip", *arguments, *options], what, environment=environment)


def run(
    command: Sequence[str],
    what: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] = EMPTY,
) -> str:
    """Run a step, its output to the log; Failed, with `what` and the reason, if it fails."""
    with LOG.open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, **environment},
            check=False,
        )
        log.write(done.stdout)
    if done.returncode:
        raise Failed(f"{what}: {_reason(done.stdout)}. Log: {short(LOG)}")
    return done.stdout


def _reason(output: str) -> str:
    """The one line of a failed step's output that says most."""
    if NO_NETWORK.search(output):
        return "there is no network, and pip has none here"
    errors = [
        line for line in output.splitlines() if re.match(r"\s*(ERROR|error|\w+Error)\b", line)
    ]
    lines = errors or output.strip().splitlines() or ["no output"]
    return lines[-1].strip().removeprefix("ERROR: ").rstrip(".")


@contextmanager
def alone() -> Iterator[None]:
    """One set-up at a time in this folder."""
    LOG.parent.mkdir(exist_ok=True)
    if LOG.exists() and LOG.stat().st_size > LOG_BYTES:
        LOG.unlink()
    with (LOG.parent / "setup.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def numbers(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13)"""
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])
