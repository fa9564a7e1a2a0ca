"""CelebA at 64 pixels with the published settings."""

from __future__ import annotations

from dataclasses import replace

from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import PRESETS
from kdgen.recipes.base import BF16, Student, Teacher, one, pixels
from kdgen.recipes.cifar10 import QUAD, cifar10_ddpm, cifar10_denoising_student
from kdgen.training import Ema, Training

_PIXELS = pixels(PRESETS["ddpm64"])


def celeba64_ddpm() -> Teacher:
    """DDIM's model: DDPM's CIFAR-10 settings on five levels; times in mirrored pairs, and the loss
    a sum, of which Adam's eps and the gradient's limit are told."""
    base = cifar10_ddpm()
    return replace(
        base,
        purpose="DDIM's CelebA-64 teacher: 78.7 M parameters (published settings)",
        net=replace(PRESETS["ddpm64"], dropout=0.1),
        method=Diffusion(error="eps", discrete=1000, antithetic=True),
        training=replace(base.training, adam_eps=1e-8 / _PIXELS, clip=1.0 / _PIXELS),
        expected="FID 6.53 in 100 steps of DDIM",
        source="Song et al. 2020, arXiv:2010.02502, and its released configuration",
        differs=BF16,
    )


def celeba64_denoising_student() -> Student:
    """Denoising Student."""
    return Student(
        "one-step CelebA-64 student from 1.024 M pairs (published settings)",
        one(
            DenoisingStudent(error="l2"),
            Training(
                70_000, batch=512, lr=5e-5, warmup=5000, betas=(0.9, 0.98),
                adam_eps=1e-8 / _PIXELS, clip=None, ema=Ema.constant(0.995), precision="bf16",
                save_every=1000,
            ),
            pairs=1_024_000,
            how=QUAD,
        ),
        teacher="celeba64-ddpm",
        expected="FID 10.68 at one evaluation",
        source="Luhman & Luhman 2021, arXiv:2101.02388, and its released code",
        differs=cifar10_denoising_student().differs,
    )  # fmt: skip
