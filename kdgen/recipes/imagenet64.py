"""ImageNet at 64 pixels, class-conditional, with the published settings."""

from __future__ import annotations

from dataclasses import replace

from kdgen.denoiser import Sampling
from kdgen.methods.catch_up import CatchUp
from kdgen.methods.consistency import Consistency
from kdgen.methods.diffusion import Diffusion
from kdgen.methods.edm import Edm
from kdgen.methods.progressive import Progressive
from kdgen.methods.sid import Sid
from kdgen.nets import PRESETS
from kdgen.recipes.base import BF16, Student, Teacher, one, pixels
from kdgen.recipes.cifar10 import cifar10_cd, cifar10_progressive, cifar10_sid
from kdgen.schedules import EDM, Cosine, Flow
from kdgen.training import Ema, Training

_FP16 = "bfloat16 in place of float16"
_PIXELS = pixels(PRESETS["adm64"])


def imagenet64_edm() -> Teacher:
    """EDM with ADM's network."""
    return Teacher(
        "EDM's ImageNet-64 teacher (ADM, 296 M parameters, published settings)",
        replace(PRESETS["adm64"], dropout=0.1),
        EDM(),
        "edm",
        Edm(),
        Training(
            610_352, batch=4096, accumulate=32, lr=1e-4, warmup=2441,
            adam_eps=1e-8 / (100 * _PIXELS), clip=None,  # the sum was multiplied by 100
            ema=Ema.half_life(50_000_000), precision="bf16", save_every=1000,
        ),
        Sampling("heun", steps=40, grid="karras"),
        source="Karras et al. 2022, arXiv:2206.00364, and its released configuration",
        differs=_FP16,
    )  # fmt: skip


def imagenet64_progressive_teacher() -> Teacher:
    """The base model of Progressive Distillation."""
    return Teacher(
        "base model of Progressive Distillation on ImageNet-64 (published settings)",
        replace(PRESETS["pd64"], dropout=0.1, classes=1000),
        Cosine(),
        "both",
        Diffusion(error="truncated"),
        Training(
            550_000, batch=2048, accumulate=32, lr=3e-4, warmup=1000, ema=Ema.constant(0.9999),
            flip=True, precision="bf16", save_every=1000,
        ),
        Sampling("ddim", steps=1024, clip=1.0),
        source="Salimans & Ho 2022, arXiv:2202.00512, and its released configuration; the number "
        "of steps is not in it",
        differs=cifar10_progressive().differs + f"; {BF16}, of x0 and eps both",
    )  # fmt: skip


def imagenet64_progressive() -> Student:
    """1024 steps to one."""
    return Student(
        "ImageNet-64 student of 512, 256, …, 1 steps by Progressive Distillation",
        one(
            Progressive(steps=512, weight="truncated"),
            Training(
                50_000, batch=2048, accumulate=32, lr=1e-4, decay="linear", ema=Ema.none(),
                flip=True, precision="bf16", save_every=1000,
            ),
        ),
        teacher="imagenet64-progressive-teacher",
        source="Salimans & Ho 2022, arXiv:2202.00512, and its released configuration",
        differs=cifar10_progressive().differs + f"; {BF16}, of x0 and eps both",
    )  # fmt: skip


def imagenet64_catch_up() -> Teacher:
    """Catch-Up Distillation without coupling and without its wavelet term."""
    return Teacher(
        "Catch-Up Distillation on ImageNet-64, from images, without its wavelet term",
        replace(PRESETS["adm64"], dropout=0.1),
        Flow(),
        "velocity",
        CatchUp(),
        Training(
            1_200_000, batch=1024, accumulate=32, lr=4e-4, warmup=5000, clip=None,
            ema=Ema.constant(0.9999), flip=True, precision="bf16", save_every=1000,
        ),
        Sampling("ddim", steps=16),
        source="Shao et al. 2023, arXiv:2305.10769, and its released configuration",
        differs=f"{_FP16}; its wavelet term is missing",
    )  # fmt: skip


def imagenet64_sid() -> Student:
    """Score identity Distillation."""
    return Student(
        "one-step ImageNet-64 student by Score identity Distillation, without data",
        one(
            Sid(alpha=1.2),
            Training(
                122_070, batch=8192, accumulate=256, lr=4e-6, betas=(0.0, 0.999),
                adam_eps=1e-6 / _PIXELS, clip=None, ema=Ema.half_life(2_000_000),
                precision="bf16", save_every=500,
            ),
        ),
        teacher="imagenet64-edm",
        expected="FID 1.524 at one evaluation",
        source="Zhou et al. 2024, arXiv:2404.04057, and its released configuration",
        differs=f"{cifar10_sid().differs}; {_FP16}",
    )  # fmt: skip


def imagenet64_cd() -> Student:
    """Consistency distillation."""
    return Student(
        "ImageNet-64 student by consistency distillation of EDM",
        one(
            Consistency(kind="cd", points=40, mu=0.95),
            Training(
                600_000, batch=2048, accumulate=32, lr=8e-6, optimizer="radam", clip=None,
                ema=Ema.constant(0.9999), precision="bf16", save_every=1000,
            ),
        ),
        teacher="imagenet64-edm",
        source="Song et al. 2023, arXiv:2303.01469, and its released configuration",
        differs=f"{cifar10_cd().differs}; {_FP16}",
    )  # fmt: skip
