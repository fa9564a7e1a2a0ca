"""Group norm, forward and backward, at sizes of published networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kdgen.kernels._triton import group_norm_channels_last as rows
from kdgen.kernels._triton import group_norm_contiguous as planes
from kdgen.kernels._triton import group_norm_cuts as cuts
from kdgen.kernels._triton import group_norm_silu as launch
from tools.aot.case import Case

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TRAINED = ("fp32", "bf16")  # to the compiler, the other 16-bit type is the same work
CPU = torch.device("cpu")
WHICH = ("forward", "backward")

# Places, channels, channels of a second input behind them, groups: DDPM's largest, a group that
# has channels of both inputs, lanes to spare, one program for several groups, ADM's largest.
ROWS = (
    (1024, 128, 0, 32),
    (1024, 256, 128, 32),
    (256, 576, 0, 32),
    (16, 256, 256, 32),
    (4096, 192, 192, 32),
)
PLANES = ((64, 256, 32), (4096, 256, 32))


def cases() -> Iterator[Case]:
    for which in WHICH:
        for dtype in DTYPES if which == "forward" else TRAINED:
            for size, own, more, groups in ROWS:
                yield _rows(which, dtype, size, own, more, groups)
        for size, channels, groups in PLANES:
            yield _planes(which, "bf16", size, channels, groups)


def _rows(which: str, dtype: str, size: int, own: int, more: int, groups: int) -> Case:
    channels = own + more
    cut = cuts.chosen(which, size, channels, groups, True, DTYPES[dtype], CPU)
    held = size <= cut.places
    constants = _options() | launch.constants(size, channels, groups, cut) | {"MORE": more > 0}
    if held:
        constants["FULL"] = launch.full(size, channels, groups, cut)
    elif which == "forward":
        constants["CHUNKS"] = cuts.power(-(-size // cut.places))
    kernel = getattr(rows, f"{'held' if held else 'walked'}_{which}_kernel")
    behind = f"+{more}" if more else ""
    name = f"group_norm {which} {size}x{own}{behind} {'held' if held else 'walked'} {dtype}"
    sizes = ("S", "C", "CX")
    most = 128 if held and which == "forward" else 255  # 8 warps: two programs a multiprocessor
    return Case(
        name,
        kernel,
        _types(dtype),
        constants,
        cut.warps,
        multiples=sizes,
        registers=most,
        wide=0.7,
    )


def _planes(which: str, dtype: str, size: int, channels: int, groups: int) -> Case:
    cut = cuts.chosen(which, size, channels, groups, False, DTYPES[dtype], CPU)
    constants = _options() | {
        "WIDTH": channels // groups,
        "PLACES": cut.places,
        "SLAB": cut.groups,
        "BLOCK_D": cuts.power(channels // groups),
        "ONCE": size <= cut.places,
    }
    kernel = getattr(planes, f"{which}_kernel")
    name = f"group_norm {which} {size}x{channels} nchw {dtype}"
    return Case(name, kernel, _types(dtype), constants, cut.warps)


def _options() -> dict[str, Any]:
    return {name: True for name in ("HAS_SCALE", "HAS_SHIFT", "HAS_ADD", "ACT")}


def _types(dtype: str) -> dict[str, str]:
    images = ("x", "more", "y", "dx", "dmore", "dy")
    return {f"{n}_ptr": f"*{dtype}" for n in images} | {"eps": "fp32"}
