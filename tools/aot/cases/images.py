"""The sampler step and the conversion to bytes."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import images
from tools.aot.case import DTYPES, Case

EACH = {"A_EACH": True, "B_EACH": True, "CLIP": True, "BLOCK": 1024}
FAR = ("x_t_ptr", "y_ptr")


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        types = {f"{n}_ptr": f"*{dtype}" for n in ("x_t", "x0", "y")}
        types |= {"a": "fp32", "b": "fp32", "clip": "fp32"}
        yield Case(f"ddim_update {dtype}", images.ddim_update_kernel, types, EACH, far=FAR)
        bytes_out = types | {"y_ptr": "*u8"}
        for name, step in (("ddim_update_uint8", True), ("to_uint8", False)):
            constants = {**EACH, "STEP": step, "LAST": False}
            yield Case(f"{name} {dtype}", images.to_uint8_kernel, bytes_out, constants, far=FAR)
