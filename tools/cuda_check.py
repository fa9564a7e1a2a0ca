"""Reads the compiled CUDA kernels without a GPU; spills, a stack or missing instructions fail.

    python -m tools.cuda_check [--json FILE]

What a block needs of shared memory is held to its limit where the sources compute it. Without nvcc
there is nothing to check; with KDGEN_STRICT, nvcc and no kernels is a failure too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tools.aot.assembly import TOOLS
from tools.preparation.steps import STRICT

TYPES = {"f": "fp32", "N5kdgen4HalfE": "fp16", "NS_4HalfE": "fp16", "NS_8BFloat16E": "bf16"}
WANTED = {"0": "dq", "1": "dk", "2": "dv"}
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9.]*)", re.M)

# Registers of a thread decide how many blocks share a multiprocessor: 65,536 / (threads · blocks).
REGISTERS = {
    "group_norm_silu_forward": 80,  # three blocks of 256
    "group_norm_silu_backward": 128,  # two
    "": 255,
}
COPIES = "LDGSTS.E.BYPASS.128"
# What must occur, so that tensor cores multiply and memory moves 16 bytes at a time.
INSTRUCTIONS = {
    "group_norm_silu_forward": (COPIES, "STG.E.128"),
    "group_norm_silu_backward": (COPIES, "STG.E.128"),
    "bias_residual": ("LDG.E.128", "STG.E.128"),
    "attention_forward": (COPIES, "STG.E.128", "HMMA", "LDSM"),
    "attention_backward": (COPIES, "STG.E.128", "HMMA", "LDSM"),
    "step": ("LDG.E.128", "STG.E.128"),
    "chain_step": ("LDG.E.128", "STG.E.128"),
    "scale_input": ("LDG.E.128", "STG.E.128"),
}


@dataclass
class Kernel:
    """One kernel for one architecture, and which limits do not hold."""

    arch: str
    name: str
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def judge(self) -> None:
        op = self.name.split()[0]
        most = REGISTERS.get(op, REGISTERS[""])
        if self.registers > most:
            self.broken.append(f"{self.registers} registers, at most {most}")
        if self.stack or self.local:
            self.broken.append(f"a stack of {self.stack} bytes, {self.local} local")
        for wanted in INSTRUCTIONS.get(op, ()):
            if not self.count(wanted):
                self.broken.append(f"no {wanted}")

    def count(self, instruction: str) -> int:
        return sum(n for i, n in self.instructions.items() if f"{i}.".startswith(f"{instruction}."))


def short(mangled: str) -> str:
    """ "…24attention_forward_kernelINS_4HalfELi64EEEv…" -> "attention_forward fp16 64"."""
    name, rest = _kernel(mangled)
    words = [name]
    words += [dtype for code, dtype in TYPES.items() if rest.startswith(f"I{code}")]
    words += re.findall(r"Li(\d+)E", rest)
    words += [WANTED[n] for n in re.findall(r"WantedE(\d)", rest)]
    return " ".join(words)


def _kernel(mangled: str) -> tuple[str, str]:
    """The name of a kernel, which its length stands before, and what follows it.

    The last that fits: before it stands a digest of the source's path, which may end like a length.
    """
    name, rest = mangled, ""
    for found in re.finditer(r"(?=(\d\d?)([a-z]\w*?)_kernel(?![a-z_]))", mangled):
        if len(found[2]) + len("_kernel") == int(found[1]):
            name, rest = found[2], mangled[found.end(2) + len("_kernel") :].partition("v")[0]
    return name, rest


def dumped(module: Path, what: str) -> str:
    command = [str(TOOLS / "cuobjdump"), what, str(module)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def by_arch(listing: str) -> Iterator[tuple[str, str]]:
    """The parts of a listing, an architecture each."""
    for part in listing.split("Fatbin elf code:")[1:]:
        found = re.search(r"^arch = (\w+)", part, re.M)
        if found:
            yield found[1], part


def kernels(module: Path) -> list[Kernel]:
    """Every kernel in the module for every architecture it has machine code for."""
    found: dict[tuple[str, str], Kernel] = {}
    for arch, part in by_arch(dumped(module, "--dump-resource-usage")):
        for mangled, numbers in re.findall(r"Function (\S+):\s+(REG:.*)", part):
            used = RESOURCES.search(numbers)
            assert used is not None
            registers, stack, shared, local = map(int, used.groups())
            name = short(mangled)
            found[arch, name] = Kernel(arch, name, registers, stack, local, shared)
    for arch, part in by_arch(dumped(module, "--dump-sass")):
        for text in part.split("Function : ")[1:]:
            mangled, _, body = text.partition("\n")
            found[arch, short(mangled)].instructions.update(INSTRUCTION.findall(body))
    for kernel in found.values():
        kernel.judge()
    return list(found.values())


def absent() -> str:
    """Why there is nothing to check; "" when there is."""
    from kdgen import build

    return build.cuda().why


def demanded() -> bool:
    """Whether a build here must have made them: it is strict, has nvcc, and may use it."""
    from kdgen import build

    left_out = os.environ.get("KDGEN_CUDA", "").upper() == "OFF" or os.environ.get("KDGEN_PURE")
    return STRICT and bool(build.nvcc()) and not left_out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    if why := absent():
        print(f"CUDA kernels: nothing to check, {why}")
        return 1 if demanded() else 0
    from kdgen import _cuda

    rows = kernels(Path(_cuda.__file__))
    for k in rows:
        counts = "  ".join(f"{i} {k.count(i):>4}" for i in ("HMMA", COPIES, "LDG.E.128"))
        verdict = "; ".join(k.broken) or "ok"
        print(f"{k.arch} {k.name:<36} registers {k.registers:>3}  {counts}  {verdict}")
    if options.json:
        options.json.write_text(json.dumps([asdict(k) for k in rows], indent=1))
    bad = [f"{k.arch} {k.name}" for k in rows if k.broken]
    print(f"{len(rows)} CUDA kernels, {len(bad)} fail" + (f": {', '.join(bad)}" if bad else ""))
    archs = {k.arch for k in rows}
    if not rows or any(not any(k.name.startswith(op) for k in rows) for op in INSTRUCTIONS):
        print(f"kernels are missing from the module ({', '.join(sorted(archs))})")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
