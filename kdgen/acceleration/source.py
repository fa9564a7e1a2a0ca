"""What somebody wants accelerated: as a denoiser of ours, and as what it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdgen.denoiser import Denoiser
from kdgen.foreign import diffusers
from kdgen.nets import UNet
from kdgen.schedules import LinearVP

Call = Callable[[Tensor, float, Tensor | None], Tensor]  # (x, t, label) -> what it answers


@dataclass(frozen=True)
class Source:
    """`denoiser` answers with x0 at `times` as `module` does at `asked`."""

    module: nn.Module
    denoiser: Denoiser
    asked: tuple[float, ...]
    times: tuple[float, ...]
    centred: bool = False  # the module sees 2x − 1

    @property
    def bare(self) -> bool:
        """Whether the module answers with its raw output."""
        return self.module is not self.denoiser

    @property
    def name(self) -> str:
        """The module's class."""
        return type(self.module).__name__

    def original(self, dtype: torch.dtype | None = None) -> Call:
        """The module as it is; in another dtype, a copy."""
        module = self.module
        if dtype is not None:
            module = copy.deepcopy(module).to(dtype).eval()
        return _calls(module, self.bare)


def source(module: nn.Module, asked: tuple[float, ...]) -> Source:
    """Raises ValueError for a module that is none of ours, and for times that it cannot see."""
    if not asked:
        raise ValueError("accelerate: t is empty; expected at least one time. Pass those you need.")
    if isinstance(module, Denoiser):
        return Source(module, module, asked, asked)
    if isinstance(module, UNet):
        return Source(module, *_bare(module, asked))
    if diffusers.recognised(module):
        net, foreign = diffusers.net(module)
        return Source(module, *_bare(net, asked), foreign.centred)
    raise ValueError(
        f"accelerate: the network is a {type(module).__name__}; expected a UNet2DModel of "
        "diffusers, or a UNet or Denoiser of kdgen. Pass one of those."
    )


def _bare(
    net: UNet, asked: tuple[float, ...]
) -> tuple[Denoiser, tuple[float, ...], tuple[float, ...]]:
    """A denoiser whose x0 is the network's output, and whose times are such that the network
    embeds the numbers asked for: `LinearVP`'s indices."""
    if min(asked) <= -1:
        raise ValueError(
            f"accelerate: t is {min(asked)}; expected timesteps above -1 for a bare network. Wrap "
            "it in a Denoiser, and pass the denoiser's times."
        )
    schedule = LinearVP(steps=max(1000, int(max(asked)) + 2))
    denoiser = Denoiser(net, schedule, "x0", time="index").train(net.training)
    return denoiser, asked, tuple((t + 1) / schedule.steps for t in asked)


def _calls(module: Any, bare: bool) -> Call:
    if not bare:
        return lambda x, t, label: module(x, t, label).x0
    if isinstance(module, UNet):
        return lambda x, t, label: module(x, _time(x, t), label)

    def call(x: Tensor, t: float, label: Tensor | None) -> Tensor:
        answer: Tensor = module(x, _time(x, t), label, return_dict=False)[0]
        return answer

    return call


def _time(x: Tensor, t: float) -> Tensor:
    """(B,), wide enough for any timestep."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.full((len(x),), t, dtype=wide, device=x.device)
