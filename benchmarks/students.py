"""One-step students with random weights: what costs what a trained one costs."""

from __future__ import annotations

import torch
from torch import nn

from kdgen import nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.schedules import LinearVP


def student(name: str) -> Denoiser:
    """The preset `name` as a residual one-step student, which predicts x0 = z − F(z)."""
    net = nets.preset(name)
    wake(net)
    return Denoiser(net, LinearVP(), "residual", sampling=Sampling("ddim", steps=1, clip=1.0))


@torch.no_grad()
def wake(net: nn.Module) -> None:
    """Small numbers for what starts at zero, as after training: zeros are cheaper to multiply."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.02)
