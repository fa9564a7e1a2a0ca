"""What the group norms of both layouts load and return."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_or(pointer, offset, mask, HAS: tl.constexpr):
    """As float32; zeros where the input is absent."""
    if HAS:
        return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)
    return tl.zeros(offset.shape, tl.float32)


@triton.jit
def reciprocal_deviation(spread, count, eps):
    """1/√(spread/count + eps), correctly rounded at every step."""
    return tl.div_rn(1.0, tl.sqrt_rn(spread / count + eps))


@triton.jit
def silu(z):
    return z / (1.0 + tl.exp(-z))


@triton.jit
def silu_slope(z):
    sigma = 1.0 / (1.0 + tl.exp(-z))
    return sigma * (1.0 + z * (1.0 - sigma))
