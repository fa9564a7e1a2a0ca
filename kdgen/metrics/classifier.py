"""A small classifier trained on the data set itself: where features come from without downloads.

It is identified by the SHA-256 of its weights, because a distance on its features compares with
another one only when both used the same weights. Never call such a distance FID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdgen.metrics.pixels import as_uint8

FEATURES = 64
BATCH = 512


class Labelled(Protocol):
    """What a measure needs of a data set; `kdgen.data.Images` is one."""

    @property
    def pixels(self) -> Tensor: ...  # uint8 (N, C, H, W)
    @property
    def labels(self) -> Tensor | None: ...  # int64 (N,)
    @property
    def classes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...


class FeatureNet(nn.Module):
    """3×3 convolutions down to 4×4, pooled to 2×2, then `FEATURES` features and a linear head.

    No normalisation layer: it would hide a shift of brightness or contrast from the features.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int, classes: int, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        # Images beyond 16×16 are halved at once: full size is most of the cost and little use.
        widths, strides = [width], [1 if size <= 16 else 2]
        size = size if size <= 16 else (size + 1) // 2
        while size > 4:
            size = (size + 1) // 2
            widths.append(min(2 * widths[-1], 4 * width))
            strides.append(2)
        widths.append(widths[-1])
        strides.append(1)
        inputs = [channels, *widths[:-1]]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, 3, s, 1) for i, o, s in zip(inputs, widths, strides, strict=True)
        )
        self.feature = nn.Linear(4 * widths[-1], FEATURES)
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("whitening", torch.eye(FEATURES))

    def penultimate(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        pooled: Tensor = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.feature(pooled)  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        """Penultimate activations, whitened: zero mean, unit covariance over the training images.

        A distance then does not depend on how the classifier happened to scale its features.
        """
        centred = self.penultimate(x).double() - self.mean.double()
        return centred @ self.whitening.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.penultimate(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Classifier:
    """A trained FeatureNet and where it comes from."""

    net: FeatureNet = field(repr=False)
    name: str  # e.g. digits-classifier-64
    data: str  # digest of the data set it was trained on
    accuracy: float  # on held-out real images
    held_out: int

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and bytes of the weights."""
        sha = hashlib.sha256()
        for key, tensor in sorted(self.net.state_dict().items()):
            sha.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    @property
    def identity(self) -> str:
        return f"{self.name} sha256:{self.digest[:16]}"

    def features(self, pixels: Tensor, batch: int = BATCH) -> Tensor:
        """Features of uint8 images (n, C, H, W): float64 (n, 64)."""
        return self._map(self.net.features, pixels, batch)

    def predict(self, pixels: Tensor, batch: int = BATCH) -> Tensor:
        """Most likely label of each uint8 image: int64 (n,)."""
        return self._map(self.net, pixels, batch).argmax(1)

    def _map(self, function: Callable[[Tensor], Tensor], pixels: Tensor, batch: int) -> Tensor:
        pixels = as_uint8(pixels, where=self.name)
        with torch.no_grad():
            return torch.cat([function(unit(chunk)) for chunk in torch.split(pixels, batch)])


def unit(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [-1, 1], what the network reads."""
    return pixels.float() / 127.5 - 1
