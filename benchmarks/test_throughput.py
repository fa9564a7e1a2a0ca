"""One-step students end to end: noise by address in, uint8 images on the CPU out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import model, peers, suite
from benchmarks.roofs import Roofs
from benchmarks.students import student
from kdgen import checkpoint
from kdgen.denoiser import Denoiser
from kdgen.fast import FastGenerator, Generator
from kdgen.nets import UNet
from kdgen.sample import BUNDLED

HEADLINE = (
    51.5  # seconds for 50,000 images, Luhman & Luhman 2021 (arXiv:2101.02388), device not named
)
HEADLINE_IMAGES = 50_000
KINDS = {"fast": FastGenerator, "plain": Generator}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_cifar10_student(
    device: torch.device, kind: str, dtype: torch.dtype, suite: suite.Suite, benchmark: Any
) -> None:
    name = "tiny32" if suite.smoke else "ddpm32"
    row = _time(
        suite,
        benchmark,
        student(name).to(device),
        name,
        kind,
        dtype,
        *_sizes(suite, device, dtype),
    )
    if row is not None:
        seconds = HEADLINE_IMAGES * row.seconds / row.images
        how = "measured" if row.images == HEADLINE_IMAGES else f"extrapolated from {row.images}"
        suite.notes.setdefault(device, []).append(
            f"{HEADLINE_IMAGES:,} images, {name} {kind} {row.dtype}: {seconds:,.2f} s on "
            f"{row.device} ({how}; {row.flops / row.seconds / 1e12:.3g} TFLOP/s); published "
            f"headline, on a device its authors do not name: {HEADLINE} s"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_bundled_digits_student(
    device: torch.device, kind: str, dtype: torch.dtype, suite: suite.Suite, benchmark: Any
) -> None:
    if not BUNDLED.exists():
        pytest.skip(f"{BUNDLED.name} is not in kdgen/assets yet")
    bundled = checkpoint.load(BUNDLED).to(device)
    n, batch = (16, 8) if suite.smoke else (1024, 256) if device.type == "cpu" else (50_000, 2048)
    _time(suite, benchmark, bundled, "digits student", kind, dtype, n, batch)


def _sizes(suite: suite.Suite, device: torch.device, dtype: torch.dtype) -> tuple[int, int]:
    """Images a call, and batch."""
    if suite.smoke:
        return 8, 8
    if device.type == "cpu":
        return 16, 8
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    n = HEADLINE_IMAGES if dtype is not torch.float32 else HEADLINE_IMAGES // 5
    return n, 8 * processors  # whole waves of tiles at every level of the network


def _time(
    suite: suite.Suite,
    benchmark: Any,
    denoiser: Denoiser,
    case: str,
    kind: str,
    dtype: torch.dtype,
    n: int,
    batch: int,
) -> Any:
    ours = KINDS[kind](denoiser, batch=batch, dtype=dtype)
    peer = peers.PlainGenerator(denoiser, batch, dtype)
    assert ours.nfe == 1
    assert isinstance(denoiser.net, UNet)
    works, style, itemsize = model.walk(denoiser.net), model.STYLES["kdgen"], dtype.itemsize
    moved = model.activation_bytes(works, style, itemsize) * n
    moved += model.weight_bytes(works, itemsize) * n / batch

    def predict(roofs: Roofs) -> float:
        limits = roofs.gemm(dtype), roofs.copy()
        return n / batch * model.roofline(works, style, batch, itemsize, *limits)

    row = suite.measure(
        benchmark,
        ours.device,
        dtype,
        [lambda: ours(n)],
        [lambda: peer(n)],
        predict=predict,
        budget=15.0,
        group="throughput",
        case=case,
        implementation=kind,
        batch=batch,
        images=n,
        flops=model.flops(works) * n,
        bytes=moved,
    )
    # Out of memory, a generator goes on with smaller batches, and the row would say another.
    assert ours.batch == batch
    return row
