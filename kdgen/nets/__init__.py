"""Networks by name: published sizes and tiny ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdgen.denoiser import Denoiser, Sampling
from kdgen.nets.unet import UNet, UNetConfig
from kdgen.schedules import schedule

__all__ = ["PRESETS", "UNet", "UNetConfig", "denoiser", "preset"]

PRESETS: dict[str, UNetConfig] = {
    # Ho et al. 2020, appendix B: CIFAR-10 (35,746,307 parameters), then 64 and 256 pixels.
    "ddpm32": UNetConfig(32),
    "ddpm64": UNetConfig(64, mult=(1, 2, 2, 2, 4)),
    "ddpm256": UNetConfig(256, mult=(1, 1, 2, 2, 4, 4)),
    # Ours: minutes on two CPU cores.
    "tiny8": UNetConfig(8, channels=1, width=32, mult=(1, 2), blocks=1, attention=(4,)),
    "tiny16": UNetConfig(16, width=32, mult=(1, 2, 2), blocks=1, attention=(8,)),
    "tiny32": UNetConfig(32, width=32, mult=(1, 2, 2, 2), blocks=1, attention=(8,)),
}


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
