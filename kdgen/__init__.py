"""Distil a diffusion model into a one-step image generator, and run it fast.

The names below load on first use, so that `import kdgen` costs little more than `import torch`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdgen.acceleration import accelerate as accelerate
    from kdgen.checkpoint import load as load
    from kdgen.checkpoint import save as save
    from kdgen.denoiser import Denoiser as Denoiser
    from kdgen.denoiser import Sampling as Sampling
    from kdgen.fast import FastGenerator as FastGenerator
    from kdgen.fast import Generator as Generator
    from kdgen.fast import generator as generator
    from kdgen.methods.denoising_student import DenoisingStudent as DenoisingStudent
    from kdgen.methods.diffusion import Diffusion as Diffusion
    from kdgen.run import Run as Run
    from kdgen.training import Ema as Ema
    from kdgen.training import Training as Training
    from kdgen.training import fit as fit

_HOMES = {
    "Denoiser": "denoiser",
    "DenoisingStudent": "methods.denoising_student",
    "Diffusion": "methods.diffusion",
    "Ema": "training",
    "FastGenerator": "fast",
    "Generator": "fast",
    "Run": "run",
    "Sampling": "denoiser",
    "Training": "training",
    "accelerate": "acceleration",
    "fit": "training",
    "generator": "fast",
    "load": "checkpoint",
    "save": "checkpoint",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"kdgen: no name {name!r}; expected one of {', '.join(_HOMES)}.")
    return getattr(importlib.import_module(f"kdgen.{_HOMES[name]}"), name)
