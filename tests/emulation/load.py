"""kdgen's CUDA kernels, compiled for the CPU: the same sources under another <cuda_runtime.h>.

A kernel's logic (places, fragments, barriers, sums) is tried here; what a GPU alone does (its
rounding of 2^x, its memory) is not.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SOURCES = ROOT / "csrc" / "cuda"
NAME = "_emulated"
OPTIONS = (
    "-std=c++17",
    "-O1",
    "-U_FORTIFY_SOURCE",  # fibers jump between stacks, which it takes for an attack
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    f"-I{HERE}",
    f"-DKDGEN_MODULE={NAME}",
    "-DKDGEN_EMULATED=1",
    '-DKDGEN_VERSION="emulated"',
    '-DKDGEN_CUDA_ARCHS="emulated"',
)


def load() -> tuple[ModuleType | None, str]:
    """The module, built if the sources are not those of the last time; or why there is none."""
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return None, "there is no C++ compiler to emulate CUDA with"
    if importlib.util.find_spec("pybind11") is None:
        return None, "there is no pybind11 to emulate CUDA with"
    if not SOURCES.is_dir():
        return None, "there are no CUDA sources here"
    return _imported(_built(compiler)), ""


def _built(compiler: str) -> Path:
    """The file, which carries what it was made of in its name."""
    import pybind11

    paths = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [compiler, *OPTIONS, *(f"-I{p}" for p in paths)]
    folder = ROOT / "build" / "emulated" / _digest(command)
    module = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cpp")])

    def compiled(file: Path) -> str:
        target = folder / f"{file.name}.o"
        _run([*command, "-x", "c++", "-c", str(file), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, files))
    unfinished = module.with_suffix(f".{os.getpid()}")
    _run([compiler, "-shared", *objects, "-o", str(unfinished)])
    unfinished.rename(module)
    return module


def _digest(command: list[str]) -> str:
    """Of the sources and of how they are compiled."""
    files = [*SOURCES.glob("*"), *HERE.glob("*.h"), *(ROOT / "csrc").glob("*.h")]
    parts = [*command, *(f.read_text(encoding="utf-8") for f in sorted(files))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"emulation: {command[0]} says\n{done.stderr[-4000:]}")


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
