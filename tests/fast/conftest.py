"""A conditional student, and a machine that does its work as late as it may."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.schedules import Cosine

CONFIG = nets.UNetConfig(8, channels=3, width=16, mult=(1, 2), blocks=1, attention=(4,), classes=4)


@pytest.fixture
def student(lively: Callable[..., nn.Module]) -> Denoiser:
    """One step, conditional, as a Denoising Student is sampled."""
    net = lively(nets.UNet(CONFIG))
    return Denoiser(net, Cosine(), "residual", sampling=Sampling("ddim", 1, clip=1.0))


class Machine:
    """A device whose streams run late, and in any order that their waits allow; `seed` picks it.

    With `prompt` everything happens when it is asked for, as errors of the host do.
    """

    def __init__(self, seed: int = 0, *, prompt: bool = False, deaf: bool = False) -> None:
        self.random, self.prompt, self.deaf = random.Random(seed), prompt, deaf
        self.streams: list[Late] = []
        self.order: list[int] = []

    def current(self) -> Late:
        return self.stream()

    def stream(self) -> Late:
        self.streams.append(Late(self))
        return self.streams[-1]

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 77, dtype=torch.uint8)

    def run(self, done: Callable[[], bool]) -> None:
        while not done():
            ready = [s for s in self.streams if s.ready()]
            if not ready:
                raise AssertionError("the streams wait for one another")
            chosen = self.random.choice(ready)
            self.order.append(self.streams.index(chosen))
            chosen.queue.popleft()()

    def nudge(self) -> None:
        """Something may happen at any time."""
        left = len(self.order) + self.random.randrange(3)
        idle = lambda: not any(s.ready() for s in self.streams)  # noqa: E731
        self.run(lambda: idle() or (not self.prompt and len(self.order) >= left))


@dataclass
class Late:
    machine: Machine
    queue: deque[Any] = field(default_factory=deque)

    def ready(self) -> bool:
        return bool(self.queue) and (
            not isinstance(self.queue[0], Wait) or self.queue[0].mark.passed or self.machine.deaf
        )

    def submit(self, work: Callable[[], object]) -> None:
        self.queue.append(work)
        self.machine.nudge()

    def record(self) -> Mark:
        mark = Mark(self.machine)
        self.queue.append(mark)
        self.machine.nudge()
        return mark

    def wait(self, event: Mark) -> None:
        self.queue.append(Wait(event))
        self.machine.nudge()

    def synchronize(self) -> None:
        self.machine.run(lambda: not self.queue)


@dataclass
class Mark:
    machine: Machine
    passed: bool = False

    def __call__(self) -> None:
        self.passed = True

    def synchronize(self) -> None:
        self.machine.run(lambda: self.passed)


@dataclass
class Wait:
    mark: Mark

    def __call__(self) -> None:
        pass


@pytest.fixture
def machine() -> type[Machine]:
    return Machine
