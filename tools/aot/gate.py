"""Compiles a case and holds it to its limits."""

from __future__ import annotations

from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tools.aot import assembly
from tools.aot.case import SHARED_LIMIT, Case


@dataclass(frozen=True)
class Row:
    """What was found; `broken` says which limits do not hold."""

    arch: int
    kernel: str
    registers: int
    stack: int
    spilled: int
    shared: int
    wide_loads: float
    wide_stores: float
    broken: tuple[str, ...]

    def __str__(self) -> str:
        verdict = "; ".join(self.broken)
        return (
            f"sm_{self.arch} {self.kernel:<52} registers {self.registers:>3}  spilled "
            f"{self.spilled:>4}  shared {self.shared:>6}  128-bit loads {self.wide_loads:>4.0%} "
            f"stores {self.wide_stores:>4.0%}  {'FAIL: ' + verdict if verdict else 'ok'}"
        )


def build(case: Case, arch: int) -> Row:
    compiled = triton.compile(
        _source(case),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )
    used = assembly.resources(compiled.asm["ptx"])
    moved = assembly.accesses(compiled.asm["ptx"])
    shared = int(compiled.metadata.shared)
    loads, stores = (assembly.wide_share(moved[way]) for way in ("ld", "st"))
    missing = _missing(case, arch, compiled.asm["cubin"])
    unwanted = case.without and case.without in compiled.asm["ptx"]
    near = [p for p in case.far if not assembly.far(compiled.asm["ttir"], p)]
    limits = {
        f"{used.spilled} bytes spilled": used.spilled == 0,
        f"more than {case.registers} registers": used.registers <= case.registers,
        f"more than {SHARED_LIMIT[arch]} bytes shared": shared <= SHARED_LIMIT[arch],
        f"loads: expected {case.wide:.0%} in 128 bits": loads >= case.wide,
        f"stores: expected {case.wide:.0%} in 128 bits": stores >= case.wide,
        f"no {missing}": not missing,
        f"{case.without} in the PTX": not unwanted,
        f"{', '.join(near)} indexed in 32 bits": not near,
    }
    broken = tuple(limit for limit, holds in limits.items() if not holds)
    return Row(
        arch,
        case.name,
        used.registers,
        used.stack,
        used.spilled,
        shared,
        round(loads, 3),
        round(stores, 3),
        broken,
    )


def _source(case: Case) -> ASTSource:
    kinds = case.kinds()
    names = list(kinds)
    return ASTSource(
        fn=case.kernel,
        signature=kinds,
        constexprs={(names.index(n),): v for n, v in case.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in case.aligned()},
    )


def _missing(case: Case, arch: int, cubin: bytes) -> str:
    wanted = case.instructions.get(arch, "")
    return wanted if wanted and not assembly.occurrences(cubin, wanted) else ""
