"""What a recipe costs, counted on a network without memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdgen import samplers
from kdgen.nets import UNet, UNetConfig
from kdgen.recipes.base import Stage, Student, Teacher

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
    evaluations = sum(s.images * s.method.cost + _teaching(s, teacher) for s in stages)
    return Cost(
        images=sum(s.images for s in stages),
        flops=evaluations * measured.flops,
        memory=max(_memory(s, measured) for s in stages),
    )


def _teaching(stage: Stage, teacher: Teacher) -> int:
    """Evaluations that making the pairs takes."""
    how = stage.how or teacher.sampling
    if stage.method.data != "pairs":
        return 0
    once = RK45 if how.sampler == "rk45" else samplers.evaluations(teacher.schedule, how)
    return stage.pairs * once


def _memory(stage: Stage, measured: Size) -> int:
    """float32 weights, gradients and two moments of what is trained, weights of the rest, the
    average, and the activations of one part of a batch."""
    method, t = stage.method, stage.training
    trained = {role for phase in method.phases for role in method.trained(phase)}
    copies = 4 * len(trained) + (len(method.roles) - len(trained)) + (t.ema.kind != "none")
    activations = measured.activations * (t.batch // t.accumulate) * _half(t.precision)
    return int(4 * measured.parameters * copies + activations)


def _half(precision: str) -> float:
    return 0.5 if precision == "bf16" else 1.0
