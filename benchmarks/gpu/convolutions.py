"""What is not ours: how near cuDNN comes to the roof, and whether an upsampling folded into its
convolution is the faster of the two. Decides whether own convolutions are worth writing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clock, expected
from .bench import Bench

GROUP = "convolutions"
DTYPE = torch.bfloat16
# Of the 35.7M network: size, channels in, channels out.
SHAPES = ((32, 128, 128), (32, 384, 128), (16, 256, 256), (8, 256, 256), (4, 256, 256))
UP = (16, 256)  # from 16 to 32 pixels


def run(bench: Bench) -> None:
    batch = 1 if bench.tiny else 528
    for size, c_in, c_out in SHAPES[-1:] if bench.tiny else SHAPES:
        x, weight = _images(bench, batch, c_in, size), _weights(bench, c_out, c_in, 3)
        flops = 2 * 9 * c_in * c_out * size**2 * batch
        _measure(
            bench,
            f"3x3 {size}x{size} {c_in} to {c_out}",
            batch,
            {"cudnn": partial(F.conv2d, x, weight, None, 1, 1)},
            flops,
            2 * (x.numel() + batch * c_out * size**2 + weight.numel()),
        )
    _upsampling(bench, batch)


def _upsampling(bench: Bench, batch: int) -> None:
    size, channels = (4, 32) if bench.tiny else UP
    x, weight = _images(bench, batch, channels, size), _weights(bench, channels, channels, 3)
    summed = _weights(bench, channels, channels, 4)

    def two_steps() -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, None, 1, 1)

    moved = 2 * (5 * x.numel() + summed.numel())
    flops = 2 * 4 * channels**2 * 4 * size**2 * batch  # of the folded form: 4 of 9 products
    _measure(
        bench,
        f"up {size} to {2 * size}, {channels} channels",
        batch,
        {"two steps": two_steps, "folded": partial(F.conv_transpose2d, x, summed, None, 2, 1)},
        flops,
        moved,
    )


def _measure(
    bench: Bench,
    case: str,
    batch: int,
    ways: dict[str, Callable[[], Tensor]],
    flops: float,
    moved: float,
) -> None:
    if not bench.time_for(f"{GROUP} · {case}", 3.0):
        return
    with torch.inference_mode():
        contestants = {n: clock.captured([way], bench.device) for n, way in ways.items()}
    guess = max(flops / expected.ASSUMED[0], moved / expected.ASSUMED[1])
    bench.rows(
        bench.race(contestants),
        next(iter(ways)),
        DTYPE,
        more={n: {"expected": guess} for n in ways},
        group=GROUP,
        case=case,
        batch=batch,
        flops=flops,
        bytes=moved,
        predicted=max(flops / bench.roofs.gemm(DTYPE), moved / bench.roofs.copy()),
    )


def _images(bench: Bench, n: int, channels: int, size: int) -> Tensor:
    x = torch.randn(n, channels, size, size, device=bench.device).to(DTYPE)
    return x.contiguous(memory_format=torch.channels_last)


def _weights(bench: Bench, c_out: int, c_in: int, taps: int) -> Tensor:
    weight = torch.randn(c_out, c_in, taps, taps, device=bench.device) / (taps * c_in**0.5)
    return weight.to(DTYPE).contiguous(memory_format=torch.channels_last)
