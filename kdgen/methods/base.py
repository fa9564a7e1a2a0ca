"""What a method is: hyper-parameters and a loss; no network, no randomness, no host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from kdgen import samplers
from kdgen.denoiser import Denoiser


@dataclass(frozen=True)
class Batch:
    """One training batch; every draw a method may use arrives in it.

    x0 clean images in [-1, 1] (B, C, H, W), or the teacher's image of z in a batch of pairs; z and
    eps unit noise like x0; u uniforms in (0, 1) (B, 4); progress the fraction of the run done, a
    scalar tensor; label (B,) int64 or None; index (B,) int64, each image's position in the run.
    """

    x0: Tensor
    z: Tensor
    eps: Tensor
    u: Tensor
    progress: Tensor
    label: Tensor | None
    index: Tensor


class Nets(dict[str, Denoiser]):
    """The denoisers of a run by role: `nets.student` is `nets["student"]`."""

    def __init__(self, roles: Mapping[str, Denoiser]) -> None:
        super().__init__(roles)

    def __getattr__(self, role: str) -> Denoiser:
        try:
            return self[role]
        except KeyError:
            known = ", ".join(self) or "none"
            raise AttributeError(
                f"nets: no role {role!r}; expected one of {known}. Pass it to fit."
            ) from None


@dataclass(frozen=True)
class Method:
    """Base of all methods.

    `roles` are the denoisers it needs, `trains` the role each phase updates (the loop freezes the
    others), `data` what a batch's x0 is: "images", "pairs" of the teacher (z, x0), or "noise": x0
    is empty and the method learns from z alone, `draws` which of z, eps and u it uses: the loop
    leaves the others empty.
    """

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ("student", "teacher")
    phases: ClassVar[tuple[str, ...]] = ("main",)
    trains: ClassVar[Mapping[str, str]] = {"main": "student"}
    data: ClassVar[str] = "images"
    draws: ClassVar[tuple[str, ...]] = ("z", "eps", "u")

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        """(B,) one value per image, unreduced."""
        raise NotImplementedError

    def rounds(self) -> Iterator[Method]:
        """The runs this method consists of; between them the loop promotes the student to
        teacher."""
        yield self

    def generate(self, student: Denoiser, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images from unit noise z, the way this method's student is sampled."""
        return samplers.sample(student, z, label)

    def config(self) -> dict[str, Any]:
        """JSON-able hyper-parameters with the method's name."""
        return {"method": self.name, **asdict(self)}


def per_image_mean(x: Tensor) -> Tensor:
    """(B, …) -> (B,)."""
    return x.flatten(1).mean(1)
