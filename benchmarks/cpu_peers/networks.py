"""The networks, unfolded, at the one time of a one-step student; and as a torch module of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdgen import checkpoint, nets
from kdgen.denoiser import TIMES, Denoiser
from kdgen.nets import UNet
from kdgen.nets.layers import Pointwise
from kdgen.sample import BUNDLED
from kdgen.schedules import LinearVP

from .. import model, peers
from .case import Case, inputs, reference

SEED = 20_210_107
_CHECKPOINT = "checkpoint"
# DDPM's last index; EDM's ln(sigma_max)/4, sigma_max = 80 (Karras et al. 2022, table 1).
_LAST, _EDM = 999.0, math.log(80) / 4


def _preset(name: str, time: float) -> tuple[UNet, float]:
    """Every layer as torch draws it, and diffusers with it: what begins at (nearly) zero would be
    multiplied quickly, and could be wrong unseen."""
    torch.manual_seed(SEED)
    net = nets.preset(name)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return net, time


def _digits() -> tuple[UNet, float]:
    student = checkpoint.load(BUNDLED)
    embeds = TIMES[student.time](student.schedule, torch.ones(1, dtype=torch.float64))
    assert isinstance(student.net, UNet)
    return student.net, embeds.item()


NETWORKS: dict[str, Callable[[], tuple[UNet, float]]] = {
    "ddpm32": lambda: _preset("ddpm32", _LAST),
    "edm32": lambda: _preset("edm32", _EDM),
    "digits": _digits,
    "tiny16": lambda: _preset("tiny16", _LAST),  # for --quick
}
BATCHES = {"ddpm32": (1, 8, 32), "edm32": (1, 8, 32), "digits": (1, 64), "tiny16": (1, 2)}


class AtTime(nn.Module):
    """A network at one time: (x) or (x, label) -> its raw output, float32, whatever its dtype."""

    time: Tensor

    def __init__(self, net: nn.Module, time: float) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("time", torch.tensor([time], dtype=torch.float32))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        y: Tensor = self.net(x, self.time, label)
        return y.float()

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> AtTime:
        """999 needs more than bfloat16's 8 bits."""
        before = self.time
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.time = before
        return self


def write(name: str, folder: Path, batches: Sequence[int]) -> Case:
    """Everything that the workers need to know about a network, in `folder`."""
    net, time = NETWORKS[name]()
    case = Case(
        name,
        time,
        net.shape,
        net.classes,
        model.flops(model.walk(net)),
        sum(p.numel() for p in net.parameters()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Only the network is used; a checkpoint wants to know what it means.
    checkpoint.save(folder / _CHECKPOINT, Denoiser(net, LinearVP(), "x0"))
    answer = at_time(net, time)
    for batch in batches:
        np.save(reference(folder, batch), answer(*tensors(*inputs(case, batch))).numpy())
    case.write(folder)
    return case


def load(folder: Path) -> UNet:
    net = checkpoint.load(folder / _CHECKPOINT).net
    assert isinstance(net, UNet)
    return net


def at_time(net: UNet, time: float, dtype: torch.dtype = torch.float32) -> AtTime:
    """In plain torch, channels last, ready to run and without gradients."""
    plain = usual(peers.plain(net)).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return AtTime(plain, time).eval().requires_grad_(False)


def usual(net: UNet) -> UNet:
    """With torch's own 1×1 convolutions, in place: ours are products image by image, which promise
    equal bits for any batch, and which compilers do not see through."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Pointwise):
                conv = nn.Conv2d(child.in_channels, child.out_channels, 1, device="meta")
                conv.weight, conv.bias = child.weight, child.bias
                setattr(parent, name, conv)
    return net


def tensors(x: np.ndarray, label: np.ndarray | None) -> tuple[Tensor, ...]:
    """As a network takes them: channels last."""
    image = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
    return (image,) if label is None else (image, torch.from_numpy(label))
