"""The editable install, with the compiled part where there is a compiler."""

from __future__ import annotations

import os
import re
import subprocess

from tools.preparation.environment import site_packages
from tools.preparation.packages import build_requirements, missing
from tools.preparation.stamps import Stamp, build_digest, has_nvcc
from tools.preparation.steps import LOG, PYTHON, ROOT, STRICT, Failed, pip, run, say, short


def compile_and_link() -> None:
    """An editable install of this folder, with the compiled part where there is a compiler."""
    if absent := missing(build_requirements()):
        _link_sources(absent)
        return
    once = Stamp("compiled", build_digest())
    before = once.valid()  # then it is not the machine that stands in the way
    say("sources changed, building again" if before else "building kdgen")
    output = _build()
    if not _compiled() and _cuda_is_optional():
        say(f"going on without the CUDA kernels: {_first_error(output) or 'they did not build'}")
        output = _build(KDGEN_CUDA="OFF")
    if _compiled():
        once.write()
        return
    if os.environ.get("KDGEN_PURE"):
        return
    wrong = _first_error(output) or "python -m kdgen.doctor says what to install"
    if STRICT or before:
        raise Failed(f"the compiled part did not build: {wrong}. Log: {short(LOG)}")
    say(f"going on without the compiled part, more slowly: {wrong}")


def _build(**environment: str) -> str:
    """What pip and the compilers print."""
    command = ["install", "-v", "--no-build-isolation", "--no-deps", "-e", str(ROOT)]
    return pip(command, "kdgen did not build", environment)


def _cuda_is_optional() -> bool:
    """Whether a compiled part that failed may have failed because of CUDA, which nobody asked for."""
    if STRICT or os.environ.get("KDGEN_PURE"):
        return False
    asked = os.environ.get("KDGEN_CUDA", "").upper() or "AUTO"
    return asked == "AUTO" and bool(has_nvcc())


def _link_sources(absent: list[str]) -> None:
    """No way to build: let Python find the sources, so that kdgen runs on torch alone."""
    what = f"{', '.join(absent)} missing, so nothing can be compiled"
    if STRICT:
        raise Failed(what)
    say(f"going on without the compiled part, more slowly: {what}")
    (site_packages() / "kdgen-sources.pth").write_text(f"{ROOT}\n")


def summary() -> str:
    """What there is now, as the new environment sees it; the proof that it can be imported."""
    code = "from kdgen import build; print(build.line())"
    line = run([PYTHON, "-c", code], "kdgen was installed but cannot be imported", cwd=ROOT)
    return line.strip().splitlines()[-1]


def _compiled() -> bool:
    probe = [PYTHON, "-c", "import kdgen._native"]
    return subprocess.run(probe, cwd=ROOT, capture_output=True, check=False).returncode == 0


def _first_error(output: str) -> str:
    """The first line that a compiler or CMake called an error, with what follows CMake's."""
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if "CMake Error" in line:
            return " ".join(" ".join(lines[number : number + 2]).split())
        if re.search(r"\berror:", line) and "subprocess" not in line:
            return line.strip()
    return ""
