"""What a store of pairs depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdgen import checkpoint, noise, samplers
from kdgen.denoiser import Denoiser, Sampling

DTYPES = {"float16": torch.float16, "float32": torch.float32, "uint8": torch.uint8}


@dataclass(frozen=True)
class Plan:
    """All that the pairs depend on.

    `dtype` is how images are stored: float16 rounds them by at most 2⁻¹², uint8 by at most 1/255.
    """

    count: int
    teacher: str  # SHA-256 of its weights and config
    sampling: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    seed: int = 0
    shard: int = 8192
    dtype: str = "float16"
    at: int | None = None  # the evaluation whose predicted x0 is kept; None: the finished image

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.count < 1 or self.shard < 1:
            raise ValueError(
                f"pairs: count is {self.count}, shard {self.shard}; expected at least 1. Raise it."
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"pairs: dtype is {self.dtype!r}; expected {', '.join(DTYPES)}. Pick one."
            )

    @property
    def how(self) -> Sampling:
        """The way the teacher makes them."""
        return Sampling(**self.sampling)

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard)

    def indices(self, k: int) -> Tensor:
        """The pairs of shard k."""
        first = k * self.shard
        return noise.addresses(first, min(self.shard, self.count - first))

    def z(self, index: Tensor) -> Tensor:
        """The noise of pairs index (n,), float32 (n, C, H, W)."""
        return noise.normal(self.seed, noise.Stream.PAIR_Z, index, self.shape)

    def label(self, index: Tensor) -> Tensor | None:
        """Their classes (n,), or None."""
        if not self.classes:
            return None
        return noise.classes(self.seed, noise.Stream.PAIR_LABEL, index, self.classes)


def plan(
    teacher: Denoiser,
    count: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    shard: int = 8192,
    dtype: str = "float16",
    at: int | None = None,
) -> Plan:
    """What `generate` would make; `sampling` defaults to the teacher's own.

    With `at`, the clean image predicted at that evaluation of a DDIM chain, from 0 at the noise
    end. ValueError when the sampling is not deterministic, or `at` is not on its chain.
    """
    chosen = sampling or teacher.sampling
    samplers.check_deterministic(chosen, "pairs")
    if at is not None and (chosen.sampler != "ddim" or not 0 <= at < chosen.steps):
        raise ValueError(
            f"pairs: at is {at} on {chosen.steps} steps of {chosen.sampler!r}; expected an "
            "evaluation of a 'ddim' chain, 0 … steps − 1. Correct one."
        )
    weights = checkpoint.tensors_digest(teacher.state_dict())
    identity = checkpoint.digest({"weights": weights, "config": teacher.config()})
    facts = teacher.shape, teacher.classes, seed, shard, dtype, at
    return Plan(count, identity, chosen.config(), *facts)
