"""Stamps in the environment: for which inputs a step was done, so that the next call is free."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tools.preparation.steps import ROOT, STRICT, VENV

# What people say about the build, by way of the environment.
ASKED = (
    "KDGEN_STRICT",
    "KDGEN_PURE",
    "KDGEN_CUDA",
    "KDGEN_CUDA_ARCHS",
    "CUDACXX",
    "CUDA_HOME",
    "CUDA_PATH",
)


class Stamp:
    """A file in the environment that says for which inputs a step was done."""

    def __init__(self, name: str, digest: str) -> None:
        self.path, self.digest = VENV / f".kdgen-{name}", digest

    def valid(self) -> bool:
        return self.path.exists() and self.path.read_text() == self.digest

    def write(self) -> None:
        self.path.write_text(self.digest)


def files_digest() -> str:
    """Of what decides which packages are needed, and of the code that installs them."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt", *Path(__file__).parent.glob("*.py")]
    return _digest(str(STRICT), *(p.read_text() for p in sorted(files)))


def build_digest() -> str:
    """Of what decides how the extension is built, its sources apart."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
    nvcc = has_nvcc()
    asked = [os.environ.get(name, "") for name in ASKED]
    return _digest(str(ROOT), (ROOT / "pyproject.toml").read_text(), compiler, nvcc, *asked)


def has_nvcc() -> str:
    """The CUDA compiler on this machine, "" if there is none where CMakeLists.txt looks."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [*(f"{home}/bin" for home in homes if home), "/usr/local/cuda/bin", "/opt/cuda/bin"]
    found = (shutil.which("nvcc", path=place) for place in (None, *places))
    return os.environ.get("CUDACXX") or next(filter(None, found), "")


def newer_sources(stamp: Stamp) -> bool:
    """Whether a C++ source or the build's description changed after the stamp."""
    built = stamp.path.stat().st_mtime
    return any(p.stat().st_mtime > built for p in (ROOT / "CMakeLists.txt", *_sources()))


def _sources() -> Iterator[Path]:
    yield from (ROOT / "cmake").glob("*.cmake")
    yield from (ROOT / "csrc").rglob("*.*")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
