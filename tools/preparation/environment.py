"""A new virtual environment, in which a torch that the machine has stays visible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.preparation.steps import LOG, PYTHON, VENV, Failed, numbers, run, say, short

OLDEST_TORCH = (2, 11)


def create() -> None:
    """A new $VENV. If this Python has a torch that is new enough, the environment sees it."""
    if _works(PYTHON):
        return  # another set-up was faster
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        raise Failed(f"{VENV} exists and is no virtual environment. Name another one: make VENV=…")
    torch = _torch_of(sys.executable)
    keep = bool(torch) and numbers(torch) >= OLDEST_TORCH
    what = f"keeping its torch {torch}" if keep else "from nothing"
    if torch and not keep:
        what = f"its torch {torch} is too old, 2.11 or newer will be installed"
    version = ".".join(map(str, sys.version_info[:3]))
    say(f"making {short(VENV)} with Python {version} ({what})")
    _make(keep)
    if keep and not (_torch_of(PYTHON) and _has_pip(PYTHON)):
        _show_the_packages_of_this_python()


def _make(keep: bool) -> None:
    """Debian's and Ubuntu's Python may come without ensurepip, which puts pip into an environment.
    A pip that it has nevertheless serves one that sees its packages."""
    options = ["--system-site-packages"] if keep else []
    command = [sys.executable, "-m", "venv", "--clear", *options, str(VENV)]
    what = "could not make the environment; on Debian and Ubuntu: apt install python3-venv"
    try:
        run(command, what)
    except Failed:
        if not (keep and _has_pip(sys.executable)):
            raise
        say("it cannot put pip into the environment, which will use its own")
        run([*command, "--without-pip"], what)


def _show_the_packages_of_this_python() -> None:
    """An environment sees the base interpreter's packages. If torch is elsewhere (this Python lives
    in an environment itself), its folders are added by name."""
    folders = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    target = site_packages() / "kdgen-parent.pth"
    target.write_text("\n".join(folders) + "\n")
    if not _torch_of(PYTHON):
        raise Failed(f"{sys.executable} has torch, but {VENV} cannot see it. Log: {short(LOG)}")


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([PYTHON, "-c", code], text=True).strip())


def _torch_of(python: str | Path) -> str:
    """The version of the torch that `python` can import; "" if it cannot."""
    probe = [str(python), "-c", "import torch; print(torch.__version__)"]
    done = subprocess.run(probe, capture_output=True, text=True, cwd="/", check=False)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.strip() else ""


def _has_pip(python: str) -> bool:
    done = subprocess.run([python, "-c", "import pip"], capture_output=True, cwd="/", check=False)
    return done.returncode == 0


def _works(python: str) -> bool:
    """Whether this interpreter exists and starts."""
    if not Path(python).exists():
        return False
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
