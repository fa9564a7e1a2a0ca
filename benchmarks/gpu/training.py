"""A training step at batch 512: time, peak memory, and whether the loss is that of float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch

from kdgen import graph, nets
from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.errors import KdgenError
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
    """Ours and eager first, and on paper; then what has to be compiled for minutes."""
    ways = _ways(bench, name, batch)
    _race(bench, name, batch, ways)
    key = f"{GROUP} · {name} · torch.compile"
    if not bench.tiny and bench.time_for(key, 90.0):
        _race(bench, name, batch, _ways(bench, name, batch) | _compiled(bench, name, batch))


def _race(bench: Bench, name: str, batch: int, ways: Mapping[str, Iterator[Any]]) -> None:
    contestants, facts = {}, {}
    works = model.walk(nets.PRESETS[name])
    for who, steps in ways.items():
        try:
            for _ in range(graph.WARMUP):  # compiles
                next(steps)
            _forget_peak(bench)
            next(steps)  # records: what a replay needs is allocated now
            facts[who] = {"expected": expected.step(works, batch), "peak_bytes": _peak(bench)}
            next(steps)
        except (RuntimeError, KdgenError) as error:
            bench.record.skip(f"{GROUP} · {name} · {who}", str(error)[:200])
            continue
        contestants[who] = Contestant(partial(next, steps))
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
    images, training = _material(bench, name, batch)
    student = _denoiser(bench, name)
    return {
        "kdgen": fit(Diffusion(error="v"), {"student": student}, images, training),
        "torch eager": peers.training(_denoiser(bench, name), images, training),
    }


def _compiled(bench: Bench, name: str, batch: int) -> dict[str, Iterator[Any]]:
    images, training = _material(bench, name, batch)
    denoiser = _denoiser(bench, name)
    return {"torch.compile": peers.training(denoiser, images, training, compiled=True)}


def _material(bench: Bench, name: str, batch: int) -> tuple[Images, Training]:
    images = noise_images(4 * batch, nets.PRESETS[name]).to(bench.device)
    # "on": a step that silently went on without its graph would be another figure.
    captured: Literal["on", "off"] = "on" if bench.device.type == "cuda" else "off"
    training = Training(1_000_000, batch=batch, lr=1e-4, precision="bf16", graph=captured)
    return images, training


def _denoiser(bench: Bench, name: str) -> Denoiser:
    return Denoiser(nets.preset(name).to(bench.device), Cosine(), "v")


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
