"""Training batches from addresses: a function of the seed and the batch's number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kdgen import noise
from kdgen.data.order import indices
from kdgen.denoiser import Denoiser
from kdgen.errors import DataError
from kdgen.methods.base import Batch, Method
from kdgen.noise import Stream

_PHASE = 8  # bits of a stream's number below the phase's


class Source(Protocol):
    """Images, or pairs.

    `take` gives (x0, label), or (z, x0, label) where `kind` is "pairs".
    """

    def __len__(self) -> int: ...
    def take(self, index: Tensor) -> Any: ...


@dataclass(frozen=True)
class Taken:
    """What only the host can say of a batch, on the device: each image's position in the run, the
    fraction of the round done, and what the source holds (None where it holds no such thing)."""

    index: Tensor
    progress: Tensor
    x0: Tensor | None
    z: Tensor | None
    label: Tensor | None


@dataclass(frozen=True)
class Batches:
    """Batch number k of a method, on a device.

    `source` may be None for a method that learns from noise alone. Draws a method does not name in
    `draws` stay empty.
    """

    method: Method
    source: Source | None
    size: int
    seed: int
    flip: bool
    device: torch.device
    shape: tuple[int, int, int]
    classes: int

    def __call__(self, k: int, progress: float, phase: int = 0) -> Batch:
        """Batch number k (from 0); `progress` is the fraction of the round done. Every phase has
        draws of its own, and the same images."""
        return self.drawn(self.taken(k, progress), phase)

    def taken(self, k: int, progress: float) -> Taken:
        """The part of batch number k that all phases share."""
        x0, z, label = self._read(k)
        return Taken(
            index=noise.addresses(k * self.size, self.size, self.device),
            progress=torch.full((), progress, device=self.device),
            x0=x0,
            z=z,
            label=label if self.classes else None,
        )

    def drawn(self, taken: Taken, phase: int = 0) -> Batch:
        """The batch of a phase: a function of the tensors of `taken`, without the host."""
        index, draws = taken.index, self.method.draws
        z = self._normal(Stream.TRAIN_Z, phase, index, "z" in draws) if taken.z is None else taken.z
        count = self.method.uniforms if "u" in draws else 0
        return Batch(
            x0=self._mirrored(taken.x0, index),
            z=z,
            eps=self._normal(Stream.TRAIN_EPS, phase, index, "eps" in draws),
            u=noise.uniform(self.seed, Stream.TRAIN_U + (phase << _PHASE), index, count),
            progress=taken.progress,
            label=self._label(taken, phase),
            index=index,
        )

    def _normal(self, stream: int, phase: int, index: Tensor, drawn: bool) -> Tensor:
        if not drawn:
            return torch.empty(0, device=self.device)
        return noise.normal(self.seed, stream + (phase << _PHASE), index, self.shape)

    def _label(self, taken: Taken, phase: int) -> Tensor | None:
        if self.source is not None or not self.classes:
            return taken.label
        stream = Stream.PAIR_LABEL + (phase << _PHASE)
        return noise.classes(self.seed, stream, taken.index, self.classes)

    def _mirrored(self, x0: Tensor | None, index: Tensor) -> Tensor:
        if x0 is None:
            return torch.empty(0, device=self.device)
        if not self.flip:
            return x0
        mirrored = noise.uniform(self.seed, Stream.FLIP, index, 1)[:, 0] < 0.5
        return torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)

    def _read(self, k: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(x0, z, label) of batch number k, as far as the source has them."""
        if self.source is None:
            return None, None, None
        which = indices(len(self.source), self.seed, k * self.size, self.size)
        *z, x0, label = self.source.take(which)
        return self._here(x0), self._here(z[0]) if z else None, self._here(label)

    def _here(self, x: Any) -> Tensor | None:
        return None if x is None else x.to(self.device, non_blocking=True)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch in `parts` equal parts."""
    size = len(batch.index) // parts
    for first in range(0, len(batch.index), size):
        cut = slice(first, first + size)
        values = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "progress"}
        pieces: dict[str, Any] = {n: None if v is None else v[cut] for n, v in values.items()}
        yield replace(batch, **pieces)


def check_source(method: Method, student: Denoiser, source: Source | None, flip: bool) -> None:
    """Refuse a source that does not fit.

    DataError where source, method and network disagree; ValueError for flipped pairs.
    """
    if source is None:
        if method.data != "noise":
            raise DataError(
                f"fit: {method.name} learns from {method.data}; expected a source of them. Pass "
                "one."
            )
        return
    kind = getattr(source, "kind", "images")
    if (kind == "pairs") != (method.data == "pairs"):
        raise DataError(
            f"fit: the source holds {kind}; expected {method.data} for {method.name}. Pass those."
        )
    if flip and method.data == "pairs":
        raise ValueError(
            "fit: flip is on for pairs; expected off, the teacher's image of a mirrored z is "
            "another one."
        )
    if len(source) < 1:
        raise DataError("fit: the source is empty; expected at least one image. Check its path.")
    shape = getattr(source, "shape", student.shape)
    if tuple(shape) != tuple(student.shape):
        raise DataError(
            f"fit: images are {tuple(shape)}; expected {tuple(student.shape)} as the student. "
            "Resize them or build another."
        )
    classes = getattr(source, "classes", student.classes)
    if student.classes and classes != student.classes:
        raise DataError(
            f"fit: the source has {classes} classes; expected {student.classes} as the student. "
            "Use labelled data."
        )


def described(source: Source | None) -> dict[str, Any]:
    """What a run notes about its source, JSON-able; equal notes mean equal batches."""
    if source is None:
        return {"kind": "noise"}
    facts: dict[str, Any] = {"kind": getattr(source, "kind", "images"), "length": len(source)}
    for name in ("name", "digest"):
        if (value := getattr(source, name, None)) is not None:
            facts[name] = str(value)
    return facts
