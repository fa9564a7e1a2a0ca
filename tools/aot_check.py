"""Compiles every Triton kernel for sm_80 and sm_90 without a GPU; spills and oversize fail.

    python tools/aot_check.py [--json FILE]

Its own process, because under TRITON_INTERPRET kernels are not compilable objects.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kdgen.kernels._triton import group_norm_silu, images, philox

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may take
DTYPES = ("fp32", "fp16", "bf16")
# size, channels, groups, channels last: a whole tile, groups 12 wide, small images, two passes.
NORMS = (
    (1024, 128, 32, True),
    (256, 384, 32, True),
    (64, 256, 32, False),
    (4096, 256, 32, False),
)


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4


@dataclass(frozen=True)
class Row:
    arch: int
    kernel: str
    registers: int
    stack: int
    spilled: int
    shared: int
    ok: bool


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from norms(dtype)
        yield from steps(dtype)
    yield from draws()


def norms(dtype: str) -> Iterator[Case]:
    kernels = {
        "forward": group_norm_silu.forward_kernel,
        "backward": group_norm_silu.backward_kernel,
    }
    for which, kernel in kernels.items():
        for size, channels, groups, last in NORMS:
            width = channels // groups
            tile = group_norm_silu.tile(which, size, width, groups, last)
            constants = {
                "WIDTH": width,
                **{name: True for name in ("HAS_SCALE", "HAS_SHIFT", "HAS_ADD", "ACT")},
                "LAST": last,
                "PLACES": tile.places,
                "SLAB": tile.slab,
                "BLOCK_D": tile.block_d,
                "ONCE": tile.once,
            }
            types = {f"{n}_ptr": f"*{dtype}" for n in ("x", "y", "dx", "dy")}
            types |= {"eps": "fp32"}
            form = "last" if last else "nchw"
            name = f"group_norm {which} {size}x{channels} {form} {dtype}"
            yield Case(name, kernel, types, constants, tile.warps)


def steps(dtype: str) -> Iterator[Case]:
    types = {f"{n}_ptr": f"*{dtype}" for n in ("x_t", "x0", "y")}
    types |= {"a": "fp32", "b": "fp32", "clip": "fp32"}
    each = {"A_EACH": True, "B_EACH": True, "CLIP": True, "BLOCK": 1024}
    yield Case(f"ddim_update {dtype}", images.ddim_update_kernel, types, each)
    types |= {"y_ptr": "*u8"}
    for step in (True, False):
        name = f"{'ddim_update_uint8' if step else 'to_uint8'} {dtype}"
        constants = {**each, "STEP": step, "LAST": False}
        yield Case(name, images.to_uint8_kernel, types, constants)


def draws() -> Iterator[Case]:
    for name, draw in philox.DRAWS.items():
        types = {"index_ptr": "*i64", "out_ptr": "*i64" if draw == 0 else "*fp32"}
        types |= {"key0": "i64", "key1": "i64", "stream": "i64"}
        yield Case(name, philox.philox_kernel, types, {"DRAW": draw, "BLOCK": 256})


def build(case: Case, arch: int) -> Row:
    names = case.kernel.arg_names
    kinds = {
        n: "constexpr" if n in case.constants else case.types.get(n, default(n)) for n in names
    }
    # Pointers and sizes as PyTorch hands them over: multiples of 16.
    aligned = [n for n in names if kinds[n].startswith("*") or n in ("S", "C")]
    source = ASTSource(
        fn=case.kernel,
        signature=kinds,
        constexprs={(names.index(n),): v for n, v in case.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": case.warps})
    registers, stack, spilled = resources(compiled.asm["ptx"])
    shared = int(compiled.metadata.shared)
    ok = spilled == 0 and shared <= SHARED_LIMIT[arch]
    return Row(arch, case.name, registers, stack, spilled, shared, ok)


def default(name: str) -> str:
    return "*fp32" if name.endswith("_ptr") else "i32"


def resources(ptx: str) -> tuple[int, int, int]:
    """Registers, stack bytes and spilled bytes, as the assembler in Triton's wheel reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    found = re.search(r"^\.target\s+(sm_\w+)", ptx, re.M)
    assert found is not None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [str(tool), "-v", f"--gpu-name={found[1]}", str(source), "-o", f"{folder}/out"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    used = re.search(r"Used (\d+) registers", log)
    assert frame is not None
    assert used is not None
    return int(used[1]), int(frame[1]), int(frame[2]) + int(frame[3])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=list(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args()
    work = [(c, a) for c in cases() for a in options.arch if options.only in c.name]
    rows = []
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda job: build(*job), work):
            rows.append(row)
            print(
                f"sm_{row.arch} {row.kernel:<46} registers {row.registers:>3}  stack {row.stack:>4}"
                f"  spilled {row.spilled:>5}  shared {row.shared:>6}  {'ok' if row.ok else 'FAIL'}",
                flush=True,
            )
    if options.json:
        table = {"triton": triton.__version__, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(table, indent=1))
    bad = [r.kernel for r in rows if not r.ok]
    print(f"{len(rows)} kernels, {len(bad)} fail" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
