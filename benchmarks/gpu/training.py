"""A training step at batch 512: time, peak memory, and whether the loss is that of float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kdgen import nets
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.methods.diffusion import Diffusion
from kdgen.schedules import Cosine
from kdgen.training import Training, fit

from .. import model, peers
from . import expected
from .bench import Bench
from .clock import Contestant

GROUP = "training"
NETS = ("ddpm32", "edm32")
PARITY = 20  # steps over which losses are compared
DTYPE = torch.bfloat16


def run(bench: Bench) -> None:
    for name in ("tiny8",) if bench.tiny else NETS:
        if bench.time_for(f"{GROUP} · {name}", 30.0):
            _step(bench, name, 8 if bench.tiny else 512)
    if bench.time_for(f"{GROUP} · loss parity", 20.0):
        _parity(bench, "tiny8" if bench.tiny else "ddpm32", 8 if bench.tiny else 128)


def _step(bench: Bench, name: str, batch: int) -> None:
    contestants, facts = {}, {}
    works = model.walk(nets.PRESETS[name])
    for who, steps in _ways(bench, name, batch).items():
        try:
            for _ in range(4):  # compiles, captures
                next(steps)
            _forget_peak(bench)
            next(steps)
        except RuntimeError as error:
            bench.record.skip(f"{GROUP} · {name} · {who}", str(error)[:200])
            continue
        contestants[who] = Contestant(partial(next, steps))
        facts[who] = {"expected": expected.step(works, batch), "peak_bytes": _peak(bench)}
    style = model.STYLES["kdgen"]
    limits = bench.roofs.gemm(DTYPE), bench.roofs.copy()
    bench.rows(
        bench.race(contestants, rounds=8),
        "torch eager",
        DTYPE,
        more=facts,
        group=GROUP,
        case=f"{name} step",
        batch=batch,
        images=batch,
        flops=3 * batch * model.flops(works),
        bytes=3 * batch * model.activation_bytes(works, style, 2),
        predicted=model.training_roofline(works, style, batch, 2, *limits),
    )


def _ways(bench: Bench, name: str, batch: int) -> dict[str, Iterator[Any]]:
    images = noise_images(4 * batch, nets.PRESETS[name]).to(bench.device)
    training = Training(1_000_000, batch=batch, lr=1e-4, precision="bf16")

    def denoiser() -> Denoiser:
        return Denoiser(nets.preset(name).to(bench.device), Cosine(), "v")

    ways = {
        "kdgen": fit(Diffusion(error="v"), {"student": denoiser()}, images, training),
        "torch eager": peers.training(denoiser(), images, training),
    }
    if not bench.tiny and bench.left > 120:
        ways["torch.compile"] = peers.training(denoiser(), images, training, compiled=True)
    return ways


def _parity(bench: Bench, name: str, batch: int) -> None:
    """Losses of the first steps in bf16 on our ops and in float32, from the same numbers."""
    images = noise_images(4 * batch, nets.PRESETS[name]).to(bench.device)
    curves = {}
    torch.manual_seed(1)
    start = Denoiser(nets.preset(name).to(bench.device), Cosine(), "v")
    for precision in ("bf16", "fp32"):
        training = Training(PARITY, batch=batch, lr=1e-4, precision=precision)  # type: ignore[arg-type]
        steps = fit(Diffusion(error="v"), {"student": start.copy()}, images, training)
        curves[precision] = [float(s.loss) for s in steps]
    worst = max(abs(a / b - 1) for a, b in zip(curves["bf16"], curves["fp32"], strict=True))
    bench.record.note("training", parity={"net": name, "steps": PARITY, "worst": worst, **curves})


def noise_images(n: int, config: nets.UNetConfig) -> Images:
    shape = (n, config.channels, config.resolution, config.resolution)
    return Images(torch.randint(0, 256, shape, dtype=torch.uint8), None, 0, "noise")


def _forget_peak(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)


def _peak(bench: Bench) -> int:
    return torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else 0
