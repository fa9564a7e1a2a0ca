"""The compiled part of kdgen: what it can do here, or why it is missing and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import kdgen

PACKAGE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
TOOLKITS = ("/usr/local/cuda/bin", "/opt/cuda/bin")  # where installers put one, PATH or not
AGAIN = "install kdgen again (in a checkout: make test)"


@dataclass(frozen=True)
class Compiled:
    """Facts about `kdgen._native`. `why` and `fix` are empty when it loaded."""

    isa: str = ""  # the instruction set in use
    isas: tuple[str, ...] = ()  # those this machine could use
    openmp: bool = False
    why: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Cuda:
    """Facts about `kdgen._cuda`, the CUDA kernels. `why` and `fix` are empty when it loaded."""

    archs: tuple[str, ...] = ()  # as CMake names them: 80-real is machine code, 90-virtual is not
    why: str = ""
    fix: str = ""


def compiled() -> Compiled:
    """The compiled part as it loads in this process."""
    with suppress(ImportError):
        import torch  # noqa: F401  first, so that its OpenMP runtime is the one in the process
    try:
        _native = importlib.import_module("kdgen._native")
    except ModuleNotFoundError:
        why, fix = _absent()
        return Compiled(why=why, fix=fix)
    except ImportError as error:
        return Compiled(why=f"it is here and does not load ({error})", fix=AGAIN)
    if _native.version != kdgen.__version__:
        why = f"it was built for kdgen {_native.version}, this is {kdgen.__version__}"
        return Compiled(why=why, fix=AGAIN)
    return Compiled(_native.isa(), tuple(_native.supported_isas()), _native.openmp)


def cuda() -> Cuda:
    """The CUDA kernels as they load in this process; they need no driver for that."""
    try:
        _cuda = importlib.import_module("kdgen._cuda")
    except ModuleNotFoundError:
        why, fix = _absent_cuda()
        return Cuda(why=why, fix=fix)
    except ImportError as error:
        return Cuda(why=f"they are here and do not load ({error})", fix=AGAIN)
    if _cuda.version != kdgen.__version__:
        why = f"they were built for kdgen {_cuda.version}, this is {kdgen.__version__}"
        return Cuda(why=why, fix=AGAIN)
    return Cuda(tuple(_cuda.archs.split(",")))


def nvcc() -> str:
    """The CUDA compiler that the build would take; "" if it would find none."""
    if chosen := os.environ.get("CUDACXX"):
        return shutil.which(chosen) or ""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [None, *(f"{home}/bin" for home in homes if home), *TOOLKITS]
    return next(filter(None, (shutil.which("nvcc", path=p) for p in places)), "")


def line() -> str:
    """Python, torch and compiled part in one line. ImportError if torch is not there."""
    import torch

    native = compiled()
    part = f"no compiled part ({native.why})" if native.why else f"compiled part using {native.isa}"
    gpu = "" if cuda().why else ", CUDA kernels"
    return f"Python {sys.version.split()[0]}, torch {torch.__version__}, {part}{gpu}"


def _absent() -> tuple[str, str]:
    """Why there is no module to import, and the remedy."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if elsewhere := _installed_elsewhere(suffix):
        fix = f"leave this folder, or: pip install -e {PACKAGE.parent}"
        return f"{PACKAGE} is not the installed kdgen, which is {elsewhere}", fix
    if files := [p.name for p in PACKAGE.glob("_native*.so")]:
        return f"{files[0]} is for another Python than this ({suffix})", AGAIN
    if os.environ.get("KDGEN_PURE"):
        return "KDGEN_PURE asks for pure Python", f"unset it and {AGAIN}"
    return _not_built()


def _not_built() -> tuple[str, str]:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), "")
    if not shutil.which(compiler):
        looked = compiler or ", ".join(COMPILERS)
        how = "a C++17 compiler (Debian and Ubuntu: apt install g++)"
        return f"no C++ compiler ({looked})", f"install {how}, then {AGAIN}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        how = "Python's headers (Debian and Ubuntu: apt install python3-dev)"
        return "no Python.h", f"install {how}, then {AGAIN}"
    why = f"{compiler} is here, but the build failed or was skipped"
    return why, f"KDGEN_STRICT=1 shows its error when you {AGAIN}"


def _absent_cuda() -> tuple[str, str]:
    """Why there are no CUDA kernels, and the remedy."""
    if compiled().why:
        return "there is no compiled part at all", ""
    if os.environ.get("KDGEN_CUDA", "").upper() == "OFF":
        return "KDGEN_CUDA=OFF leaves them out", f"unset it and {AGAIN}"
    if compiler := nvcc():
        why = f"{compiler} is here, but they were not built"
        return why, f"KDGEN_CUDA=ON shows the error when you {AGAIN}"
    how = "the CUDA toolkit 11.8 or newer (https://developer.nvidia.com/cuda-downloads)"
    return "no CUDA compiler (nvcc)", f"install {how}, then {AGAIN}"


def _installed_elsewhere(suffix: str) -> Path | None:
    """Where pip installed a compiled kdgen, if not here: Python prefers the current folder."""
    with suppress(importlib.metadata.PackageNotFoundError):
        found = Path(str(importlib.metadata.distribution("kdgen").locate_file("kdgen")))
        if (found / f"_native{suffix}").exists() and found.resolve() != PACKAGE.resolve():
            return found
    return None
