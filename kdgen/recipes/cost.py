"""What a recipe costs, counted on a network without memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.nets import UNet, UNetConfig
from kdgen.recipes.base import Stage, Student, Teacher
from kdgen.schedules import NoiseSchedule

RK45 = 120  # evaluations at a tolerance of 1e-5: a guess for flows of natural images


@dataclass(frozen=True)
class Size:
    """Of a network: parameters, FLOPs of one evaluation of one image (2 per multiply-add), and the
    bytes that one image leaves for the backward pass, in float32."""

    parameters: int
    flops: float
    activations: int


@dataclass(frozen=True)
class Cost:
    """Of a whole recipe: training images, FLOPs, and bytes of weights, gradients, moments, averages
    and activations at once."""

    images: int
    flops: float
    memory: int


@lru_cache(maxsize=64)
def size(config: UNetConfig) -> Size:
    """Measured on the meta device: nothing is computed."""
    with torch.device("meta"):
        net = UNet(config)
        x = torch.empty(1, *net.shape)
        time = torch.empty(1)
        label = torch.zeros(1, dtype=torch.int64) if config.classes else None
    weights = {id(p) for p in net.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Any:
        if id(t) not in weights:
            kept[id(t)] = t
        return t

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
    ):
        net(x, time, label)
    bytes_kept = sum(t.numel() * t.element_size() for t in kept.values())
    return Size(sum(p.numel() for p in net.parameters()), counter.get_total_flops(), bytes_kept)


def cost(recipe: Teacher | Student, teacher: Teacher) -> Cost:
    """Of `recipe`, on the network of `teacher`: itself, or the recipe a student names."""
    measured = size(teacher.net)
    stages = recipe.stages
    dropout = bool(teacher.net.dropout)
    evaluations = sum(
        s.images * s.method.cost(dropout) + s.pairs * per_pair(s, teacher) for s in stages
    )
    return Cost(
        images=sum(s.images for s in stages),
        flops=evaluations * measured.flops,
        memory=max(_memory(s, measured) for s in stages),
    )


def per_pair(stage: Stage, teacher: Teacher | Denoiser) -> int:
    """Evaluations of this teacher that one pair takes; 0 where a stage learns from something
    else."""
    if stage.method.data != "pairs":
        return 0
    how = stage.how or teacher.sampling
    if stage.at is None:
        return per_image(teacher.schedule, how)
    return (stage.at + 1) * (1 if how.guidance == 1.0 else 2)


def per_image(schedule: NoiseSchedule, how: Sampling) -> int:
    """Evaluations of sampling one image; a guess where the sampler decides as it goes."""
    return RK45 if how.sampler == "rk45" else samplers.evaluations(schedule, how)


def _memory(stage: Stage, measured: Size) -> int:
    """float32 weights of all roles and of the average; two moments of what is trained, gradients of
    what one phase trains; the activations of one part of a batch."""
    method, t = stage.method, stage.training
    trained = [method.trained(phase) for phase in method.phases]
    copies = len(method.roles) + (t.ema.kind != "none")
    copies += 2 * len({role for roles in trained for role in roles}) + max(map(len, trained))
    kept = method.graphs * measured.activations * (t.batch // t.accumulate)
    return int(4 * measured.parameters * copies + kept * _half(t.precision))


def _half(precision: str) -> float:
    return 0.5 if precision == "bf16" else 1.0
