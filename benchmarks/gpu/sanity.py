"""Is this the device it says it is, and undisturbed? Its roofs, against what is known of it."""

from __future__ import annotations

import torch

from .. import machine
from .bench import Bench
from .expected import COPY, PRODUCTS

KNOWN = {"NVIDIA H200": (PRODUCTS, COPY)}
TOLERANCE = 0.1


def run(bench: Bench) -> None:
    roofs = bench.roofs
    size = (1 << 22) if bench.tiny else (4 << 30)
    copy = roofs.copy(size)
    products = {d: roofs.gemm(d) for d in (torch.bfloat16, torch.float16)}
    if bench.device.type == "cuda":
        bench.record.note("sanity", gpu_after=machine.gpu())
    bench.record.roofs(roofs.table())
    bench.record.note("sanity", verdict=verdict(bench.device, products[torch.bfloat16], copy))


def verdict(device: torch.device, product: float, copy: float) -> str:
    """ "ok", or which figure is off by more than a tenth, and that ratios still hold."""
    known = KNOWN.get(machine.name(device))
    if known is None:
        return "no known figures for this device; ratios of one run hold all the same"
    off = [
        f"{what} {found:.3g} instead of {wanted:.3g} {unit}"
        for what, found, wanted, unit in (
            ("matrix product", product, known[0], "FLOP/s"),
            ("copy", copy, known[1], "bytes/s"),
        )
        if abs(found / wanted - 1) > TOLERANCE
    ]
    return "ok" if not off else f"{', '.join(off)}: shared or throttled; trust ratios only"
