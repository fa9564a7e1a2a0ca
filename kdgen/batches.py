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
        first = k * self.size
        index = noise.addresses(first, self.size, self.device)
        z, x0, label = self._take(first, index, phase)
        drawn, count = self.method.draws, self.method.uniforms
        if z is None:
            z = self._normal(Stream.TRAIN_Z + (phase << _PHASE), index, "z" in drawn)
        return Batch(
            x0=x0,
            z=z,
            eps=self._normal(Stream.TRAIN_EPS + (phase << _PHASE), index, "eps" in drawn),
            u=noise.uniform(
                self.seed,
                Stream.TRAIN_U + (phase << _PHASE),
                index,
                count if "u" in drawn else 0,
            ),
            progress=torch.full((), progress, device=self.device),
            label=label if self.classes else None,
            index=index,
        )

    def _normal(self, stream: int, index: Tensor, drawn: bool) -> Tensor:
        if not drawn:
            return torch.empty(0, device=self.device)
        return noise.normal(self.seed, stream, index, self.shape)

    def _take(
        self, first: int, index: Tensor, phase: int
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(z or None, x0, label)."""
        if self.source is None:
            stream = Stream.PAIR_LABEL + (phase << _PHASE)
            label = noise.classes(self.seed, stream, index, max(self.classes, 1))
            return None, torch.empty(0, device=self.device), label
        which = indices(len(self.source), self.seed, first, self.size)
        *z, x0, label = self.source.take(which)
        x0 = self._here(x0)
        if self.flip:
            mirrored = noise.uniform(self.seed, Stream.FLIP, index, 1)[:, 0] < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return self._here(z[0]) if z else None, x0, None if label is None else self._here(label)

    def _here(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)


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
