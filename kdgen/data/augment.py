"""Non-leaking augmentation: images changed in ways that the network is told about."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

UNIFORMS = 12  # per image, in the order of `augment`'s first line
LABELS = 9

# For one standard deviation. Karras et al. 2020, arXiv:2006.06676, appendix B; Karras et al. 2022
# use the same.
_SCALE = 0.2 * math.log(2)  # ln of the factor
_SHIFT = 0.125  # widths, and heights


def augment(x0: Tensor, u: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """(images like x0 (B, C, H, W), labels (B, LABELS)) from uniforms u (B, UNIFORMS) in (0, 1).
    Karras et al. 2022, arXiv:2206.00364, appendix F.2.

    Half of the images are mirrored left-right, whatever p is. Every other operation is used with
    probability p of its own: mirrored up-down (and then in half of the cases), scaled by 2^(0.2·n),
    turned by any angle, stretched by 2^(0.2·n) along an axis of any angle and shrunk as much across
    it, moved by n/8 of the width and n/8 of the height, each n a normal number.

    labels are mirrored left-right and up-down (0 or 1), n of the scale, cos − 1 and sin of the
    turn, n·cos and n·sin of the stretch and its axis, n of each move; 0 for what was not done, so
    that a network which samples with zeros makes unchanged images. Where nothing but mirroring was
    done an image keeps its bits; else it is resampled once, bicubically, reflected at the edges.
    """
    across, up, scaled, size, turned, turn, pulled, axis, pull, moved, right, down = u.unbind(1)
    mirrored, flipped = across < 0.5, up < 0.5 * p
    size = _if(scaled < p, _normal(size))
    turn = _if(turned < p, _angle(turn))
    axis, pull = _angle(axis), _if(pulled < p, _normal(pull))
    right, down = _if(moved < p, _normal(right)), _if(moved < p, _normal(down))

    images = torch.where(_per_image(mirrored), x0.flip(-1), x0)
    images = torch.where(_per_image(flipped), images.flip(-2), images)
    places = _places(images, _inverse(size, turn, axis, pull), right, down)
    warped = F.grid_sample(images, places, "bicubic", "reflection", align_corners=False)
    touched = torch.stack([scaled, turned, pulled, moved]).amin(0) < p
    labels = [mirrored, flipped, size, turn.cos() - 1, turn.sin(), pull * axis.cos()]
    labels += [pull * axis.sin(), right, down]
    return (
        torch.where(_per_image(touched), warped, images),
        torch.stack([label.to(x0.dtype) for label in labels], dim=1),
    )


def _if(used: Tensor, value: Tensor) -> Tensor:
    return torch.where(used, value, 0.0)


def _normal(u: Tensor) -> Tensor:
    n: Tensor = torch.special.ndtri(u)
    return n


def _angle(u: Tensor) -> Tensor:
    return math.pi * (2 * u - 1)


def _per_image(c: Tensor) -> Tensor:
    return c[:, None, None, None]


def _inverse(size: Tensor, turn: Tensor, axis: Tensor, pull: Tensor) -> tuple[Tensor, ...]:
    """(xx, xy, yx, yy), each (B,), of the 2×2 matrix that undoes the stretch, then the turn, then
    the scale.

    Written out: autocast would round a matrix product to bfloat16, and with it the places.
    """
    along, beside = (-_SCALE * pull).exp(), (_SCALE * pull).exp()
    mean, half = (along + beside) / 2, (along - beside) / 2
    # R(axis)·diag(along, beside)·R(−axis) is symmetric: (a, b; b, d).
    a, d = mean + half * (2 * axis).cos(), mean - half * (2 * axis).cos()
    b = half * (2 * axis).sin()
    shrunk = (-_SCALE * size).exp()
    c, s = shrunk * turn.cos(), shrunk * turn.sin()
    return c * a + s * b, c * b + s * d, c * b - s * a, c * d - s * b


def _places(x: Tensor, inverse: tuple[Tensor, ...], right: Tensor, down: Tensor) -> Tensor:
    """(B, H, W, 2) where each pixel comes from, as (across, down) in half widths and half heights
    from the centre."""
    height, width = x.shape[2:]
    inverse, (right, down) = _planes(x, *inverse), _planes(x, right, down)
    xx, xy, yx, yy = inverse
    dx = _centres(width, x)[None, None, :] - 2 * _SHIFT * right
    dy = _centres(height, x)[None, :, None] - 2 * _SHIFT * down
    ratio = height / width  # so that an oblong image is turned, not sheared
    return torch.stack([xx * dx + ratio * xy * dy, yx / ratio * dx + yy * dy], dim=-1)


def _planes(like: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.to(like.dtype)[:, None, None] for value in values)


def _centres(n: int, like: Tensor) -> Tensor:
    """(n,) of n pixels that fill (-1, 1)."""
    return (2 * torch.arange(n, dtype=like.dtype, device=like.device) + 1) / n - 1
