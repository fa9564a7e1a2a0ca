"""What a method is: hyper-parameters and a loss; no network, no randomness, no host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from kdgen import samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.nets import UNet

# Parameterisations of one-step generators: what they say at noise is an image, no posterior mean.
GENERATORS = ("residual", "consistency")


@dataclass(frozen=True)
class Batch:
    """One training batch; every draw a method may use arrives in it.

    x0 clean images in [-1, 1] (B, C, H, W), or the teacher's image of z in a batch of pairs; z and
    eps unit noise like x0; u uniforms in (0, 1) (B, 4, or as many as the method asks); progress
    the fraction of the round done, a scalar tensor; label (B,) int64 or None; index (B,) int64,
    each image's position in the run.
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

    `roles` are the denoisers it needs; `trains` the role, or roles together, that each phase
    updates (the loop freezes the others); `data` what a batch's x0 is: "images", "pairs" of the
    teacher (z, x0), or "noise": x0 is empty and the method learns from z alone; `draws` which of z,
    eps and u it uses: the loop leaves the others empty; `uniforms` how many u an image gets;
    `graphs` how many forward passes a loss keeps in memory for its backward pass. The role "target"
    is never trained: the loop keeps it as an average of the student.
    """

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ("student", "teacher")
    phases: ClassVar[tuple[str, ...]] = ("main",)
    trains: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"main": "student"}
    data: ClassVar[str] = "images"
    draws: ClassVar[tuple[str, ...]] = ("z", "eps", "u")
    uniforms: ClassVar[int] = 4
    graphs: ClassVar[int] = 1

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        """(B,) one value per image, unreduced."""
        raise NotImplementedError

    def cost(self, dropout: bool = False) -> float:
        """Evaluations of the network per training image and step; a backward pass counts as two.

        `dropout`: of a student that drops something. What an online teacher's sampling takes comes
        on top, and so does any other network.
        """
        raise NotImplementedError

    def student(self, teacher: Denoiser) -> Denoiser:
        """The untrained student of a teacher: a copy without its dropout."""
        return without_dropout(teacher)

    def cast(self, teacher: Denoiser, student: Denoiser | None = None) -> Nets:
        """All roles, independent of the teacher given; the teacher on the student's path."""
        student = self.student(teacher) if student is None else student
        nets = Nets({"student": student})
        if "teacher" in self.roles:
            nets["teacher"] = teacher.copy(schedule=student.schedule)
        if "target" in self.roles:
            nets["target"] = student.copy()
        return nets

    def check(self, nets: Nets) -> None:
        """ValueError where these denoisers do not suit the method; called before the first step."""

    def sampling(self, student: Denoiser) -> Sampling:
        """How this round's student is sampled; the loop stores it with the student."""
        return student.sampling

    def rounds(self) -> Iterator[Method]:
        """The runs this method consists of; between them the loop promotes the student to
        teacher."""
        yield self

    @property
    def length(self) -> float:
        """Updates of this round, relative to `Training.steps`."""
        return 1.0

    def updates(self, steps: int) -> list[int]:
        """Of every round, where `Training.steps` is `steps`; at least one each."""
        return [max(1, round(steps * m.length)) for m in self.rounds()]

    def keeps(self, progress: float) -> float:
        """Share of the old "target" that one update of the student leaves, at this fraction of the
        round."""
        return 0.0

    def gauges(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        """Scalars worth watching, by name; computed for the log alone, without gradients."""
        return {}

    def generate(self, student: Denoiser, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images from unit noise z, the way this method's student is sampled."""
        return samplers.sample(student, z, label)

    def config(self) -> dict[str, Any]:
        """JSON-able hyper-parameters with the method's name."""
        return {"method": self.name, **asdict(self)}

    def trained(self, phase: str) -> tuple[str, ...]:
        """The roles that a phase updates."""
        roles = self.trains[phase]
        return (roles,) if isinstance(roles, str) else tuple(roles)


def without_dropout(denoiser: Denoiser, **changes: Any) -> Denoiser:
    """`denoiser.copy(**changes)` whose network, where it is a U-Net, drops nothing."""
    return with_dropout(denoiser, 0.0, **changes)


def with_dropout(denoiser: Denoiser, dropout: float, **changes: Any) -> Denoiser:
    """`denoiser.copy(**changes)` whose network, where it is a U-Net, drops this share."""
    net = denoiser.net.copy(dropout=dropout) if isinstance(denoiser.net, UNet) else None
    return denoiser.copy(**changes, **({} if net is None else {"net": net}))


def drops(denoiser: Denoiser) -> bool:
    """Whether the denoiser, in training, may say another thing when asked again."""
    facts = getattr(denoiser.net, "facts", None)
    return bool(getattr(facts, "dropout", 1.0))


def per_image_mean(x: Tensor) -> Tensor:
    """(B, …) -> (B,)."""
    return x.flatten(1).mean(1)
