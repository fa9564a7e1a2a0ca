"""What was expected before anything was measured: bytes and FLOPs over the rates of an H200, times
the share of them that good kernels reach. A prediction, kept beside what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..model import STYLES, Work, roofline, training_roofline
from ..op_model import Cost

PRODUCTS, COPY = 790e12, 4.3e12  # bf16 FLOP/s and bytes/s of one H200
IN_CONVOLUTIONS, IN_COPIES = 0.63, 0.82  # shares assumed for cuDNN and for kernels like these

Rates = tuple[float, float]
ASSUMED: Rates = (PRODUCTS * IN_CONVOLUTIONS, COPY * IN_COPIES)


def op(cost: Cost, flops: float = PRODUCTS) -> float:
    """Seconds of one call that finds its inputs in memory, not in cache."""
    return max(cost.flops / flops, cost.bytes / (COPY * IN_COPIES))


def images(works: Sequence[Work], batch: int, *, style: str = "kdgen") -> float:
    """Seconds of a batch, bf16."""
    return roofline(works, STYLES[style], batch, 2, *ASSUMED)


def step(works: Sequence[Work], batch: int, *, style: str = "kdgen") -> float:
    """Seconds of a training step, bf16."""
    return training_roofline(works, STYLES[style], batch, 2, *ASSUMED)
