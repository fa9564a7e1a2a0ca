"""Named runs: everything that decides what is learned, as one frozen value each."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from kdgen.data import Images
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import DataError, UsageError
from kdgen.methods.base import Method
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.methods.diffusion import Diffusion
from kdgen.nets import PRESETS, UNet, UNetConfig
from kdgen.schedules import Cosine, LinearVP, NoiseSchedule
from kdgen.training import Ema, Training


@dataclass(frozen=True)
class Teacher:
    """A diffusion model to train. Size, channels and classes of `net` follow the data."""

    purpose: str
    net: UNetConfig
    schedule: NoiseSchedule
    parameterisation: str
    method: Method
    training: Training
    sampling: Sampling
    data: str | None = None  # where the images are, if kdgen brings them
    conditional: bool = True  # use the labels, where the data has them

    def denoiser(self, images: Images) -> Denoiser:
        """The untrained teacher for these images. Raises DataError when their size does not fit."""
        channels, height, width = images.shape
        classes = images.classes if self.conditional else 0
        if height != width:
            raise DataError(
                f"{images.name}: images are {height}×{width}; expected squares. "
                "Pass --size to crop and resize."
            )
        try:
            facts = replace(self.net, resolution=height, channels=channels, classes=classes)
            net = UNet(facts)
        except ValueError as error:
            raise DataError(f"{images.name}: {error} Pass --size.") from error
        return Denoiser(net, self.schedule, self.parameterisation, sampling=self.sampling)

    def config(self) -> dict[str, Any]:
        """JSON-able; what a run directory keeps."""
        return _config(self)


@dataclass(frozen=True)
class Student:
    """A distillation by Denoising Student, from `pairs` teacher pairs."""

    purpose: str
    method: DenoisingStudent
    training: Training
    pairs: int
    sampling: Sampling  # how the teacher makes its images
    data: str | None = None

    def config(self) -> dict[str, Any]:
        """JSON-able; what a run directory keeps."""
        return _config(self)


def _config(recipe: Teacher | Student) -> dict[str, Any]:
    method = recipe.method.config()
    return {"method": method, "training": asdict(recipe.training)}


def digits() -> Teacher:
    """8×8 handwritten digits in two minutes on two cores."""
    return Teacher(
        "class-conditional teacher on the embedded 8×8 digits",
        PRESETS["tiny8"],
        Cosine(),
        "v",
        Diffusion(error="v"),
        Training(
            700,
            batch=128,
            lr=2e-3,
            warmup=50,
            decay="cosine",
            betas=(0.9, 0.99),
            ema=Ema.constant(0.995),
            save_every=200,
        ),
        Sampling("ddim", steps=16),
        data="digits",
    )


def digits_denoising_student() -> Student:
    """One step instead of 16, on the digits teacher."""
    return Student(
        "one-step Denoising Student of the digits teacher",
        DenoisingStudent(error="l2"),
        Training(
            600,
            batch=128,
            lr=2e-3,
            warmup=50,
            decay="cosine",
            betas=(0.9, 0.98),
            ema=Ema.constant(0.995),
            save_every=250,
        ),
        pairs=8_192,
        sampling=Sampling("ddim", steps=16),
        data="digits",
    )


def images_tiny() -> Teacher:
    """Your own small images on a CPU."""
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
        sampling=Sampling("ddim", steps=32),
    )


def cifar10_ddpm() -> Teacher:
    """Ho et al. 2020, arXiv:2006.11239, appendix B; published FID 3.17, 1000 steps."""
    return Teacher(
        "DDPM's CIFAR-10 teacher: 35.7 M parameters, 800,000 steps (published settings)",
        replace(PRESETS["ddpm32"], dropout=0.1),
        LinearVP(),
        "eps",
        Diffusion(error="eps", discrete=1000),
        Training(
            800_000,
            batch=128,
            lr=2e-4,
            warmup=5000,
            ema=Ema.constant(0.9999),
            flip=True,
            precision="bf16",
            save_every=5000,
        ),
        Sampling("ddim", steps=100, grid="quad"),
        conditional=False,
    )


def cifar10_denoising_student() -> Student:
    """Luhman & Luhman 2021, arXiv:2101.02388 and its released code; FID 9.36 (published)."""
    return Student(
        "one-step CIFAR-10 student from 1.024 M pairs (published settings)",
        DenoisingStudent(error="l1"),
        Training(
            50_000, batch=512, lr=2e-4, warmup=5000, betas=(0.9, 0.98), clip=None,
            ema=Ema.constant(0.995), precision="bf16", save_every=1000,
        ),
        pairs=1_024_000,
        sampling=Sampling("ddim", steps=100, grid="quad"),
    )  # fmt: skip


Recipe = TypeVar("Recipe", Teacher, Student)

TEACHERS: dict[str, Callable[[], Teacher]] = {
    "digits": digits,
    "images-tiny": images_tiny,
    "cifar10-ddpm": cifar10_ddpm,
}
STUDENTS: dict[str, Callable[[], Student]] = {
    "digits-denoising-student": digits_denoising_student,
    "images-tiny-denoising-student": images_tiny_denoising_student,
    "cifar10-denoising-student": cifar10_denoising_student,
}


def teacher(name: str) -> Teacher:
    """The recipe called `name`; UsageError with the nearest names otherwise."""
    return _find(name, TEACHERS, "train")


def student(name: str) -> Student:
    """The recipe called `name`; UsageError with the nearest names otherwise."""
    return _find(name, STUDENTS, "distill")


def _find(name: str, known: dict[str, Callable[[], Recipe]], verb: str) -> Recipe:
    if name in known:
        return known[name]()
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Pick one."
    raise UsageError(f"{verb}: unknown recipe {name!r}; expected {', '.join(known)}. {hint}")


def main(argv: Sequence[str] | None = None) -> None:
    """`kdgen recipes`: the list, by verb."""
    parser = argparse.ArgumentParser(prog="python -m kdgen.recipes", description=main.__doc__)
    parser.parse_args(argv)
    for verb, known in (("train", TEACHERS), ("distill", STUDENTS)):
        print(f"python -m kdgen.{verb} …")
        for name, make in known.items():
            print(f"  {name:<30} {make().purpose}")


if __name__ == "__main__":
    main()
