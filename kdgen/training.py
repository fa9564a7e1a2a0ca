"""The loop: `for step in fit(...)`. What happens between steps is the caller's business."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from kdgen.batches import Source
from kdgen.denoiser import Denoiser
from kdgen.ema import Ema
from kdgen.keeper import Keeper
from kdgen.loop import Loop, Step
from kdgen.methods.base import Method
from kdgen.run import Run

__all__ = ["Ema", "Step", "Training", "fit"]


@dataclass(frozen=True)
class Training:
    """How to train, whatever the method.

    steps: optimizer updates per round (times the round's `Method.length`); batch: images per
    update, in `accumulate` equal parts; lr: Adam's rate after `warmup` updates of linear rise,
    falling to 0 over the round unless `decay` is "constant"; weight_decay: decoupled, per update
    and unit of lr; optimizer: "radam" multiplies Adam's rate by the rectification of Liu et al.
    2019, arXiv:1908.03265, algorithm 2 (by 0 where that is undefined, the first five updates);
    clip: largest global gradient norm, None for no limit; precision: "bf16" runs networks under
    autocast, weights stay float32; flip: mirror half of the images; save_every, log_every: in
    steps; skips: this many updates in a row that are not finite stop the run; graph: "on" replays
    the steps of a round, after the first three, as one CUDA graph, and "auto" does where that is
    possible: then Python inside networks and losses (hooks, counters) runs only up to the fourth.
    """

    steps: int
    batch: int = 128
    lr: float = 2e-4
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    optimizer: Literal["adam", "radam"] = "adam"
    clip: float | None = 1.0
    accumulate: int = 1
    ema: Ema = field(default_factory=Ema)
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: bool = False
    seed: int = 0
    save_every: int = 1000
    log_every: int = 10
    skips: int = 3
    graph: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        # torch refuses (0, 0.999), and JSON gives a list
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))
        for name in ("steps", "batch", "accumulate", "save_every", "log_every", "skips"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Training: {name} is {getattr(self, name)}; expected at least 1. Raise it."
                )
        if self.batch % self.accumulate:
            raise ValueError(
                f"Training: batch is {self.batch}, accumulate {self.accumulate}; expected "
                "accumulate to divide batch. "
                "Change one."
            )
        if self.seed < 0:
            raise ValueError(f"Training: seed is {self.seed}; expected 0 or more. Change it.")
        for name in ("lr", "adam_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"Training: {name} is {getattr(self, name)}; expected above 0. Change it."
                )
        if self.optimizer == "radam" and rectification(10**6, self.betas[1]) == 0:
            raise ValueError(
                f"Training: betas are {self.betas} for radam, whose rate is then 0; expected the "
                "second above 2/3. Raise it, or use adam."
            )
        if self.warmup < 0 or self.weight_decay < 0 or (self.clip is not None and self.clip <= 0):
            raise ValueError(
                f"Training: warmup is {self.warmup}, weight_decay {self.weight_decay}, clip "
                f"{self.clip}; expected 0 or more, "
                "0 or more, above 0. Use clip=None for no limit."
            )
        for name, known in (
            ("decay", ("constant", "linear", "cosine")),
            ("precision", ("fp32", "bf16")),
            ("optimizer", ("adam", "radam")),
            ("graph", ("auto", "on", "off")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Training: unknown {name} {getattr(self, name)!r}; expected "
                    f"{', '.join(known)}. Pick one."
                )

    def rate(self, done: int, steps: int | None = None) -> float:
        """Adam's learning rate for the update after `done` of a round's updates (`steps`)."""
        rise = min(1.0, (done + 1) / self.warmup) if self.warmup else 1.0
        if self.optimizer == "radam":
            rise *= rectification(done + 1, self.betas[1])
        share = done / (steps or self.steps)
        fall = {
            "constant": 1.0,
            "linear": 1 - share,
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        }
        return self.lr * rise * fall[self.decay]


def rectification(step: int, beta2: float) -> float:
    """What the variance of Adam's step size at update number `step` (from 1) calls for. Liu et al.
    2019, arXiv:1908.03265, algorithm 2; 0 where that variance is infinite."""
    last = 2 / (1 - beta2) - 1
    rho = last - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 5:  # as the authors' code; the variance is finite above 4
        return 0.0
    top = (rho - 4) * (rho - 2) * last
    return math.sqrt(top / ((last - 4) * (last - 2) * rho))


def fit(
    method: Method,
    nets: Mapping[str, Denoiser],
    source: Source | None,
    training: Training,
    *,
    run: Run | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Step]:
    """Train, one `Step` per update; the networks move to `device` and change in place.

    `device` defaults to where the student is. With a `run` that has been entered, the state is
    saved every `save_every` steps, at the end and on a signal, and calling `fit` again continues
    bit-exactly (same device, kernels and thread count); a finished run yields its last step once
    more. What the caller does with a step happens before that step is saved, so it happens again
    if the process dies between; after a `break`, `run.save()` keeps what has been done since.

    Raises ValueError, UsageError, DataError, CheckpointError, or CaptureError for graph="on" where
    that is impossible, before the first step;
    NonFiniteError after `skips` updates in a row whose loss or gradient is not finite (none of them
    touches the weights); Interrupted after a signal.
    """
    loop = Loop(method, nets, source, training, device)
    if run is not None:
        Keeper(loop, run, source).resume()
    return loop.steps()
