"""Which engine somebody asks for, and how exact; whether it can be had on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from kdgen.engine.choice import BOUNDS, USUAL
from kdgen.errors import MissingError
from kdgen.kernels import dispatch, native, presence

log = logging.getLogger("kdgen")

ENGINES = ("auto", "native", "torch")
# Whoever chooses how these are computed means to have a network made of them.
_PARTS = ("group_norm_silu", "attention", "bias_residual")


@dataclass(frozen=True)
class Wish:
    """`engine`: "native" insists, "auto" takes torch where it must, "torch" never asks. `accuracy`:
    a class of `BOUNDS`, or None for the usual one of the dtype. Raises ValueError for other names,
    and for an accuracy beside "torch"."""

    engine: str = "auto"
    accuracy: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(
                f"engine: engine is {self.engine!r}; expected {', '.join(ENGINES)}. Pick one."
            )
        if self.accuracy is not None and self.accuracy not in BOUNDS:
            raise ValueError(
                f"engine: accuracy is {self.accuracy!r}; expected {', '.join(BOUNDS)}. Pick one."
            )
        if self.accuracy is not None and self.engine == "torch":
            raise ValueError(
                f"engine: accuracy is {self.accuracy!r}, but torch was asked for; expected None. "
                "Choose a dtype, or another engine."
            )

    def accuracy_for(self, dtype: torch.dtype) -> str:
        """The class."""
        return self.accuracy or USUAL[dtype]

    def unable(self, dtype: torch.dtype, device: torch.device) -> str:
        """Why a network is left to torch there, whatever it is; "" when it may be taken."""
        if self.engine == "torch":
            return "torch was asked for"
        if device.type != "cpu":
            return f"the device is {device}; the engine is for CPUs"
        if dtype not in USUAL:
            known = "the engine knows float32 and bfloat16"
            return f"the network is asked for in {str(dtype)[6:]}; {known}"
        if why := missing():
            return why
        for part in _PARTS:
            if (wanted := dispatch.requested(part)) not in ("", "native"):
                return f"{part} is asked for by {wanted}"
        return ""

    def leave(self, why: str, dtype: torch.dtype) -> None:
        """To torch, for that reason. Raises MissingError where the engine was insisted on; an
        accuracy that was asked for is a warning."""
        if self.engine == "native":
            fix = presence.REMEDIES["native"] if missing() else "Let torch run it (engine='auto')"
            raise MissingError(
                f"engine: native was asked for and cannot run here: {why}; expected it to. {fix}."
            )
        if self.accuracy is not None:
            log.warning(
                "engine: accuracy %r was asked for, but torch runs the network, in %s: %s.",
                self.accuracy,
                str(dtype)[6:],
                why,
            )


def missing() -> str:
    """Why the compiled engine is not on this machine; "" when it is."""
    if native.module is None:
        return native.why
    if not hasattr(native.module, "Program"):
        return "the compiled part is older than this kdgen: it has no engine"
    return ""
