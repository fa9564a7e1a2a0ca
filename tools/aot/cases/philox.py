"""Draws by address."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import philox
from tools.aot.case import Case


def cases() -> Iterator[Case]:
    for name, draw in philox.DRAWS.items():
        types = {"index_ptr": "*i64", "out_ptr": "*i64" if draw == 0 else "*fp32"}
        types |= {"key0": "i64", "key1": "i64", "stream": "i64"}
        yield Case(
            name, philox.philox_kernel, types, {"DRAW": draw, "BLOCK": 256}, far=("out_ptr",)
        )
