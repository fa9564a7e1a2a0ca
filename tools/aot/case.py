"""One kernel, ready to be compiled, and the limits it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHS = (80, 90)
DTYPES = ("fp32", "fp16", "bf16")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may take
TENSOR_CORES = {80: "HMMA", 90: "HGMMA"}  # the instruction that multiplies on each


@dataclass(frozen=True)
class Case:
    """`types` by argument; what is not named is "*fp32" where it ends in _ptr, else "i32".

    Never allowed: spilled registers, more shared memory than a block may have. Beyond that a case
    may ask for `registers` at most (threads · registers decide how many blocks share a
    multiprocessor), for `wide`, the least share of the bits of global loads, and of stores, that
    must move 128 at a time, and for `instructions`, by architecture, that must occur, and for
    `without`, a word that may not occur in the PTX. Pointers in `far` must be indexed in 64 bits:
    their tensors may hold more than 2³¹ values.
    """

    name: str
    kernel: Any  # a @triton.jit function
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3
    multiples: tuple[str, ...] = ("S", "C")  # sizes that are multiples of 16, beside all pointers
    registers: int = 255
    wide: float = 0.0
    instructions: Mapping[int, str] = field(default_factory=dict)
    without: str = ""
    archs: tuple[int, ...] = ARCHS
    far: tuple[str, ...] = ()

    def kinds(self) -> dict[str, str]:
        """Triton's type of every argument, in order."""
        return {
            name: "constexpr" if name in self.constants else self.types.get(name, _default(name))
            for name in self.kernel.arg_names
        }

    def aligned(self) -> list[str]:
        """Arguments that are multiples of 16, as PyTorch's pointers and our sizes are."""
        kinds = self.kinds()
        return [n for n, kind in kinds.items() if kind.startswith("*") or n in self.multiples]


def _default(name: str) -> str:
    return "*fp32" if name.endswith("_ptr") else "i32"
