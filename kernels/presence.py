"""Whether a backend is on this machine at all, and which of its errors say that it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import _triton, cuda, native

# Why not, "" when it is; backends that are not here are always present.
_ABSENT: Mapping[str, Callable[[], str]] = {
    "native": lambda: native.why,
    "triton": lambda: "" if _triton.installed() else "triton is not installed",
    "cuda": lambda: cuda.why,
}
# An error while running -> why it could not be compiled or launched, "" for an error that counts.
_UNUSABLE: Mapping[str, Callable[[Exception], str]] = {"triton": _triton.unusable}
REMEDIES: Mapping[str, str] = {
    "native": "Install a C++ compiler and kdgen again; python -m kdgen.doctor says more",
    "triton": "Install the triton that your torch asks for, and a C compiler (apt install gcc)",
    "cuda": "Install a CUDA toolkit and kdgen again; python -m kdgen.doctor says more",
}


def absent(backend: str) -> str:
    """Why `backend` cannot run anything here; "" when it is there."""
    why = _ABSENT.get(backend)
    return why() if why is not None else ""


def may_fail(backend: str) -> bool:
    """Whether only running it shows that it cannot be compiled."""
    return backend in _UNUSABLE


def unusable(backend: str, error: Exception) -> str:
    """Why it cannot be used, if that is what `error` says; "" for every other error."""
    return _UNUSABLE[backend](error)
