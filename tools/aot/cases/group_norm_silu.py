"""Group norm, forward and backward, at sizes of published networks."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import group_norm_silu
from tools.aot.case import DTYPES, Case

# size, channels, groups, channels last: a whole tile, groups 12 wide, small images, two passes.
SHAPES = (
    (1024, 128, 32, True),
    (256, 384, 32, True),
    (64, 256, 32, False),
    (4096, 256, 32, False),
)
KERNELS = {
    "forward": group_norm_silu.forward_kernel,
    "backward": group_norm_silu.backward_kernel,
}


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for which in KERNELS:
            for size, channels, groups, last in SHAPES:
                yield _case(dtype, which, size, channels, groups, last)


def _case(dtype: str, which: str, size: int, channels: int, groups: int, last: bool) -> Case:
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
    types = {f"{n}_ptr": f"*{dtype}" for n in ("x", "y", "dx", "dy")} | {"eps": "fp32"}
    form = "last" if last else "nchw"
    name = f"group_norm {which} {size}x{channels} {form} {dtype}"
    return Case(name, KERNELS[which], types, constants, tile.warps)
