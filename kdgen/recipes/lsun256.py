"""LSUN bedrooms and churches at 256 pixels with the published settings."""

from __future__ import annotations

from dataclasses import replace

from kdgen.denoiser import Sampling
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.nets import PRESETS
from kdgen.recipes.base import Student, Teacher, one, pixels
from kdgen.recipes.cifar10 import cifar10_ddpm, cifar10_denoising_student
from kdgen.training import Ema, Training

UNIFORM = Sampling("ddim", steps=50, grid="stride")


def lsun256_ddpm() -> Teacher:
    """DDPM."""
    base = cifar10_ddpm()
    return replace(
        base,
        purpose="DDPM's LSUN-256 teacher: 113.7 M parameters (published settings)",
        net=PRESETS["ddpm256"],
        training=replace(base.training, batch=64, accumulate=4, lr=2e-5),
        sampling=UNIFORM,
        expected="",
        source="Ho et al. 2020, arXiv:2006.11239, appendix B; steps as on CIFAR-10",
    )


def lsun256_denoising_student() -> Student:
    """Denoising Student, bedrooms: 50 epochs; churches took 40, 1.28 M steps."""
    return Student(
        "one-step LSUN-256 student from 1.024 M pairs (published settings for bedrooms)",
        one(
            DenoisingStudent(error="l2"),
            Training(
                1_600_000, batch=32, accumulate=4, lr=5e-6, warmup=1000, betas=(0.98, 0.999),
                adam_eps=1e-8 / pixels(PRESETS["ddpm256"]), clip=None, ema=Ema.constant(0.9995),
                precision="bf16", save_every=5000,
            ),
            pairs=1_024_000,
            how=UNIFORM,
        ),
        teacher="lsun256-ddpm",
        source="Luhman & Luhman 2021, arXiv:2101.02388, and its released code",
        differs=cifar10_denoising_student().differs,
    )  # fmt: skip
