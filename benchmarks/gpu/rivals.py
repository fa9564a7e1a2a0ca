"""What else there is to run the same work: torch.compile, SDPA's back ends, apex, diffusers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdgen.denoiser import Denoiser

from .. import peers
from .bench import Bench

Way = Callable[..., Tensor]
MODES = ("default", "max-autotune")
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def of_op(op: str, args: tuple[Any, ...], bench: Bench) -> dict[str, Way]:
    """By name; nothing that is not there, or that a rehearsal would wait minutes for."""
    found: dict[str, Way] = {}
    if not bench.tiny and not op.startswith("philox"):
        found["torch.compile"] = torch.compile(peers.OPS[op], dynamic=False)
    if op == "attention" and bench.device.type == "cuda":
        found |= {f"sdpa {name}": _sdpa(backend) for name, backend in SDPA.items()}
    if op == "group_norm_silu" and (apex := apex_norm(args)):
        found["apex"] = apex
    return found


def _sdpa(backend: SDPBackend) -> Way:
    def run(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
        with sdpa_kernel(backend):
            return peers.OPS["attention"](q, k, v, heads, scale)

    return run


def apex_norm(args: tuple[Any, ...]) -> Way | None:
    """apex's channels-last group norm, for the calls that it serves."""
    try:
        module = importlib.import_module("apex.contrib.group_norm")
    except ImportError:
        return None
    x, weight, bias, groups, eps, scale, shift, add, act, *more = args
    if any(v is not None for v in (scale, shift, add, *more)) or x.is_contiguous():
        return None
    norm = module.GroupNorm(groups, x.shape[1], eps, device=x.device, act="silu" if act else "")
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    return lambda x, *_: norm(x)


def compiled(peer: peers.PlainGenerator, mode: str) -> peers.PlainGenerator:
    """The same generator with its network compiled; the first call takes minutes."""
    peer.denoiser.net = torch.compile(peer.denoiser.net, mode=mode, dynamic=False)  # type: ignore[assignment]
    return peer


class Diffusers(nn.Module):
    """diffusers' own network with the configuration of google/ddpm-cifar10-32, random weights,
    called as ours are: (x, time, label) -> the prediction."""

    def __init__(self) -> None:
        super().__init__()
        unet = importlib.import_module("diffusers").UNet2DModel
        self.unet = unet(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            attention_head_dim=None,
        )

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        y: Tensor = self.unet(x, time).sample
        return y


def diffusers(denoiser: Denoiser, batch: int, dtype: torch.dtype) -> Callable[[int], Tensor] | str:
    """n images of diffusers' network in eager torch, or why there is none."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    device = next(denoiser.parameters()).device
    try:
        net = Diffusers().to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (ImportError, RuntimeError, TypeError) as error:
        return f"diffusers does not load: {error}"
    net.eval().requires_grad_(False)

    @torch.inference_mode()
    def images(n: int) -> Tensor:
        parts = []
        for first in range(0, n, batch):
            z = torch.randn(min(batch, n - first), 3, 32, 32, device=device)
            z = z.contiguous(memory_format=torch.channels_last)
            raw = net(z.to(dtype), torch.tensor(999, device=device)).float()
            parts.append(peers.to_uint8(z - raw).cpu())
        return torch.cat(parts)

    return images
