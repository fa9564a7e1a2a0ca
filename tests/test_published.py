"""The published hyper-parameters of every published recipe, as the specification gives them.

Numbers are written out here once more: a recipe that drifts from its source fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from kdgen import recipes
from kdgen.ema import Ema
from kdgen.nets import PRESETS
from kdgen.recipes.base import Student, Teacher
from kdgen.schedules import EDM, Cosine, Flow, LinearVP

EVERY: dict[str, Teacher | Student] = {
    name: make() for name, make in {**recipes.TEACHERS, **recipes.STUDENTS}.items()
}
PUBLISHED = [name for name, recipe in EVERY.items() if recipe.source]
CIFAR, SIXTY_FOUR, LSUN = 3 * 32**2, 3 * 64**2, 3 * 256**2  # values of an image


@dataclass(frozen=True)
class Row:
    """Of one stage. millions: training images over all rounds; eps: Adam's; the rest as in
    `Training`; method: the options that matter."""

    steps: int
    batch: int
    lr: float
    ema: Ema
    millions: float
    method: dict[str, Any]
    warmup: int = 0
    decay: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None
    flip: bool = False
    optimizer: str = "adam"
    precision: str = "fp32"
    pairs: int = 0
    how: tuple[str, int, str] | None = None  # sampler, steps, grid of the pairs
    at: int | None = None


def ema(decay: float) -> Ema:
    return Ema.constant(decay)


DDPM = {"error": "eps", "discrete": 1000}
PAIRS = {"pairs": 1_024_000, "how": ("ddim", 100, "quad")}
PD = {"weight": "truncated", "until": 1, "last_length": 2.0, "clip": 1.0}
SID = {"alpha": 1.2, "sigma_init": 2.5, "t_max": 0.8, "p_mean": -1.2, "p_std": 1.2}
SID |= {"weighted": True}
CUD = {"table": "rk12", "law": "uniform", "scale": 16, "weights": (1.0, 1.0), "target": "online"}
RK45 = {"pairs": 1_000_000, "how": ("rk45", 50, "uniform")}
BF16 = {"precision": "bf16"}

TABLE: dict[str, Row | tuple[Row, ...]] = {
    # Denoising Student (methods.md 2.1) and its teachers (3.1)
    "cifar10-ddpm": Row(
        800_000, 128, 2e-4, ema(0.9999), 102.4, DDPM, warmup=5000, clip=1.0, flip=True, **BF16
    ),
    "celeba64-ddpm": Row(
        800_000, 128, 2e-4, ema(0.9999), 102.4, DDPM | {"antithetic": True}, warmup=5000,
        clip=1 / SIXTY_FOUR, eps=1e-8 / SIXTY_FOUR, flip=True, **BF16,
    ),
    "lsun256-ddpm": Row(
        800_000, 64, 2e-5, ema(0.9999), 51.2, DDPM, warmup=5000, clip=1.0, flip=True, **BF16
    ),
    "cifar10-denoising-student": Row(
        50_000, 512, 2e-4, ema(0.995), 25.6, {"error": "l1", "form": "residual"}, warmup=5000,
        betas=(0.9, 0.98), eps=1e-8 / CIFAR, **PAIRS, **BF16,
    ),
    "celeba64-denoising-student": Row(
        70_000, 512, 5e-5, ema(0.995), 35.84, {"error": "l2", "form": "residual"}, warmup=5000,
        betas=(0.9, 0.98), eps=1e-8 / SIXTY_FOUR, **PAIRS, **BF16,
    ),
    "lsun256-denoising-student": Row(
        1_600_000, 32, 5e-6, ema(0.9995), 51.2, {"error": "l2", "form": "residual"}, warmup=1000,
        betas=(0.98, 0.999), eps=1e-8 / LSUN, pairs=1_024_000, how=("ddim", 50, "stride"), **BF16,
    ),
    # Progressive Distillation (2.2)
    "cifar10-progressive-teacher": Row(
        800_000, 128, 2e-4, ema(0.9999), 102.4, {"error": "truncated", "discrete": None},
        warmup=1000, weight_decay=0.001, clip=1.0, flip=True,
    ),
    "cifar10-progressive": Row(
        50_000, 128, 5e-5, Ema.none(), 96.0, PD | {"steps": 4096}, decay="linear", clip=1.0,
        flip=True,
    ),
    "imagenet64-progressive-teacher": Row(
        550_000, 2048, 3e-4, ema(0.9999), 1126.4, {"error": "truncated", "discrete": None},
        warmup=1000, clip=1.0, flip=True, **BF16,
    ),
    "imagenet64-progressive": Row(
        50_000, 2048, 1e-4, Ema.none(), 1228.8, PD | {"steps": 512}, decay="linear", clip=1.0,
        flip=True, **BF16,
    ),
    # Catch-Up Distillation (2.3)
    "cifar10-catch-up": Row(
        500_000, 128, 2e-4, ema(0.9999), 64.0,
        CUD | {"coupling": True, "beta": 20.0, "phi": 0.75, "solver": "velocity_heun", "steps": 8},
        warmup=5000, flip=True, **BF16,
    ),
    "imagenet64-catch-up": Row(
        1_200_000, 1024, 4e-4, ema(0.9999), 1228.8, CUD | {"coupling": False, "phi": None},
        warmup=5000, flip=True, **BF16,
    ),
    "cifar10-catch-up-one-step": tuple(
        Row(
            40_000, 128, 2e-4, ema(0.9999), 5.12, {"anchor": 0.1}, warmup=5000, pairs=500_000,
            how=("ddim", 16, "uniform"), at=at, **BF16,
        )
        for at in (8, 11, 14)
    ),
    # SiD (2.4) and its teachers (3.2)
    "cifar10-edm": Row(
        390_625, 512, 1e-3, Ema.half_life(500_000, 0.05), 200.0,
        {"p_mean": -1.2, "p_std": 1.2, "augment": 0.12}, warmup=19_531, eps=1e-8 / CIFAR,
    ),
    "imagenet64-edm": Row(
        610_352, 4096, 1e-4, Ema.half_life(50_000_000, 0.05), 2500.0,
        {"p_mean": -1.2, "p_std": 1.2, "augment": 0.0}, warmup=2441, eps=1e-10 / SIXTY_FOUR, **BF16,
    ),
    "cifar10-sid": Row(
        1_953_125, 256, 1e-5, Ema.half_life(500_000, 0.05), 500.0, SID | {"augment": 0.12},
        betas=(0.0, 0.999), eps=1e-8 / CIFAR,
    ),
    "cifar10-sid-cond": Row(
        3_125_000, 256, 1e-5, Ema.half_life(500_000, 0.05), 800.0, SID | {"augment": 0.12},
        betas=(0.0, 0.999), eps=1e-8 / CIFAR,
    ),
    "imagenet64-sid": Row(
        122_070, 8192, 4e-6, Ema.half_life(2_000_000, 0.05), 1000.0, SID | {"augment": 0.0},
        betas=(0.0, 0.999), eps=1e-6 / SIXTY_FOUR, **BF16,
    ),
    # Rectified flow (3.3)
    "cifar10-rectified-flow": Row(
        800_000, 128, 2e-4, ema(0.999999), 102.4, {"kind": "flow", "t_min": 1e-3}, warmup=5000,
        clip=1.0, flip=True, **BF16,
    ),
    "cifar10-reflow": (
        Row(
            800_000, 128, 2e-4, ema(0.9999), 102.4, {"kind": "reflow", "dropout": 0.1}, warmup=5000,
            clip=1.0, **RK45, **BF16,
        ),
        Row(
            300_000, 128, 2e-4, ema(0.9999), 38.4, {"kind": "distill", "steps": None}, warmup=5000,
            clip=1.0, **RK45, **BF16,
        ),
    ),
    # Consistency (3.4)
    "cifar10-cd": Row(
        800_000, 512, 4e-4, ema(0.9999), 409.6,
        {"kind": "cd", "points": 18, "grown": None, "mu": 0.0, "dropout": 0.0}, optimizer="radam",
    ),
    "cifar10-ct": Row(
        800_000, 512, 4e-4, ema(0.9999), 409.6,
        {"kind": "ct", "points": 2, "grown": 150, "mu": 0.9, "dropout": 0.0}, optimizer="radam",
    ),
    "imagenet64-cd": Row(
        600_000, 2048, 8e-6, ema(0.9999), 1228.8,
        {"kind": "cd", "points": 40, "mu": 0.95, "dropout": 0.0}, optimizer="radam", **BF16,
    ),
    "cifar10-ect": Row(
        400_000, 128, 1e-4, ema(0.9999), 51.2,
        {"kind": "ect", "p_mean": -1.1, "p_std": 2.0, "shrink": 2.0, "stages": 16, "dropout": 0.2,
         "huber": 0.0, "error": None, "times": (1.0, 0.821 / 80)}, optimizer="radam",
    ),
}  # fmt: skip
TABLE["cifar10-edm-cond"] = TABLE["cifar10-edm-ncsnpp"] = TABLE["cifar10-edm"]

# Network, its dropout, its schedule, what it says, and how it is sampled.
MODELS = {
    "cifar10-ddpm": ("ddpm32", 0.1, LinearVP(), "eps", ("ddim", 100, "quad")),
    "celeba64-ddpm": ("ddpm64", 0.1, LinearVP(), "eps", ("ddim", 100, "quad")),
    "lsun256-ddpm": ("ddpm256", 0.0, LinearVP(), "eps", ("ddim", 50, "stride")),
    "cifar10-progressive-teacher": ("pd32", 0.2, Cosine(20.0), "x0", ("ddim", 1024, "uniform")),
    "imagenet64-progressive-teacher": (
        "pd64",
        0.1,
        Cosine(20.0),
        "both",
        ("ddim", 1024, "uniform"),
    ),
    "cifar10-catch-up": ("edm32", 0.13, Flow(), "velocity", ("velocity_heun", 8, "uniform")),
    "imagenet64-catch-up": ("adm64", 0.1, Flow(), "velocity", ("ddim", 16, "uniform")),
    "cifar10-edm": ("edm32", 0.13, EDM(80.0, 0.002, 7.0), "edm", ("heun", 18, "karras")),
    "cifar10-edm-cond": ("edm32-cond", 0.13, EDM(), "edm", ("heun", 18, "karras")),
    "cifar10-edm-ncsnpp": ("ncsnpp32", 0.13, EDM(), "edm", ("heun", 18, "karras")),
    "imagenet64-edm": ("adm64", 0.1, EDM(), "edm", ("heun", 40, "karras")),
    "cifar10-rectified-flow": ("rf32", 0.15, Flow(), "velocity", ("rk45", 50, "uniform")),
    "cifar10-ct": ("ncsnpp32", 0.0, EDM(), "consistency", ("few_step", 1, "uniform")),
}


def test_every_published_recipe_is_here():
    assert TABLE.keys() == set(PUBLISHED)
    assert MODELS.keys() == {name for name in PUBLISHED if name in recipes.TEACHERS}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_trains_as_published(name: str):
    rows, stages = TABLE[name], EVERY[name].stages
    for row, stage in zip(rows if isinstance(rows, tuple) else (rows,), stages, strict=True):
        t, how = stage.training, stage.how
        found = Row(
            t.steps, t.batch, t.lr, t.ema, stage.images / 1e6,
            {option: getattr(stage.method, option) for option in row.method},
            t.warmup, t.decay, t.betas, t.adam_eps, t.weight_decay, t.clip, t.flip, t.optimizer,
            t.precision, stage.pairs, how and (how.sampler, how.steps, how.grid), stage.at,
        )  # fmt: skip
        assert found.millions == pytest.approx(row.millions, rel=1e-3)
        assert {**vars(found), "millions": 0} == {**vars(row), "millions": 0}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_published_one(name: str):
    recipe, (preset, dropout, schedule, form, how) = EVERY[name], MODELS[name]
    assert isinstance(recipe, Teacher)
    kept = ("resolution", "width", "mult", "blocks", "attention", "classes", "waves", "resample")
    facts = {fact: getattr(recipe.net, fact) for fact in kept}
    assert facts == {fact: getattr(PRESETS[preset], fact) for fact in kept}
    assert recipe.net.dropout == dropout
    assert (recipe.schedule, recipe.parameterisation) == (schedule, form)
    assert (recipe.sampling.sampler, recipe.sampling.steps, recipe.sampling.grid) == how
    assert bool(recipe.net.classes) <= recipe.conditional


def test_catch_up_has_its_gain_and_no_augmentation():
    net = recipes.teacher("cifar10-catch-up").net
    assert (net.skip_gain, net.augments, recipes.teacher("cifar10-catch-up").time) == (
        0.75,
        0,
        "raw",
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_not_as_published_is_said(name: str):
    recipe = EVERY[name]
    if any(stage.training.precision == "bf16" for stage in recipe.stages):
        assert "bfloat16" in recipe.differs
    lpips = {"cifar10-cd", "cifar10-ct", "imagenet64-cd", "cifar10-reflow"}
    assert ("LPIPS" in recipe.differs) == (name in lpips)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_a_mean_with_its_eps_makes_the_updates_of_a_sum(eps: float):
    """What `recipes.base.pixels` is for."""
    noisy = torch.randn(5, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def trained(total: bool) -> torch.Tensor:
        w = torch.ones(48, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.AdamW([w], lr=0.1, eps=eps / (1 if total else 48), weight_decay=0.0)
        for target in noisy:
            square = (w - target).square()
            (square.sum() if total else square.mean()).backward()
            adam.step()
            adam.zero_grad()
        return w.detach()

    torch.testing.assert_close(trained(total=False), trained(total=True), rtol=1e-12, atol=1e-12)
