"""What a named run consists of: everything that decides what is learned, as frozen values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from kdgen.data import Images
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import DataError
from kdgen.methods.base import Method
from kdgen.nets import UNet, UNetConfig
from kdgen.schedules import NoiseSchedule
from kdgen.training import Training


@dataclass(frozen=True)
class Teacher:
    """A model to train from images. Size, channels and classes of `net` follow the data.

    `expected` is the published quality, `source` where it and the settings come from, `differs`
    what is not as published.
    """

    purpose: str
    net: UNetConfig
    schedule: NoiseSchedule
    parameterisation: str
    method: Method
    training: Training
    sampling: Sampling
    data: str | None = None  # where the images are, if kdgen brings them
    conditional: bool = True  # use the labels, where the data has them
    time: str | None = None
    expected: str = ""
    source: str = ""
    differs: str = ""

    def denoiser(self, images: Images) -> Denoiser:
        """The untrained model for these images. Raises DataError when their size does not fit."""
        channels, height, width = images.shape
        classes = images.classes if self.conditional else 0
        if height != width:
            raise DataError(
                f"{images.name}: images are {height}×{width}; expected squares. "
                "Pass --size to crop and resize."
            )
        try:
            return self.build(resolution=height, channels=channels, classes=classes)
        except ValueError as error:
            raise DataError(f"{images.name}: {error} Pass --size.") from error

    def build(self, **changes: Any) -> Denoiser:
        """The untrained model; keyword arguments replace fields of `net`."""
        if "channels" in changes and self.net.out_channels is not None:  # "both" has two heads
            heads = self.net.out_channels // self.net.channels
            changes["out_channels"] = heads * changes["channels"]
        net = UNet(replace(self.net, **changes))
        return Denoiser(net, self.schedule, self.parameterisation, self.time, self.sampling)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The same as a run of one stage."""
        return (Stage(self.method, self.training),)

    def config(self) -> dict[str, Any]:
        """JSON-able; what a run directory keeps."""
        return self.stages[0].config()


@dataclass(frozen=True)
class Stage:
    """One training of a distillation; it starts from the weights of the stage before.

    `pairs` teacher pairs are made for a method that learns from them, the way `how` says (default:
    the teacher's own); with `at`, of the clean image predicted at that evaluation of a DDIM chain.
    `taught_by` is the stage whose student is the teacher, counted from 1, or 0 for the teacher of
    the whole run; None is the stage before.
    """

    method: Method
    training: Training
    pairs: int = 0
    how: Sampling | None = None
    at: int | None = None
    taught_by: int | None = None

    def config(self) -> dict[str, Any]:
        """JSON-able; what a run directory keeps."""
        return {"method": self.method.config(), "training": asdict(self.training)}

    @property
    def images(self) -> int:
        """Training images seen, over all rounds."""
        return self.training.batch * sum(self.method.updates(self.training.steps))


@dataclass(frozen=True)
class Student:
    """A distillation of a teacher, in one stage or several.

    `teacher` is the recipe of the teacher that the settings were made for, `expected` the published
    quality, `source` where it and the settings come from, `differs` what is not as published.
    """

    purpose: str
    stages: tuple[Stage, ...]
    teacher: str
    data: str | None = None
    expected: str = ""
    source: str = ""
    differs: str = ""


# Why a published run in float32 is in bfloat16 here, where its loss bears it.
BF16 = "networks in bfloat16 (--precision fp32 undoes it)"


def pixels(net: UNetConfig) -> int:
    """Values of one image.

    Losses here are means over them. Where the published loss was a sum, the published Adam eps and
    gradient limit divided by this make the same updates: Adam divides a gradient by its size + eps.
    """
    return net.channels * net.resolution**2


def one(method: Method, training: Training, **facts: Any) -> tuple[Stage, ...]:
    """A distillation of one stage."""
    return (Stage(method, training, **facts),)
