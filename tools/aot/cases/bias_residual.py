"""The end of a residual branch."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import bias_residual
from tools.aot.case import Case

# Channels innermost and not, at the widths of real networks: columns of the matrix.
COLUMNS = ((True, 128), (True, 384), (False, 1024))


def cases() -> Iterator[Case]:
    for dtype in ("fp32", "bf16"):
        types = {f"{n}_ptr": f"*{dtype}" for n in ("x", "residual", "bias", "y", "dx", "dy")}
        types |= {"partial_ptr": "*fp32", "scale": "fp32"}
        for last, cols in COLUMNS:
            tile = bias_residual.tile(cols)
            constants = {"LAST": last, "R": tile.r, "C": tile.c}
            name = f"{cols} {'nhwc' if last else 'nchw'} {dtype}"
            shared = {"multiples": ("COLS", "CHANNELS"), "far": ("x_ptr", "residual_ptr", "y_ptr")}
            yield Case(
                f"bias_residual forward {name}",
                bias_residual.forward_kernel,
                types,
                {**constants, "BIAS": True},
                registers=64,
                wide=0.85,
                **shared,
            )
            yield Case(
                f"bias_residual backward {name}",
                bias_residual.backward_kernel,
                types,
                {**constants, "SCALED": True, "STEPS": bias_residual.STEPS},
                registers=80,
                wide=0.95,
                **{**shared, "far": ("dy_ptr", "dx_ptr", "partial_ptr")},
            )
