"""Makes Triton's CPU interpreter right for bfloat16.

Seen in 3.6 to 3.9: a cast from float32 truncates instead of rounding to nearest even, and `tl.dot`
multiplies the raw bit patterns. (Plain bfloat16 arithmetic is wrong too; the kernels have none.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Patches the interpreter, once."""
    builder: Any = interpreter.InterpreterBuilder
    if hasattr(builder, "kdgen_fixed"):
        return
    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, _as_float32(a), _as_float32(b), d, *rest)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        to = getattr(dst_type, "scalar", dst_type)
        if src.dtype.scalar == tl.float32 and to == tl.bfloat16:
            return interpreter.TensorHandle(nearest_even(src.data), tl.bfloat16)
        return cast(self, src, dst_type)

    for name in [n for n, f in vars(builder).items() if f is cast]:
        setattr(builder, name, cast_impl)
    builder.create_dot, builder.kdgen_fixed = create_dot, True


def nearest_even(x: Any) -> Any:
    """float32 as bfloat16 bit patterns; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)
