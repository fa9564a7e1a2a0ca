"""One step of a chain, into floats and into bytes."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import chain_step
from tools.aot.case import Case

FAR = ("x_t_ptr", "raw_ptr", "y_ptr")


def cases() -> Iterator[Case]:
    for x_t, raw in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")):
        types = {"x_t_ptr": f"*{x_t}", "raw_ptr": f"*{raw}", "step_ptr": "*i64", "clip": "fp32"}
        for out, last, wide in (
            ("", True, False),
            (" bytes", True, True),
            (" bytes", False, False),
        ):
            yield Case(
                f"chain_step{out} {x_t} of {raw}{' 8 apart' if wide else ''}",
                chain_step.chain_step_kernel,
                types | {"y_ptr": "*u8" if out else f"*{x_t}"},
                {"CLIP": True, "WIDE": wide, "BYTES": bool(out), "LAST": last, "BLOCK": 1024},
                multiples=("total",),
                registers=64,
                wide=0.0 if out else 0.5,  # the row of the table is five small loads
                far=FAR,
            )
