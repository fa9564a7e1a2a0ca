"""Your own small images on a CPU."""

from __future__ import annotations

from kdgen.denoiser import Sampling
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import PRESETS
from kdgen.recipes.base import Student, Teacher, one
from kdgen.schedules import Cosine
from kdgen.training import Ema, Training


def images_tiny() -> Teacher:
    """16 to 32 pixels, minutes to hours on a CPU."""
    return Teacher(
        "small teacher for your own images of 16 to 32 pixels, minutes on a CPU",
        PRESETS["tiny32"],
        Cosine(),
        "v",
        Diffusion(error="v"),
        Training(
            3000,
            batch=64,
            lr=1e-3,
            warmup=100,
            decay="cosine",
            ema=Ema.constant(0.998),
            flip=True,
            save_every=250,
        ),
        Sampling("ddim", steps=32),
    )


def images_tiny_denoising_student() -> Student:
    """One step instead of 32, for a teacher trained with images-tiny."""
    return Student(
        "one-step Denoising Student of an images-tiny teacher",
        one(
            DenoisingStudent(error="l2"),
            Training(
                4000,
                batch=64,
                lr=1e-3,
                warmup=100,
                decay="cosine",
                betas=(0.9, 0.98),
                ema=Ema.constant(0.998),
                save_every=250,
            ),
            pairs=16_384,
            how=Sampling("ddim", steps=32),
        ),
        teacher="images-tiny",
    )
