"""A `UNet2DModel` in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdgen.foreign.diffusers.architecture import Foreign, Unsupported, read
from kdgen.foreign.diffusers.weights import network
from kdgen.nets import UNet


def recognised(module: nn.Module) -> bool:
    """Whether it is one, without importing the package."""
    return any(kind.__name__ == "UNet2DModel" for kind in type(module).__mro__)


def net(module: nn.Module) -> tuple[UNet, Foreign]:
    """Our network with copies of its weights, in their dtype and place, and what it was read as.
    Raises Unsupported."""
    config: Any = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        raise Unsupported(
            f"diffusers: {type(module).__name__} has no configuration; expected a mapping "
            "`config`. Load it with diffusers' own from_pretrained."
        )
    foreign = read({"_class_name": "UNet2DModel", **config})
    weight = next(module.parameters())
    return network(foreign, module.state_dict()).to(weight.device), foreign
