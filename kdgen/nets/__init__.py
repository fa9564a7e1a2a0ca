"""Networks by name: published sizes and tiny ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdgen.denoiser import Denoiser, Sampling
from kdgen.nets.config import UNetConfig
from kdgen.nets.dropout import Dropout, Masks
from kdgen.nets.presets import PRESETS
from kdgen.nets.unet import UNet
from kdgen.schedules import schedule

__all__ = ["PRESETS", "Dropout", "Masks", "UNet", "UNetConfig", "denoiser", "preset"]


def preset(name: str, **changes: Any) -> UNet:
    """The network called `name` with fresh weights; keyword arguments replace fields of its
    `UNetConfig`."""
    if name not in PRESETS:
        raise ValueError(
            f"nets.preset: unknown name {name!r}; expected {', '.join(PRESETS)}. Pick one."
        )
    return UNet(replace(PRESETS[name], **changes))


def denoiser(config: dict[str, Any]) -> Denoiser:
    """The denoiser that `Denoiser.config()` describes, with fresh weights."""
    facts = dict(config["net"])
    if (name := facts.pop("name")) != "unet":
        raise ValueError(f"nets.denoiser: unknown network {name!r}; expected unet. Update kdgen.")
    return Denoiser(
        UNet(UNetConfig(**facts)),
        schedule(**config["schedule"]),
        config["parameterisation"],
        config["time"],
        Sampling(**config["sampling"]),
    )
