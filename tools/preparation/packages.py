"""Packages: torch for this machine first, then what else is missing, torch held still."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.preparation.environment import OLDEST_TORCH
from tools.preparation.steps import PYTHON, ROOT, STRICT, VENV, Failed, numbers, pip, run, say

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
OLDEST_CMAKE = (3, 24)
OPTIONAL = ("triton",)  # extras, which like a compiled part one can do without
TRITON_OF = {"2.11": "3.6.0", "2.12": "3.7.1", "2.13": "3.7.1", "2.14": "3.8.0", "2.15": "3.9.0"}


def install(extras: Sequence[str], *, spare: bool = False) -> None:
    """torch first, then whatever else is missing, under constraints that hold torch still.

    `spare`: go on without what cannot be had, be it what kdgen's command lines or tests need.
    """
    if importlib.util.find_spec("pip") is None:
        run([PYTHON, "-m", "ensurepip"], f"{VENV} has no pip")
    if numbers(_version("torch")) < OLDEST_TORCH:
        install_torch()
    pins = _pins()
    needed, wished = _core_without_torch(), _build_tools()
    for extra in extras:
        (wished if extra in OPTIONAL else needed).extend(_extra(extra))
    if spare:
        needed, wished = [], [*needed, *wished]
    _download(missing(needed), pins)
    try:
        _download(missing(wished), pins, hasty=spare)
    except Failed as error:
        if STRICT:
            raise
        say(f"going on: {error}")


def install_torch() -> None:
    """The pinned torch: a CPU build, or the CUDA build where there is a GPU."""
    pins = {r.partition("==")[0]: r for r in _constraints()}
    if _has_gpu():
        wanted = pins["torch"].partition("+")[0]
        say(f"installing {wanted} with CUDA, for the GPU of this machine (several GB)")
        pip(["install", wanted], f"could not install {wanted}")
        return
    wanted = pins["torch"]
    say(f"installing {wanted} (about 200 MB)")
    try:
        pip(["install", wanted], "")
    except Failed:  # the configured indexes have no such wheel: PyPI does not
        pip(
            ["install", "--extra-index-url", CPU_WHEELS, wanted],
            f"could not install {wanted} for Python {sys.version.split()[0]}",
        )


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if not tool:
        return False
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU 0" in done.stdout


def _pins() -> Path:
    """Constraints for the torch that is here, which nothing may replace, and its Triton."""
    torch = _version("torch")
    lines = [f"torch=={torch}"]
    if triton := TRITON_OF.get(".".join(torch.split(".")[:2])):
        lines.append(f"triton=={triton}")
    file = VENV / "kdgen-pins.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def _constraints() -> list[str]:
    """constraints.txt for this platform: name==version."""
    from pip._vendor.packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [f"{r.name}{r.specifier}" for r in pins if not r.marker or r.marker.evaluate()]


def _download(requirements: list[str], pins: Path, *, hasty: bool = False) -> None:
    if not requirements:
        return
    say(f"installing {', '.join(requirements)}")
    command = ["install", "-c", str(pins), *requirements]
    pip(command, f"could not install {', '.join(requirements)}", hasty=hasty)


def missing(requirements: Sequence[str]) -> list[str]:
    """Those that no installed package meets."""
    from pip._vendor.packaging.requirements import Requirement

    absent = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = _version(requirement.name)
        if not version or not requirement.specifier.contains(version, prereleases=True):
            absent.append(str(requirement))
    return absent


def _version(package: str) -> str:
    """Of the installed package; "" if there is none."""
    importlib.invalidate_caches()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _core_without_torch() -> list[str]:
    """A vendor's pre-release torch ("2.12.0a0") is good, though its version says it is not."""
    return [r for r in _project()["project"]["dependencies"] if not r.startswith("torch")]


def _extra(name: str) -> list[str]:
    known = _project()["project"]["optional-dependencies"]
    if name not in known:
        raise Failed(f"unknown extra {name!r}; expected one of {', '.join(known)}")
    return list(known[name])


def build_requirements() -> list[str]:
    return list(_project()["build-system"]["requires"])


def _build_tools() -> list[str]:
    """What an isolated build would bring by itself: CMake and Ninja if the machine has none."""
    path = f"{VENV / 'bin'}:{os.environ.get('PATH', '')}"
    tools = build_requirements()
    cmake = shutil.which("cmake", path=path)
    done = subprocess.run([cmake, "--version"], capture_output=True, text=True) if cmake else None
    if done is None or numbers(done.stdout.split("version")[-1].strip()) < OLDEST_CMAKE:
        tools.append("cmake>=3.24")
    if not (shutil.which("ninja", path=path) or shutil.which("make", path=path)):
        tools.append("ninja")
    return tools
