"""Calls that a slower backend took because a faster one is missing or cannot be compiled.

They are counted; a kernel that cannot be compiled is warned of once for each op. Where fast kernels
are required (`require`, KDGEN_REQUIRE) the plain definition may not step in: `Unavailable`.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from . import presence

VARIABLE = "KDGEN_REQUIRE"
LAST = "reference"  # what takes over when nothing fast is left

_lock = threading.Lock()
_demands = 0
_failed: dict[tuple[str, str], str] = {}  # (op, backend) -> why it could not be compiled
_taken: dict[tuple[str, str], Fallback] = {}


class Unavailable(RuntimeError):
    """A fast backend is required and cannot be used here."""


@dataclass(frozen=True)
class Fallback:
    """Calls of one op that one backend should have taken."""

    why: str
    instead: str  # who took the last of them
    calls: int


def fallbacks() -> dict[tuple[str, str], Fallback]:
    """By (op, backend that should have run), for this process."""
    with _lock:
        return dict(_taken)


@contextmanager
def require(wanted: bool = True) -> Iterator[None]:
    """Inside, a fast backend that is missing or cannot be compiled is an error.

    It holds for the whole process, since gradients run in threads of their own.
    """
    global _demands
    with _lock:
        _demands += wanted
    try:
        yield
    finally:
        with _lock:
            _demands -= wanted


def required() -> bool:
    """Whether `require` or the environment asks for it."""
    return _demands > 0 or os.environ.get(VARIABLE, "").lower() not in ("", "0", "off", "false")


def missing(op: str, backend: str) -> str:
    """Why `backend` cannot run anything of `op`; "" when it merely did not want a call."""
    return _failed.get((op, backend)) or presence.absent(backend)


def fail(op: str, backend: str, why: str) -> None:
    """From now on `backend` is passed over."""
    with _lock:
        _failed[op, backend] = why


def forget() -> None:
    """As if no backend had failed yet."""
    with _lock:
        _failed.clear()
        _taken.clear()


def step_in(op: str, backend: str, instead: str) -> None:
    """`instead` is about to run a call of `backend`. Unavailable where that is not allowed."""
    why = missing(op, backend)
    if instead == LAST and required():
        raise Unavailable(
            f"{op}: {backend} kernels are required and cannot run here: {why}; expected them to. "
            f"{presence.REMEDIES.get(backend, 'See python -m kdgen.doctor')}, or drop the "
            f"requirement (--require-kernels, {VARIABLE}, kernels.require)."
        )
    with _lock:
        before = _taken.get((op, backend))
        _taken[op, backend] = (
            Fallback(why, instead, 1)
            if before is None
            else replace(before, instead=instead, calls=before.calls + 1)
        )
    if before is None and presence.may_fail(backend):
        warnings.warn(
            f"{op}: the {backend} kernel cannot run here: {why}. {instead} runs instead: the same "
            "values, more slowly. KDGEN_REQUIRE=1 makes this an error.",
            RuntimeWarning,
            stacklevel=4,
        )
