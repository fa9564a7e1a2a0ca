"""A copy of the sources to install from, and environments that see the packages of this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("CMakeLists.txt", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml")
FOLDERS = ("cmake", "csrc", "kdgen", "kernels", "tools")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sources(tmp_path) -> Path:
    """What git would check out, as far as an installation needs it."""
    copy = tmp_path / "kdgen-sources"
    copy.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    for name in NEEDED:
        if not (ROOT / name).exists():
            pytest.skip(f"no {name}: these are not the whole sources")
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path) -> Path:
    """An environment's Python, with the packages of this one."""
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.check_output([python, "-c", code], text=True).strip()
    parents = {p for p in sys.path if p.endswith(("site-packages", "dist-packages"))}
    parents.add(sysconfig.get_path("purelib"))
    Path(site, "parent.pth").write_text("\n".join(sorted(parents)) + "\n")
    if subprocess.run([python, "-c", "import pip, scikit_build_core, pybind11"]).returncode:
        pytest.skip("needs pip, scikit-build-core and pybind11 here (make test installs them)")
    return python


@pytest.fixture
def run(tmp_path) -> Run:
    """Run a command outside the sources, with no network and no choices from outside."""

    def call(*command: object, **extra: str) -> subprocess.CompletedProcess[str]:
        env = {
            k: v for k, v in os.environ.items() if not k.startswith(("KDGEN_", "PYTHON", "PIP_"))
        }
        env |= {"KDGEN_CUDA": "OFF"}  # they take a minute, and are built where the tests run
        env |= {"PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
        words = list(map(str, command))
        return subprocess.run(words, env=env | extra, cwd=tmp_path, capture_output=True, text=True)

    return call
