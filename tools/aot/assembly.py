"""What the assemblers in Triton's wheel say about a compiled kernel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[A-Za-z_][\w:]*)*?(?:\.v(\d))?\.[bfsu](\d+)\b")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global(?:\.[\w:]+)* \[[^]]*\], \[[^]]*\], (\w+)")


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes
    spilled: int  # bytes, stores and loads together


def resources(ptx: str) -> Resources:
    found = re.search(r"^\.target\s+(sm_\w+)", ptx, re.M)
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        log = _run("ptxas", "-v", f"--gpu-name={found[1]}", str(source), "-o", f"{folder}/out")
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    used = re.search(r"Used (\d+) registers", log)
    assert frame is not None
    assert used is not None
    return Resources(int(used[1]), int(frame[1]), int(frame[2]) + int(frame[3]))


def accesses(ptx: str) -> dict[str, Counter[int]]:
    """{"ld" or "st": {bits: how many instructions move so many}}, of global memory."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for way, vector, bits in _ACCESS.findall(ptx):
        found[way][int(vector or 1) * int(bits)] += 1
    for size in _COPY.findall(ptx):
        found["ld"][8 * int(size, 0)] += 1
    return found


def wide_share(counts: Counter[int]) -> float:
    """The share of the bits that move 128 or more at a time."""
    total = sum(bits * n for bits, n in counts.items())
    return sum(bits * n for bits, n in counts.items() if bits >= 128) / total if total else 1.0


def occurrences(cubin: bytes, instruction: str) -> int:
    """How often a machine instruction stands in the program."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.cubin")
        source.write_bytes(cubin)
        listing = _run("cuobjdump", "--dump-sass", str(source))
    return len(re.findall(rf"\b{instruction}\b", listing))


def far(ttir: str, pointer: str) -> bool:
    """Whether what is first added to a kernel's pointer are offsets of 64 bits."""
    names = {f"%{pointer}"}
    names |= set(re.findall(rf"(%[\w.#]+) = tt\.splat %{pointer}\b", ttir))
    added = re.compile(r"tt\.addptr (%[\w.#]+), .*?(?:x|\b)(i\d+)>?(?: loc|$)", re.M)
    found = {bits for base, bits in added.findall(ttir) if base in names}
    return found == {"i64"}


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(TOOLS / tool), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr
