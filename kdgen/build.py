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
AGAIN = "install kdgen again (in a checkout: make test)"


@dataclass(frozen=True)
class Compiled:
    """Facts about `kdgen._native`. `why` and `fix` are empty when it loaded."""

    isa: str = ""  # the instruction set in use
    isas: tuple[str, ...] = ()  # those this machine could use
    openmp: bool = False
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


def line() -> str:
    """Python, torch and compiled part in one line. ImportError if torch is not there."""
    import torch

    native = compiled()
    part = f"no compiled part ({native.why})" if native.why else f"compiled part using {native.isa}"
    return f"Python {sys.version.split()[0]}, torch {torch.__version__}, {part}"


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


def _installed_elsewhere(suffix: str) -> Path | None:
    """Where pip installed a compiled kdgen, if not here: Python prefers the current folder."""
    with suppress(importlib.metadata.PackageNotFoundError):
        found = Path(str(importlib.metadata.distribution("kdgen").locate_file("kdgen")))
        if (found / f"_native{suffix}").exists() and found.resolve() != PACKAGE.resolve():
            return found
    return None
