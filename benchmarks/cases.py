"""The calls that every op is timed on: shapes of the CIFAR-10 and the digits network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BOTH = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """`warm`: so small that a network finds it in cache; timed on one copy, others on as many as no
    cache holds. `trained`: its gradients are timed too."""

    name: str
    batch: int
    make: Callable[[torch.device, torch.dtype], tuple[Any, ...]]
    dtypes: Sequence[torch.dtype] = BOTH
    warm: bool = False
    trained: bool = False


def cases(op: str, device: torch.device, *, smoke: bool = False) -> list[Case]:
    """Batches suit the device; in a smoke run they are tiny. KeyError for an op without cases."""
    found = _CASES[op](device.type == "cuda")
    return [_tiny(case) for case in found] if smoke else found


def _tiny(case: Case) -> Case:
    return replace(case, batch=2, make=lambda device, dtype: _first(2, case.make(device, dtype)))


def _first(n: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first images of every argument that has one entry an image."""
    first = next(a for a in args if isinstance(a, Tensor))
    batch = len(first)
    return tuple(
        a[:n].clone(memory_format=torch.preserve_format)
        if isinstance(a, Tensor) and len(a) == batch and (a.ndim > 1 or a is first)
        else a
        for a in args
    )


def _norms(gpu: bool) -> list[Case]:
    # 528 images are whole waves of 132 multiprocessors; 8 is a patient user's batch on a CPU.
    big, small = (528 if gpu else 8), 128
    last = torch.channels_last
    first = torch.contiguous_format
    shapes: list[tuple[str, int, int, int, bool, torch.memory_format, bool]] = [
        ("128x32x32", big, 128, 32, False, last, True),
        ("128x32x32 nchw", big, 128, 32, False, first, False),
        ("384x32x32", big, 384, 32, False, last, False),  # behind a concatenation
        ("256x16x16 +time", big, 256, 16, True, last, True),
        ("256x8x8 +time", big, 256, 8, True, last, False),
        ("512x4x4", big, 512, 4, False, last, False),
        ("digits 32x8x8 +time", small, 32, 8, True, first, True),
        ("digits 64x4x4", small, 64, 4, False, first, False),
    ]
    return [
        Case(
            name,
            batch,
            _norm_args(batch, channels, size, add, layout),
            warm=name.startswith("digits"),
            trained=trained,
        )
        for name, batch, channels, size, add, layout, trained in shapes
    ]


def _norm_args(
    batch: int, channels: int, size: int, add: bool, layout: torch.memory_format
) -> Callable[[torch.device, torch.dtype], tuple[Any, ...]]:
    def make(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        # Every channel has its own mean and width, as behind a convolution.
        means, widths = torch.randn(channels, 1, 1) * 2, 0.5 + torch.rand(channels, 1, 1)
        x = torch.randn(batch, channels, size, size) * widths + means
        weight, bias = 1 + torch.randn(channels) / 4, torch.randn(channels) / 2
        time = torch.randn(batch, channels) if add else None
        groups = min(32, channels // 4)

        def put(v: Tensor) -> Tensor:
            return v.to(device, dtype)

        x = put(x).contiguous(memory_format=layout)
        plus = None if time is None else put(time)
        return (x, put(weight), put(bias), groups, 1e-6, None, None, plus, True, None)

    return make


def _attentions(gpu: bool) -> list[Case]:
    """DDPM's (DDPM++'s is the first), ADM's at 64×64, the digits network's."""
    ddpm, adm = (528, 132) if gpu else (8, 2)
    shapes: list[tuple[str, int, int, int, int]] = [
        ("256x16x16 1 head", ddpm, 256, 16, 1),
        ("256x4x4 1 head", ddpm, 256, 4, 1),
        ("384x32x32 6 heads", adm, 384, 32, 6),
        ("576x16x16 9 heads", adm, 576, 16, 9),
        ("768x8x8 12 heads", adm, 768, 8, 12),
        ("digits 64x4x4 1 head", 128, 64, 4, 1),
    ]
    return [
        Case(
            name,
            batch,
            _attention_args(batch, channels, size, heads),
            warm=name.startswith("digits"),
            trained=True,
        )
        for name, batch, channels, size, heads in shapes
    ]


def _attention_args(
    batch: int, channels: int, size: int, heads: int
) -> Callable[[torch.device, torch.dtype], tuple[Any, ...]]:
    """q, k and v are slices of what one convolution made."""

    def make(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        qkv = torch.randn(batch, size, size, 3 * channels).to(device, dtype)
        return (*qkv.movedim(-1, 1).chunk(3, 1), heads, None)

    return make


def _image_cases(count: int) -> Callable[[bool], list[Case]]:
    """One-step students: a = 0 would let an implementation skip x_t, so a is a middle step's."""

    def found(gpu: bool) -> list[Case]:
        batch = 1056 if gpu else 256

        def images(shape: tuple[int, int, int]) -> Callable[..., tuple[Any, ...]]:
            def make(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
                values = [
                    (torch.randn(batch, *shape) * 0.8 + 0.1)
                    .to(device, dtype)
                    .contiguous(memory_format=torch.channels_last)
                    for _ in range(count)
                ]
                return (*values, 0.73, 0.31, 1.0) if count == 2 else tuple(values)

            return make

        return [
            Case("3x32x32", batch, images((3, 32, 32))),
            Case("digits 1x8x8", batch, images((1, 8, 8)), warm=True),
        ]

    return found


def _draws(dtype: torch.dtype) -> Callable[[bool], list[Case]]:
    def found(gpu: bool) -> list[Case]:
        batch = 1056 if gpu else 256

        def make(device: torch.device, _: torch.dtype) -> tuple[Any, ...]:
            index = torch.arange(5_000_000_000, 5_000_000_000 + batch, device=device)
            return (2026, 0, index, 3 * 32 * 32)

        return [Case("3x32x32", batch, make, (dtype,))]

    return found


_CASES: dict[str, Callable[[bool], list[Case]]] = {
    "group_norm_silu": _norms,
    "attention": _attentions,
    "ddim_update": _image_cases(2),
    "ddim_update_uint8": _image_cases(2),
    "to_uint8": _image_cases(1),
    "philox_uint32": _draws(torch.int64),
    "philox_uniform": _draws(torch.float32),
    "philox_normal": _draws(torch.float32),
}
