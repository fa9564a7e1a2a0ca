"""How far an engine's answer is from torch's: on two random images, as the network sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdgen.denoiser import SIGMA_DATA, TIMES, Levels
from kdgen.fold import Folded

SEED = 0


@dataclass(frozen=True)
class Probe:
    """Inputs of a network, and what torch makes of them."""

    x: Tensor
    time: Tensor
    label: Tensor | None
    expected: Tensor

    def error(self, said: Tensor) -> float:
        """Relative, in the L2 norm. A network that answers with zeros is to be met exactly."""
        difference = float((said.double() - self.expected.double()).norm())
        size = float(self.expected.double().norm())
        if size == 0:
            return 0.0 if difference == 0 else math.inf if difference > 0 else math.nan
        return difference / size


@torch.inference_mode()
def probe(folded: Folded) -> Probe:
    """At the noisiest time some class, at the cleanest none; at the size that images have there."""
    times = torch.tensor([folded.times[-1], folded.times[0]], dtype=torch.float64)
    r = torch.Generator().manual_seed(SEED)
    x_t = torch.randn(2, *folded.shape, generator=r, dtype=torch.float32)
    levels = Levels(folded.schedule, times, x_t.double())
    spread = ((SIGMA_DATA * levels.alpha).square() + levels.sigma.square()).sqrt()
    x = folded.scaled(x_t * spread, levels).float().contiguous(memory_format=torch.channels_last)
    time = TIMES[folded.time](folded.schedule, times)
    label = torch.tensor([folded.classes // 2, -1]) if folded.classes else None
    return Probe(x, time, label, folded.net(x, time, label))
