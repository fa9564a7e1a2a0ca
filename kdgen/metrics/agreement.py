"""How close a student's images are to its teacher's, image by image, from the same noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdgen.metrics.measure import Better, Measure
from kdgen.metrics.pixels import Range, as_uint8, check_same_n, check_same_shape

# Two equal uint8 images may still differ by rounding: 1/12 of a grey level squared, or 58.9 dB.
ROUNDING = 1 / 12

NOT_MEANINGFUL = "Not meaningful for this method: its map need not follow the teacher's ODE. "


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference per image, pixels on the scale [-1, 1]: (n,)."""
    return (x.double() - y.double()).div(127.5).square().flatten(1).mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise per image in decibel, at most 58.9: (n,)."""
    error = (x.double() - y.double()).square().flatten(1).mean(1)
    decibel: Tensor = 10 * (255**2 / error.clamp(min=ROUNDING)).log10()
    return decibel


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al. 2004), 7×7 box window or the whole image."""
    window = min(7, *x.shape[-2:])
    a, b = x.double(), y.double()
    count = window * window

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, window, stride=1)

    unbiased = count / max(1, count - 1)
    ma, mb = mean(a), mean(b)
    va, vb = (mean(a * a) - ma * ma) * unbiased, (mean(b * b) - mb * mb) * unbiased
    cov = (mean(a * b) - ma * mb) * unbiased
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    per_image: Tensor = value.flatten(1).mean(1)
    return per_image


def agreement(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    seed: int = 0,
    follows_ode: bool = True,
    value_range: Range | None = None,
) -> list[Measure]:
    """PSNR, SSIM and MSE of student against teacher, image i of both from the same noise.

    `follows_ode=False` (SiD, DMD) marks the numbers as not meaningful. The floor is chance: the
    teacher's image of another noise, of the same label where labels are given.
    """
    x = as_uint8(student, value_range, "agreement")
    y = as_uint8(teacher, value_range, "agreement")
    check_same_n("agreement", x, y)
    check_same_shape("agreement", x, y)
    other = y[_another(len(y), labels)]
    kinds: tuple[tuple[str, Better], ...] = (
        ("PSNR", "higher"),
        ("SSIM", "higher"),
        ("MSE", "lower"),
    )
    functions = (psnr, ssim, mse)
    return [
        _measure(kind, better, f(x, y), f(x, other), labels is not None, seed, follows_ode)
        for (kind, better), f in zip(kinds, functions, strict=True)
    ]


def _measure(
    kind: str,
    better: Better,
    same: Tensor,
    chance: Tensor,
    labelled: bool,
    seed: int,
    follows_ode: bool,
) -> Measure:
    n = len(same)
    caveat = {
        "PSNR": "High values are possible with blur; a low value is not low quality.",
        "SSIM": "7×7 box window, or the whole image where smaller.",
        "MSE": "Pixels on the scale [-1, 1]; says nothing of how natural the images are.",
    }[kind]
    return Measure(
        name=f"{kind}[student against teacher, n={n}]",
        value=float(same.mean()),
        spread=float(same.std() / n**0.5),
        floor=float(chance.mean()),
        n=n,
        seed=seed,
        caveat=caveat if follows_ode else NOT_MEANINGFUL + caveat,
        better=better,
        floor_of="chance: another noise" + (", same label" if labelled else ""),
        meaningful=follows_ode,
    )


def _another(n: int, labels: Tensor | None) -> Tensor:
    """For each image the index of a different one, of the same label if there is one."""
    index = torch.arange(n).roll(1)
    for label in [] if labels is None else torch.unique(labels.cpu()):
        members = (labels.cpu() == label).nonzero()[:, 0]  # type: ignore[union-attr]
        if len(members) > 1:
            index[members] = members.roll(1)
    return index
