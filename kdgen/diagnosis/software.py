"""Python, torch, libraries and the compiled part."""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings

from kdgen import build
from kdgen.diagnosis.finding import REINSTALL, Finding, first_line, has, version_of

PYTHON, TORCH = (3, 11), (2, 11)  # the oldest that will do
LIBRARIES = {m: m for m in ("numpy", "safetensors", "tqdm", "tyro")} | {"PIL": "pillow"}


def python() -> Finding:
    """The interpreter."""
    version = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < PYTHON:
        return Finding("python", "missing", version, "install Python 3.11 or newer")
    return Finding("python", "ok", version)


def torch() -> Finding:
    """Whether torch imports, and is new enough."""
    get = "install it: make test in a checkout, or https://pytorch.org/get-started"
    if not has("torch"):
        return Finding("torch", "missing", "not installed", get)
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return Finding("torch", "missing", f"does not import: {first_line(error)}", get)
    version = torch.__version__
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < TORCH:
        return Finding("torch", "missing", f"{version} is too old; expected 2.11 or newer", get)
    return Finding("torch", "ok", f"{version}, threads: {torch.get_num_threads()}")


def libraries() -> Finding:
    """The other packages that kdgen cannot do without."""
    missing = [package for module, package in LIBRARIES.items() if not has(module)]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        return Finding("libraries", "missing", f"no {', '.join(missing)}", fix)
    return Finding("libraries", "ok", ", ".join(f"{p} {version_of(p)}" for p in LIBRARIES.values()))


def compiled() -> Finding:
    """The C++ kernels."""
    native = build.compiled()
    if native.why:
        text = f"missing: {native.why}; the CPU runs the ops as written in torch, more slowly"
        return Finding("compiled", "note", text, native.fix)
    threads = "OpenMP" if native.openmp else "one thread, as there was no OpenMP to build with"
    return Finding("compiled", "ok", f"{native.isa} (of {', '.join(native.isas)}), {threads}")


def engine() -> Finding:
    """What runs networks on a CPU."""
    from kdgen.engine import missing
    from kdgen.kernels import native

    if why := missing():
        text = f"none: {why}; torch runs networks on the CPU, more slowly"
        return Finding("engine", "note", text)
    assert native.module is not None
    program = native.module.Program()
    pairs = "as instructions" if program.fast_bf16 else "emulated, so bf16 runs in float32"
    integers = "as instructions" if program.fast_int8 else "emulated, so none is used"
    text = f"{program.isa}, products of bfloat16 {pairs}, of int8 {integers}"
    return Finding("engine", "ok", text)


def cuda() -> Finding:
    """The CUDA kernels. Triton's serve the same ops, so that nobody has to have them."""
    found = build.cuda()
    if not found.why:
        return Finding("cuda", "ok", f"kernels for {', '.join(map(_target, found.archs))}")
    import torch

    fix = found.fix if torch.cuda.is_available() else ""
    return Finding("cuda", "note", f"no CUDA kernels: {found.why}; Triton's serve GPUs", fix)


def _target(arch: str) -> str:
    """As people say it: "80-real" -> "sm_80", "90-virtual" -> "newer GPUs than sm_90"."""
    number, _, kind = arch.partition("-")
    return f"newer GPUs than sm_{number}" if kind == "virtual" else f"sm_{number}"


def kernels() -> Finding:
    """Whether the ops import, and what the environment asks of them."""
    try:
        from kdgen import kernels
    except (ImportError, ValueError, RuntimeError) as error:
        fix = "unset KDGEN_ISA" if os.environ.get("KDGEN_ISA") else REINSTALL
        return Finding("kernels", "missing", first_line(error), fix)
    asked = os.environ.get("KDGEN_KERNELS")
    how = f"KDGEN_KERNELS={asked}" if asked else "chosen automatically"
    return Finding("kernels", "ok", f"{len(kernels.OPS)} ops, backends {how}")


def backends() -> Finding:
    """Every op once, on the CPU and the GPU: who could not run what they should."""
    import torch

    from kdgen import kernels

    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is told here
        for op in kernels.OPS:
            for device in devices:
                try:
                    op(*op.examples(torch.float32, torch.device(device))[0].args)
                except kernels.Unavailable as error:
                    return Finding("backends", "missing", first_line(error), "unset KDGEN_REQUIRE")
                except ValueError:  # KDGEN_KERNELS asks for what cannot serve; the table says so
                    continue
    gone = kernels.fallbacks()
    if not gone:
        return Finding("backends", "ok", f"no op falls back on {' or '.join(devices)}")
    reasons: dict[str, list[str]] = {}
    for (name, backend), found in gone.items():
        reasons.setdefault(f"{backend}: {found.why}", []).append(name)
    texts = [f"{why}; plain torch runs {', '.join(names)}" for why, names in reasons.items()]
    return Finding("backends", "note", "; ".join(texts))


def triton() -> Finding:
    """Compiles the kernels for GPUs."""
    if has("triton"):
        return Finding("triton", "ok", version_of("triton"))
    return Finding("triton", "note", "not installed; only GPUs and the tests use it")
