"""CIFAR-10 with the published settings."""

from __future__ import annotations

from dataclasses import replace

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
from kdgen.recipes.base import BF16, Stage, Student, Teacher, one, pixels
from kdgen.schedules import EDM, Cosine, Flow, LinearVP
from kdgen.training import Ema, Training

QUAD = Sampling("ddim", steps=100, grid="quad")
_EPS = 1e-8 / pixels(PRESETS["edm32"])  # Adam's, where the published loss is a sum over pixels
_LPIPS = "an l2 error in place of LPIPS"
_PARTS = "the gradient is clipped once, not on every device before they are averaged"


def cifar10_ddpm() -> Teacher:
    """DDPM."""
    return Teacher(
        "DDPM's CIFAR-10 teacher: 35.7 M parameters, 800,000 steps (published settings)",
        replace(PRESETS["ddpm32"], dropout=0.1),
        LinearVP(),
        "eps",
        Diffusion(error="eps", discrete=1000),
        Training(
            800_000, batch=128, lr=2e-4, warmup=5000, ema=Ema.constant(0.9999), flip=True,
            precision="bf16", save_every=5000,
        ),
        QUAD,
        conditional=False,
        expected="FID 3.17 in 1000 ancestral steps, 4.16 in 100 of DDIM",
        source="Ho et al. 2020, arXiv:2006.11239, appendix B; Song et al. 2020, arXiv:2010.02502",
        differs=BF16,
    )  # fmt: skip


def cifar10_edm() -> Teacher:
    """EDM, unconditional."""
    return Teacher(
        "EDM's unconditional CIFAR-10 teacher (DDPM++, published settings)",
        replace(PRESETS["edm32"], dropout=0.13),
        EDM(),
        "edm",
        Edm(augment=0.12),
        Training(
            390_625, batch=512, lr=1e-3, warmup=19_531, adam_eps=_EPS, clip=None,
            ema=Ema.half_life(500_000), save_every=5000,
        ),
        Sampling("heun", steps=18, grid="karras"),
        conditional=False,
        expected="FID 1.97 at 35 evaluations (the best of 3; others measure 2.04 to 2.08)",
        source="Karras et al. 2022, arXiv:2206.00364, and its released configuration",
    )  # fmt: skip


def cifar10_edm_cond() -> Teacher:
    """EDM, with classes."""
    return replace(
        cifar10_edm(),
        purpose="EDM's class-conditional CIFAR-10 teacher (DDPM++, published settings)",
        net=replace(PRESETS["edm32-cond"], dropout=0.13),
        conditional=True,
        expected="FID 1.79 at 35 evaluations (the best of 3)",
    )


def cifar10_edm_ncsnpp() -> Teacher:
    """EDM on the network of the consistency models."""
    return replace(
        cifar10_edm(),
        purpose="EDM's unconditional CIFAR-10 teacher on NCSN++, which cifar10-cd starts from",
        net=replace(PRESETS["ncsnpp32"], dropout=0.13),
        expected="",
        source="the settings of cifar10-edm; the teacher of Song et al. 2023, arXiv:2303.01469",
    )


def cifar10_progressive_teacher() -> Teacher:
    """The base model of Progressive Distillation, in float32: x0 in bfloat16 is wrong by more than
    the noise that the last of many steps takes away, and truncated SNR weighs that fully."""
    return Teacher(
        "base model of Progressive Distillation on CIFAR-10 (published settings)",
        replace(PRESETS["pd32"], dropout=0.2),
        Cosine(),
        "x0",
        Diffusion(error="truncated"),
        Training(
            800_000, batch=128, lr=2e-4, warmup=1000, weight_decay=0.001,
            ema=Ema.constant(0.9999), flip=True, save_every=5000,
        ),
        Sampling("ddim", steps=1024, clip=1.0),
        conditional=False,
        source="Salimans & Ho 2022, arXiv:2202.00512, and its released configuration; the number "
        "of steps is not in it",
        differs=_PARTS,
    )  # fmt: skip


def cifar10_rectified_flow() -> Teacher:
    """1-rectified flow."""
    return Teacher(
        "1-rectified flow on CIFAR-10 (DDPM++, published settings)",
        replace(PRESETS["rf32"], dropout=0.15),
        Flow(),
        "velocity",
        Reflow(kind="flow"),
        Training(
            800_000, batch=128, lr=2e-4, warmup=5000, ema=Ema.constant(0.999999), flip=True,
            precision="bf16", save_every=5000,
        ),
        Sampling("rk45"),
        conditional=False,
        expected="FID 2.58 with RK45",
        source="Liu et al. 2022, arXiv:2209.03003, and its released configuration",
        differs=BF16,
    )  # fmt: skip


def cifar10_catch_up() -> Teacher:
    """One session of Catch-Up Distillation, from scratch."""
    return Teacher(
        "Catch-Up Distillation on CIFAR-10 in one session, from images (published settings)",
        replace(PRESETS["edm32"], augments=0, dropout=0.13, skip_gain=0.75),
        Flow(),
        "velocity",
        CatchUp(phi=0.75, coupling=True, solver="velocity_heun", steps=8),
        Training(
            500_000, batch=128, lr=2e-4, warmup=5000, clip=None, ema=Ema.constant(0.9999),
            flip=True, precision="bf16", save_every=5000,
        ),
        Sampling("velocity_heun", steps=8),
        conditional=False,
        time="raw",
        expected="FID 2.80 at 15 evaluations",
        source="Shao et al. 2023, arXiv:2305.10769, and its released configuration",
        differs=BF16,
    )  # fmt: skip


def cifar10_denoising_student() -> Student:
    """Denoising Student."""
    return Student(
        "one-step CIFAR-10 student from 1.024 M pairs (published settings)",
        one(
            DenoisingStudent(error="l1"),
            Training(
                50_000, batch=512, lr=2e-4, warmup=5000, betas=(0.9, 0.98), adam_eps=_EPS,
                clip=None, ema=Ema.constant(0.995), precision="bf16", save_every=1000,
            ),
            pairs=1_024_000,
            how=QUAD,
        ),
        teacher="cifar10-ddpm",
        expected="FID 9.36, IS 8.36 at one evaluation",
        source="Luhman & Luhman 2021, arXiv:2101.02388, and its released code",
        differs=f"{BF16}; the last average is kept, not the one with the least held-out error",
    )  # fmt: skip


def cifar10_progressive() -> Student:
    """8192 steps to one, in float32 as its teacher is."""
    return Student(
        "CIFAR-10 student of 4096, 2048, …, 1 steps by Progressive Distillation",
        one(
            Progressive(steps=4096, weight="truncated"),
            Training(
                50_000, batch=128, lr=5e-5, decay="linear", ema=Ema.none(), flip=True,
                save_every=5000,
            ),
        ),
        teacher="cifar10-progressive-teacher",
        expected="FID 2.57, 3.00, 4.51, 9.12 at 8, 4, 2, 1 evaluations",
        source="Salimans & Ho 2022, arXiv:2202.00512, and its released configuration",
        differs=_PARTS,
    )  # fmt: skip


def cifar10_catch_up_one_step() -> Student:
    """The extra training that takes Catch-Up Distillation to one step."""
    training = Training(
        40_000, batch=128, lr=2e-4, warmup=5000, clip=None, ema=Ema.constant(0.9999),
        precision="bf16", save_every=5000,
    )  # fmt: skip
    # The number of trajectories is not published; these are as many as its images per phase.
    how = Sampling("ddim", steps=16)
    stages = [
        Stage(CatchUpOneStep(), training, pairs=500_000, how=how, at=at, taught_by=0)
        for at in (8, 11, 14)
    ]
    return Student(
        "one-step CIFAR-10 student of a catch-up model, in three phases",
        tuple(stages),
        teacher="cifar10-catch-up",
        expected="FID 3.37 at one evaluation",
        source="Shao et al. 2023, arXiv:2305.10769, and its released code",
        differs=f"{BF16}; the number of trajectories is ours",
    )


def cifar10_sid() -> Student:
    """Score identity Distillation, unconditional."""
    return _sid("unconditional", "cifar10-edm", 500, "FID 1.923 ± 0.017 at one evaluation")


def cifar10_sid_cond() -> Student:
    """Score identity Distillation, with classes."""
    return _sid("class-conditional", "cifar10-edm-cond", 800, "FID 1.710 ± 0.011 at one evaluation")


def _sid(kind: str, teacher: str, megaimages: int, expected: str) -> Student:
    return Student(
        f"one-step {kind} CIFAR-10 student by Score identity Distillation, without data",
        one(
            Sid(alpha=1.2, augment=0.12),
            Training(
                megaimages * 10**6 // 256, batch=256, accumulate=4, lr=1e-5, betas=(0.0, 0.999),
                adam_eps=_EPS, clip=None, ema=Ema.half_life(500_000), save_every=5000,
            ),
        ),
        teacher=teacher,
        expected=expected,
        source="Zhou et al. 2024, arXiv:2404.04057, and its released configuration",
        differs="one Adam eps, the fake score's; the generator's, of a loss times 100, is smaller",
    )  # fmt: skip


def cifar10_ect() -> Student:
    """Easy consistency tuning."""
    return Student(
        "one- or two-step CIFAR-10 student by easy consistency tuning of EDM",
        one(
            Consistency(kind="ect", stages=16, dropout=0.2, times=(1.0, 0.821 / 80)),
            Training(
                400_000, batch=128, lr=1e-4, optimizer="radam", clip=None,
                ema=Ema.constant(0.9999), save_every=5000,
            ),
        ),
        teacher="cifar10-edm",
        expected="FID 3.60 and 2.11 at one and two evaluations",
        source="Geng et al. 2024, arXiv:2406.14548, and its released configuration",
    )  # fmt: skip


_SONG = Training(
    800_000, batch=512, lr=4e-4, optimizer="radam", clip=None, ema=Ema.constant(0.9999),
    save_every=5000,
)  # fmt: skip


def cifar10_cd() -> Student:
    """Consistency distillation."""
    return Student(
        "CIFAR-10 student by consistency distillation of EDM",
        one(Consistency(kind="cd", points=18), _SONG),
        teacher="cifar10-edm-ncsnpp",
        expected="FID 3.55 and 2.93 at one and two evaluations, with LPIPS",
        source="Song et al. 2023, arXiv:2303.01469, and its released configuration",
        differs=_LPIPS,
    )


def cifar10_ct() -> Teacher:
    """Consistency training, from nothing."""
    return Teacher(
        "one-step CIFAR-10 model by consistency training, from images (NCSN++)",
        replace(PRESETS["ncsnpp32"], augments=0),
        EDM(),
        "consistency",
        Consistency(kind="ct", points=2, grown=150, mu=0.9),
        _SONG,
        Sampling("few_step", steps=1, clip=1.0, times=(1.0,)),
        conditional=False,
        source="Song et al. 2023, arXiv:2303.01469, and its released configuration",
        differs=_LPIPS,
    )


def cifar10_reflow() -> Student:
    """2-rectified flow, and its distillation."""
    flow = Training(
        800_000, batch=128, lr=2e-4, warmup=5000, ema=Ema.constant(0.9999), precision="bf16",
        save_every=5000,
    )  # fmt: skip
    return Student(
        "2-rectified flow on CIFAR-10, then one step",
        (
            Stage(Reflow(dropout=0.1), flow, pairs=1_000_000, how=Sampling("rk45")),
            Stage(
                Reflow(kind="distill"),
                replace(flow, steps=300_000),
                pairs=1_000_000,
                how=Sampling("rk45"),
            ),
        ),
        teacher="cifar10-rectified-flow",
        expected="FID 3.36 with RK45; 4.85 at one evaluation, with LPIPS",
        source="Liu et al. 2022, arXiv:2209.03003, and its released configuration",
        differs=f"{BF16}; it starts from the average of the first flow, not its raw weights; the "
        f"number of steps of the distillation is ours, and its error is l2 in place of LPIPS",
    )
