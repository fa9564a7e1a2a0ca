"""Training in bfloat16: what is stored in which precision and layout, and that the fused ops learn
what plain torch learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdgen import kernels, nets
from kdgen.denoiser import Denoiser
from kdgen.loop import Loop
from kdgen.methods.diffusion import Diffusion
from kdgen.schedules import Cosine
from kdgen.training import Training, fit

WIDTH, BATCH, RERUNS = 8, 6, 3
UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-9}  # largest relative error of rounding a number once


class Source:
    """Smooth images of three channels, of which no order of the axes is natural to all."""

    name, digest, classes, shape = "smooth", "0", 0, (3, 8, 8)

    def __len__(self) -> int:
        return 60

    def take(self, index: Tensor) -> tuple[Tensor, None]:
        grid, k = torch.linspace(-1, 1, 8), index[:, None, None, None]
        colour = torch.arange(3)[:, None, None]
        return torch.sin(3 * grid[:, None] + k) * torch.cos((2 + colour) * grid - k), None


def student(lively: Any, **changes: Any) -> Denoiser:
    config = nets.UNetConfig(8, width=WIDTH, mult=(1, 2), blocks=1, attention=(4,), **changes)
    return Denoiser(lively(nets.UNet(config)), Cosine(), "v")


def training(precision: Any, steps: int) -> Training:
    return Training(steps, batch=BATCH, lr=2e-3, warmup=5, precision=precision, graph="off")


class Look(TorchDispatchMode):
    """What operators make: activations (of an image each, more channels than an image has), and
    what the norms and convolutions are given."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []
        self.statistics: list[Tensor] = []
        self.calls: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor) and self.is_activation(x):
                self.made.append((name, x))
        if "group_norm_silu" in name or "convolution" in name:
            self.calls.setdefault(name, set()).add(args[0].dtype)
        if name == "group_norm_silu":
            self.statistics.append(out[1])
        return out

    def is_activation(self, x: Tensor) -> bool:
        return x.dim() == 4 and len(x) == BATCH and x.shape[1] >= WIDTH and x.shape[2] == x.shape[3]


@pytest.mark.parametrize("scale_shift", [False, True], ids=["add", "film"])
def test_activations_are_bfloat16_and_channels_last_there_and_back(lively: Any, scale_shift: bool):
    """Noise and images arrive as (B, 3, H, W) in memory too: from the first convolution on, it is
    the weights' layout."""
    net = student(lively, scale_shift=scale_shift)
    loop = Loop(Diffusion(), {"student": net}, Source(), training("bf16", 1), None)
    with Look() as look:
        list(loop.steps())
    assert len(look.made) > 100
    for name, x in look.made:
        assert x.dtype == torch.bfloat16, f"{name} makes {x.dtype} {tuple(x.shape)}"
        if name not in ("view", "_unsafe_view", "transpose", "permute", "split", "slice"):
            assert x.is_contiguous(memory_format=torch.channels_last), f"{name} {tuple(x.shape)}"
    assert set(look.calls) == {
        "convolution", "convolution_backward", "group_norm_silu", "group_norm_silu_backward",
    }  # fmt: skip
    assert all(dtypes == {torch.bfloat16} for dtypes in look.calls.values())
    assert all(x.dtype == torch.float32 for x in look.statistics)


@pytest.mark.gpu
def test_on_a_gpu_activations_are_bfloat16_and_channels_last(lively: Any):
    """Hooks rather than operators: the backward pass has a thread of its own there."""
    net, seen = student(lively).to("cuda"), []
    for module in net.net.modules():
        if isinstance(module, torch.nn.Conv2d | nets.layers.GroupNorm):
            module.register_forward_hook(lambda m, args, out: seen.append(out))
            module.register_full_backward_hook(lambda m, into, out: seen.extend(out))
    next(fit(Diffusion(), {"student": net}, Source(), training("bf16", 1)))
    activations = [x for x in seen if x.shape[1] >= WIDTH]
    assert len(activations) > 20
    assert all(x.dtype == torch.bfloat16 for x in activations)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in activations)


def losses(net: Denoiser, backend: str, precision: str, steps: int, device: str) -> Tensor:
    with kernels.use(f"group_norm_silu={backend}"):
        run = fit(
            Diffusion("v"), {"student": net}, Source(), training(precision, steps), device=device
        )
        return torch.stack([step.loss.cpu() for step in run])


def follows(lively: Any, backend: str, precision: str, steps: int, device: str) -> None:
    """A curve of a fused op is no further from plain torch's than plain torch's own are from each
    other, from weights that differ by one rounding."""
    plain = losses(student(lively), "reference", precision, steps, device)
    fused = losses(student(lively), backend, precision, steps, device)
    noise = torch.zeros(steps)
    for seed in range(RERUNS):
        nudged, r = student(lively), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in nudged.parameters():
                p.mul_(1 + UNIT[precision] * (2 * torch.rand(p.shape, generator=r) - 1))
        rerun = losses(nudged, "reference", precision, steps, device)
        noise = torch.maximum(noise, (rerun - plain).abs())
    assert (fused - plain).norm() <= 2 * noise.norm()
    assert plain[-5:].mean() < 0.8 * plain[:5].mean()  # it learns
    other = losses(student(lively, norm_eps=0.1), backend, precision, steps, device)
    assert (other - plain).norm() > 2 * noise.norm()  # and another function is seen to be one


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fused_ops_learn_what_plain_torch_learns(lively: Any, precision: str):
    follows(lively, "native", precision, 15, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_the_fused_ops_learn_what_plain_torch_learns(lively: Any, precision: str):
    follows(lively, "triton", precision, 60, "cuda")
