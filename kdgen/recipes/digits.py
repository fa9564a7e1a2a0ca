"""Handwritten digits, 8×8: every method in minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdgen.denoiser import Sampling
from kdgen.methods.catch_up import CatchUp
from kdgen.methods.catch_up_one_step import CatchUpOneStep
from kdgen.methods.consistency import Consistency
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.methods.diffusion import Diffusion
from kdgen.methods.edm import Edm
from kdgen.methods.progressive import Progressive
from kdgen.methods.reflow import Reflow
from kdgen.methods.sid import Sid
from kdgen.nets import PRESETS
from kdgen.recipes.base import Stage, Student, Teacher, one
from kdgen.schedules import EDM, Cosine, Flow
from kdgen.training import Ema, Training

TEACHING = Sampling("ddim", steps=16)
EIGHT = Sampling("ddim", steps=8)


def training(steps: int, **changes: Any) -> Training:
    """What suits the small network: the rate falls along a cosine, the average is short."""
    usual = Training(
        steps,
        batch=128,
        lr=2e-3,
        warmup=50,
        decay="cosine",
        betas=(0.9, 0.99),
        ema=Ema.constant(0.995),
        save_every=250,
    )
    return replace(usual, **changes)


def digits() -> Teacher:
    """8×8 handwritten digits in two minutes on two cores."""
    return Teacher(
        "class-conditional teacher on the embedded 8×8 digits",
        PRESETS["tiny8"],
        Cosine(),
        "v",
        Diffusion(error="v"),
        training(700, save_every=200),
        TEACHING,
        data="digits",
    )


def digits_edm() -> Teacher:
    """EDM's loss and preconditioning."""
    return Teacher(
        "digits teacher by EDM, sampled with Heun",
        PRESETS["tiny8"],
        EDM(),
        "edm",
        Edm(),
        training(700, save_every=200),
        Sampling("heun", steps=9, grid="karras"),
        data="digits",
    )


def digits_rectified_flow() -> Teacher:
    """The first flow: straight lines between images and noise."""
    return Teacher(
        "digits teacher by rectified flow, sampled with Euler",
        PRESETS["tiny8"],
        Flow(),
        "velocity",
        Reflow(kind="flow"),
        training(700, save_every=200),
        Sampling("ddim", steps=20),
        data="digits",
    )


def digits_denoising_student() -> Student:
    """One step instead of 16, on the digits teacher."""
    return Student(
        "one-step Denoising Student of the digits teacher",
        one(
            DenoisingStudent(error="l2"),
            training(600, betas=(0.9, 0.98)),
            pairs=8_192,
            how=TEACHING,
        ),
        teacher="digits",
        data="digits",
    )


def digits_progressive() -> Student:
    """16 steps, 8, 4, 2, 1; every round's student is kept."""
    return Student(
        "16 steps to 8, 4, 2, 1 by Progressive Distillation of the digits teacher",
        one(
            Progressive(steps=8, weight="snr+1"),
            training(120, lr=1e-3, warmup=0, decay="linear", ema=Ema.none()),
        ),
        teacher="digits",
        data="digits",
    )


def digits_catch_up() -> Student:
    """Shao et al. 2023's one session, from the teacher's weights."""
    return Student(
        "few-step student by Catch-Up Distillation, started from the digits teacher",
        one(CatchUp(steps=8), training(250)),
        teacher="digits",
        data="digits",
    )


def digits_catch_up_one_step() -> Student:
    """One session, then regression on its trajectories at three points."""
    after = training(150, warmup=20)
    extra = tuple(
        Stage(
            CatchUpOneStep(),
            after,
            pairs=4_096,
            how=TEACHING,
            at=at,
            taught_by=1,
        )
        for at in (8, 11, 14)
    )
    return Student(
        "one-step student by Catch-Up Distillation and its extra training",
        (Stage(CatchUp(steps=8), training(250)), *extra),
        teacher="digits",
        data="digits",
    )


def digits_sid() -> Student:
    """No images: only the teacher's score."""
    return Student(
        "one-step student by Score identity Distillation of the digits teacher, without data",
        one(
            Sid(alpha=1.0),
            training(500, lr=4e-4, warmup=0, decay="constant", betas=(0.0, 0.99), clip=None),
        ),
        teacher="digits",
    )


def digits_consistency() -> Student:
    """Consistency distillation: neighbours of EDM's grid shall agree."""
    return Student(
        "one- or few-step student by consistency distillation of the digits teacher",
        one(Consistency(kind="cd"), training(400, lr=3e-4)),
        teacher="digits",
        data="digits",
    )


def digits_ect() -> Student:
    """Geng et al. 2024's easy consistency tuning: no teacher but its weights."""
    return Student(
        "one- or two-step student by easy consistency tuning of the digits teacher",
        one(
            Consistency(kind="ect", stages=4, times=(1.0, 0.821 / 80)),
            training(700, lr=1e-3, optimizer="radam"),
        ),
        teacher="digits",
        data="digits",
    )


def digits_reflow() -> Student:
    """The teacher's pairs straightened, then one step."""
    return Student(
        "one-step student by reflow and distillation of the digits teacher",
        (
            Stage(Reflow(kind="reflow"), training(250), pairs=6_144, how=TEACHING),
            Stage(Reflow(kind="distill"), training(350), pairs=6_144, how=EIGHT),
        ),
        teacher="digits",
        data="digits",
    )
