"""What folding saved."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from kdgen import kernels
from kdgen.denoiser import Denoiser
from kdgen.fold.folded import Folded
from kdgen.fold.opaque import opaque

_WORDS = {
    "time": "blocks without their embedding",
    "gains": "gains of skip connections in weights",
    "scales": "residual factors in weights",
    "input": "convolutions that scale the input",
    "output": "heads that scale the output",
    "up": "doublings and convolutions in one",
    "queries": "attentions with queries and keys merged",
    "values": "attentions with values and output merged",
    "late_bias": "biases added by the norm",
}


@dataclass(frozen=True)
class Explanation:
    """Each pair is before and after; FLOPs of one evaluation of one image, 2 a multiply-add, of
    convolutions, matrix products and attention."""

    places: dict[str, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]

    def __str__(self) -> str:
        lines = [f"{name:<10} {n:>4} {_WORDS[name]}" for name, n in self.places.items()]
        for what, unit, size, (old, new) in (
            ("parameters", "M", 1e6, self.parameters),
            ("FLOPs", "G", 1e9, self.flops),
        ):
            change = f"{100 * (new / old - 1):+.1f}%"
            lines.append(
                f"{what:<10} {old / size:.3f} {unit} -> {new / size:.3f} {unit} ({change})"
            )
        return "\n".join(lines)


def explain(original: Denoiser, folded: Folded) -> Explanation:
    """What was folded, and what it saved. Networks are counted on "meta", so that nothing is
    computed, unless a part is opaque, and might look at values."""
    device = next(folded.parameters()).device if opaque(folded.net) else torch.device("meta")
    return Explanation(
        dict(folded.places),
        (_parameters(original), _parameters(folded)),
        (_flops(original, device), _flops(folded, device)),
    )


def _parameters(denoiser: Denoiser) -> int:
    return sum(p.numel() for p in denoiser.parameters())


@torch.no_grad()
def _flops(denoiser: Denoiser, device: torch.device) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # brings triton along

    net = copy.deepcopy(denoiser.net).to(device)
    with torch.device(device):
        x, time = torch.zeros(1, *denoiser.shape), torch.zeros(1)
        label = torch.zeros(1, dtype=torch.int64) if denoiser.classes else None
    x = x.to(next(net.parameters()).dtype)
    # The counter knows torch's attention, not other backends'.
    with FlopCounterMode(display=False) as counter, kernels.use("attention=sdpa"):
        net(x, time, label)
    return int(counter.get_total_flops())
