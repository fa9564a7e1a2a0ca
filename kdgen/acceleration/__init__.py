"""A drop-in for one network at fixed times: folded, fused and, on a GPU, one CUDA graph.

`fast = kdgen.accelerate(unet, t=999)`; then `fast(x)` is what `unet(x, 999)` was, and `fast.report`
says how closely. The package is not called `accelerate`, so that the name `kdgen.accelerate` stays
the function's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from kdgen.acceleration.accelerated import Accelerated
from kdgen.acceleration.parity import Report, compare
from kdgen.acceleration.source import source
from kdgen.engine import Wish

__all__ = ["Accelerated", "Report", "accelerate"]


def accelerate(
    unet: nn.Module,
    t: float | Sequence[float],
    *,
    dtype: torch.dtype | None = None,
    batch: int | None = None,
    device: torch.device | str | None = None,
    folds: Collection[str] | None = None,
    images: int = 2,
    engine: str = "auto",
    accuracy: str | None = None,
) -> Accelerated:
    """`(x, label=None, t=None) -> unet(x, t)` for these times only; weights are copied.

    `unet` is a diffusers `UNet2DModel` or a kdgen `UNet`, whose output is given, or a `Denoiser`,
    whose x0 is. `t` is what it is called with: timesteps, or for a `Denoiser` times in (0, 1]; of
    several, each call names its own. `dtype` (of the network) and `device` default to its own. On a
    GPU every call runs `batch` images at once; None: as many as it was given, with a graph for each
    number. `folds`: names of `fold.KNOWN`; None: all that save something. `.report` compares with
    the original on so many random `images`; 0 leaves it out. `engine` and `accuracy` as in
    `FastGenerator`. Raises ValueError for a network that is not understood, naming what is not.
    """
    asked = source(unet, tuple(t) if isinstance(t, Sequence) else (float(t),))
    wish = Wish(engine, accuracy)
    fast = Accelerated(asked, dtype=dtype, batch=batch, device=device, folds=folds, wish=wish)
    if images:
        fast.report = compare(asked, fast, images)
    return fast
