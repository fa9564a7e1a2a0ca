"""Images held in memory as uint8, and how a batch leaves them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from kdgen.data.order import halves


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """A data set, decoded.

    pixels uint8 (N, C, H, W); labels int64 (N,) in 0 … classes − 1, or None with classes 0;
    skipped names the files that were left out because they could not be read.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: int
    name: str
    class_names: tuple[str, ...] | None = field(default=None, kw_only=True)
    skipped: tuple[str, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _check_pixels(self.pixels)
        _check_labels(self.labels, self.classes, len(self.pixels))
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"Images: {len(self.class_names)} class names; expected {self.classes}. "
                "Pass one name for each class, or None."
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.shape))
        kind = f"{self.classes} classes" if self.classes else "no labels"
        return f"{self.name}: {len(self):,} images, {size}, {kind}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        _, c, h, w = self.pixels.shape
        return c, h, w

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels; what a checkpoint says it was trained on."""
        shape = {"shape": list(self.pixels.shape), "classes": self.classes}
        sha = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        sha.update(self.pixels.cpu().contiguous().numpy().data)
        if self.labels is not None:
            sha.update(self.labels.cpu().contiguous().numpy().astype("<i8").data)
        return sha.hexdigest()

    def take(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """x0 float32 (n, C, H, W) in [−1, 1] and labels (n,) of the images index (n,).

        Both are where pixels is.
        """
        index = index.to(self.pixels.device)
        x0 = self.pixels[index].to(torch.float32).div_(127.5).sub_(1)
        return x0, None if self.labels is None else self.labels[index]

    def to(self, device: torch.device | str) -> Images:
        labels = None if self.labels is None else self.labels.to(device)
        moved = replace(self, pixels=self.pixels.to(device), labels=labels)
        if "digest" in self.__dict__:  # the same images: no need to hash them again
            moved.__dict__["digest"] = self.digest
        return moved

    def subset(self, index: Tensor) -> Images:
        """The images index (n,), in that order, with the same classes."""
        index = index.to(self.pixels.device)
        labels = None if self.labels is None else self.labels[index]
        return replace(self, pixels=self.pixels[index], labels=labels)

    def split(self, seed: int, fraction: float = 0.5) -> tuple[Images, Images]:
        """Two disjoint random parts, `fraction` of the images and the rest, in the old order."""
        first, second = halves(len(self), seed, fraction)
        return self.subset(first), self.subset(second)


def _check_pixels(pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(
            f"Images: pixels are {pixels.dtype} {tuple(pixels.shape)}; "
            "expected uint8 (N, C, H, W). Convert them first."
        )


def _check_labels(labels: Tensor | None, classes: int, n: int) -> None:
    if labels is None:
        if classes:
            raise ValueError(f"Images: {classes} classes, no labels; expected both. Pass labels.")
        return
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(
            f"Images: labels are {labels.dtype} {tuple(labels.shape)}; "
            f"expected int64 ({n},). Convert them first."
        )
    low, high = (int(labels.min()), int(labels.max())) if n else (0, 0)
    if classes < 1 or low < 0 or (n and high >= classes):
        raise ValueError(
            f"Images: labels span {low} … {high}; expected 0 … {classes - 1}. Check classes."
        )
