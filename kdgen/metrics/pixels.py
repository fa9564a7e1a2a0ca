"""What may enter a measure: uint8 images, or floats whose range the caller states."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen.errors import MetricError

Range = tuple[float, float]


def as_uint8(images: Tensor, value_range: Range | None = None, where: str = "metrics") -> Tensor:
    """`images` as uint8 (N, C, H, W) on the CPU, or MetricError. Values are never wrapped.

    Floats need `value_range=(low, high)` and must lie inside it; they are rounded to nearest.
    """
    _check_layout(images, where)
    if images.dtype == torch.uint8:
        return images.detach().cpu()
    if not images.is_floating_point():
        raise MetricError(f"{where}: got {_describe(images)}; expected uint8. Convert the images.")
    _check_values(images, value_range, where)
    assert value_range is not None
    low, high = value_range
    unit = (images.detach().cpu().double() - low) / (high - low)
    return (unit * 255).round().to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float64 (N, C·H·W), still in grey levels 0 … 255."""
    return images.reshape(len(images), -1).double()


def check_same_n(where: str, x: Tensor, y: Tensor) -> None:
    """MetricError unless both sets have equally many images."""
    if len(x) != len(y):
        raise MetricError(
            f"{where}: {len(x)} against {len(y)} images; expected the same n on both sides, "
            "because the bias of a distance depends on n. Draw equal numbers."
        )


def check_same_shape(where: str, x: Tensor, y: Tensor) -> None:
    """MetricError unless the images of both sets have one shape."""
    if x.shape[1:] != y.shape[1:]:
        raise MetricError(
            f"{where}: images of shape {tuple(x.shape[1:])} against {tuple(y.shape[1:])}; "
            "expected the same channels, height and width. Compare with the training data's shape."
        )


def _describe(images: Tensor) -> str:
    name = str(images.dtype).removeprefix("torch.")
    if not images.is_floating_point():
        return name
    if not bool(torch.isfinite(images).all()):
        return f"{name} with NaN or infinity"
    return f"{name} in [{float(images.min()):.2f}, {float(images.max()):.2f}]"


def _check_layout(images: Tensor, where: str) -> None:
    if not isinstance(images, Tensor):
        raise MetricError(
            f"{where}: got {type(images).__name__}; expected a uint8 tensor (N, C, H, W). "
            "Convert it with torch.from_numpy."
        )
    shape = tuple(images.shape)
    if images.dim() == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        raise MetricError(
            f"{where}: got shape {shape}, which looks like (N, H, W, C); expected (N, C, H, W). "
            "Call images.permute(0, 3, 1, 2)."
        )
    if images.dim() != 4 or shape[1] not in (1, 3) or images[0:1].numel() == 0 or shape[0] < 2:
        raise MetricError(
            f"{where}: got shape {shape}; expected (N, C, H, W) with 1 or 3 channels and at least "
            "2 images."
        )


def _check_values(images: Tensor, value_range: Range | None, where: str) -> None:
    if not bool(torch.isfinite(images).all()):
        raise MetricError(
            f"{where}: got {_describe(images)}; expected finite pixels. Find the images that broke."
        )
    if value_range is None:
        raise MetricError(
            f"{where}: got {_describe(images)}; expected uint8. "
            "Pass value_range=(-1, 1) to convert, or whichever range the images have."
        )
    low, high = value_range
    if not low < high:
        raise MetricError(f"{where}: value_range is {value_range}; expected low < high.")
    if float(images.min()) < low or float(images.max()) > high:
        raise MetricError(
            f"{where}: got {_describe(images)}, outside value_range=({low}, {high}). Clamp the "
            "images first if that is what you mean, or state the range they have."
        )
