"""A network's input: three channels padded to eight, and four as they are."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import scale_input
from tools.aot.case import Case


def cases() -> Iterator[Case]:
    for x, y in (("fp32", "bf16"), ("fp32", "fp32")):
        for channels, wide, last in ((8, 8, True), (8, 8, False), (3, 4, True)):
            yield Case(
                f"scale_input {x} to {y} {channels} {'nhwc' if last else 'nchw'}",
                scale_input.scale_input_kernel,
                {"x_ptr": f"*{x}", "y_ptr": f"*{y}", "step_ptr": "*i64", "c": "fp32"},
                {
                    "EACH": True,
                    "TABLE": True,
                    "LAST": last,
                    "CHANNELS": channels,
                    "WIDTH": wide,
                    "BLOCK": 1024 // wide,
                },
                multiples=("S",),
                registers=64,
                far=("x_ptr", "y_ptr"),
            )
