"""CelebA at 64 pixels with the published settings."""

from __future__ import annotations

from dataclasses import replace

from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.nets import PRESETS
from kdgen.recipes.base import Student, Teacher, one
from kdgen.recipes.cifar10 import QUAD, cifar10_ddpm
from kdgen.training import Ema, Training


def celeba64_ddpm() -> Teacher:
    """DDIM's model: DDPM's CIFAR-10 settings on five levels."""
    return replace(
        cifar10_ddpm(),
        purpose="DDIM's CelebA-64 teacher: 78.7 M parameters (published settings)",
        net=replace(PRESETS["ddpm64"], dropout=0.1),
        expected="FID 6.53 in 100 steps of DDIM",
        source="Song et al. 2020, arXiv:2010.02502, and its released configuration",
    )


def celeba64_denoising_student() -> Student:
    """Denoising Student."""
    return Student(
        "one-step CelebA-64 student from 1.024 M pairs (published settings)",
        one(
            DenoisingStudent(error="l2"),
            Training(
                70_000, batch=512, lr=5e-5, warmup=5000, betas=(0.9, 0.98), clip=None,
                ema=Ema.constant(0.995), precision="bf16", save_every=1000,
            ),
            pairs=1_024_000,
            how=QUAD,
        ),
        teacher="celeba64-ddpm",
        expected="FID 10.68 at one evaluation",
        source="Luhman & Luhman 2021, arXiv:2101.02388, and its released code",
    )  # fmt: skip
