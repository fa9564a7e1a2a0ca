"""50,000 images: noise by address in, uint8 on the CPU out, everybody in the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser
from kdgen.errors import KdgenError
from kdgen.fast import FastGenerator, Generator

from .. import model, peers
from ..students import student
from . import clock, energy, expected, rivals
from .bench import Bench
from .clock import Contestant

GROUP = "images"
DTYPE = torch.bfloat16
ALL = 50_000  # of the public headline, 51.5 s: Luhman & Luhman 2021, arXiv:2101.02388
NETS = ("ddpm32", "edm32", "adm64")
Make = Callable[[int], Tensor]


def run(bench: Bench) -> None:
    """What decides comes first, and every race is written down before the next one is prepared."""
    main = "tiny8" if bench.tiny else NETS[0]
    denoiser = student(main).to(bench.device)
    batch = _batch(bench)
    makers = _race(
        bench, main, denoiser, batch, 8, _own(denoiser, batch) | _others(denoiser, batch)
    )
    if not bench.tiny and bench.time_for(f"{GROUP} · {main} in full", 10.0):
        seconds = clock.elapsed(partial(makers["kdgen fast"], ALL), 1, bench.device)
        bench.record.note("images", full={"images": ALL, "seconds": seconds, "batch": batch})
        print(f"  {ALL:,} images, kdgen fast: {seconds:.2f} s", flush=True)
    _latency(bench, main)
    for mode in () if bench.tiny else rivals.MODES:
        if bench.time_for(f"{GROUP} · {main} · torch.compile {mode}", 90.0):
            more = {f"torch.compile {mode}": partial(_compiled, denoiser, batch, mode)}
            _race(bench, main, denoiser, batch, 8, _own(denoiser, batch) | more)
    for name in () if bench.tiny else NETS[1:]:
        if bench.time_for(f"{GROUP} · {name}", 45.0):
            other = student(name).to(bench.device)
            _race(bench, name, other, batch, 1, _own(other, batch))


def _own(denoiser: Denoiser, batch: int) -> dict[str, Callable[[], Any]]:
    """What every race has."""
    return {
        "kdgen fast": lambda: FastGenerator(denoiser, dtype=DTYPE),
        "torch eager": lambda: peers.PlainGenerator(denoiser, batch, DTYPE),
    }


def _others(denoiser: Denoiser, batch: int) -> dict[str, Callable[[], Any]]:
    return {
        "kdgen fast, tuned": lambda: FastGenerator(denoiser, dtype=DTYPE, tuned=True),
        "kdgen fast, tile 32": lambda: FastGenerator(denoiser, tile=32, dtype=DTYPE),
        "kdgen plain": lambda: Generator(denoiser, batch=batch, dtype=DTYPE),
        "diffusers": lambda: rivals.diffusers(denoiser, batch, DTYPE),
    }


def _race(
    bench: Bench,
    name: str,
    denoiser: Denoiser,
    batch: int,
    batches: int,
    ways: dict[str, Callable[[], Any]],
) -> dict[str, Make]:
    """Rows of those that can run; their makers, warm."""
    makers = _warm(bench, name, batch, ways)
    n = batch * (1 if bench.tiny else batches)
    contestants = {who: Contestant(partial(make, n), n) for who, make in makers.items()}
    timings = bench.race(contestants, rounds=5)
    facts = {who: _facts(bench, denoiser, batch, make, n) for who, make in makers.items()}
    bench.rows(timings, "torch eager", DTYPE, more=facts, **_about(bench, name, denoiser, batch))
    return makers


def _warm(
    bench: Bench, name: str, batch: int, ways: dict[str, Callable[[], Any]]
) -> dict[str, Make]:
    """By name; what cannot run is noted and left out."""
    makers: dict[str, Make] = {}
    for who, build in ways.items():
        try:
            make = build()
            if not isinstance(make, str):
                make(2 * batch)  # more than one tile: from the second on it is a graph
        except (RuntimeError, ImportError, NotImplementedError, KdgenError) as error:
            make = str(error)[:200]
        if isinstance(make, str):
            bench.record.skip(f"{GROUP} · {name} · {who}", make)
        else:
            makers[who] = make
    return makers


def _compiled(denoiser: Denoiser, batch: int, mode: str) -> Make:
    return rivals.compiled(peers.PlainGenerator(denoiser, batch, DTYPE), mode)


def _facts(bench: Bench, denoiser: Denoiser, batch: int, make: Make, n: int) -> dict[str, Any]:
    works = model.walk(denoiser.net)  # type: ignore[arg-type]
    facts: dict[str, Any] = {"expected": expected.images(works, batch) / batch}
    if isinstance(make, FastGenerator):
        facts["graph"] = make.ungraphed or "captured"
    found = energy.of(partial(make, n), bench.device) if bench.left > 15 else "no time"
    if not isinstance(found, str):
        facts |= {"joules": found[0] / n, "watts": found[1]}
    return facts


def _about(bench: Bench, name: str, denoiser: Denoiser, batch: int) -> dict[str, Any]:
    works, style = model.walk(denoiser.net), model.STYLES["kdgen"]  # type: ignore[arg-type]
    limits = bench.roofs.gemm(DTYPE), bench.roofs.copy()
    return {
        "group": GROUP,
        "case": name,
        "batch": batch,
        "images": 1,
        "flops": model.flops(works),
        "bytes": model.activation_bytes(works, style, 2) + model.weight_bytes(works, 2) / batch,
        "predicted": model.roofline(works, style, batch, 2, *limits) / batch,
    }


def _latency(bench: Bench, name: str) -> None:
    """One image, from the call to the bytes on the CPU."""
    if not bench.time_for(f"{GROUP} · {name}, one image", 5.0):
        return
    denoiser = student(name).to(bench.device)
    makers = {
        "kdgen fast": FastGenerator(denoiser, batch=1, tile=1, dtype=DTYPE),
        "torch eager": peers.PlainGenerator(denoiser, 1, DTYPE),
    }
    for make in makers.values():
        make(2)
    timings = bench.race({who: Contestant(partial(make, 1)) for who, make in makers.items()})
    about = _about(bench, f"{name}, one image", denoiser, 1)
    bench.rows(timings, "torch eager", DTYPE, **about)


def _batch(bench: Bench) -> int:
    """Whole waves of tiles at every level of the network."""
    if bench.device.type != "cuda":
        return 8
    return 8 * torch.cuda.get_device_properties(bench.device).multi_processor_count
