"""diffusers' own network with our weights, in eager torch, channels last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdgen.foreign import diffusers
from kdgen.nets import UNet

from ...gpu.rivals import Diffusers
from .. import networks
from . import Job, Refused, Runner
from .torched import DTYPES, Torched


def start(job: Job) -> Runner:
    job.check()
    torch.set_num_threads(job.threads)
    unet = theirs(networks.load(job.folder))
    unet = unet.to(DTYPES[job.variant.dtype], memory_format=torch.channels_last)
    return Torched(networks.AtTime(_Raw(unet), job.case.time).eval().requires_grad_(False))


def theirs(net: UNet) -> nn.Module:
    """google/ddpm-cifar10-32's network with the weights of ours. Refused for another network."""
    unet: Any = Diffusers().unet
    foreign = diffusers.read({"_class_name": "UNet2DModel", **unet.config})
    try:
        unet.load_state_dict(diffusers.exported(net, foreign, unet.state_dict()))
    except diffusers.Unsupported:
        raise Refused("the network is not google/ddpm-cifar10-32's UNet2DModel") from None
    made: nn.Module = unet
    return made


class _Raw(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        y: Tensor = self.unet(x, time, label, return_dict=False)[0]
        return y
