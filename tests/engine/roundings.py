"""How far float32 and bfloat16 arithmetic may be from the truth.

One rounding moves a value by at most a unit u of its size: 2⁻²⁴ in float32, 2⁻⁸ in bfloat16. So a
sum of products is wrong by at most u · (roundings on the way of a term) · Σ|terms|, whatever the
order. Winograd's terms are those of its transforms, and larger than the convolution's own:

            y = Aᵀ[ Σ_c (G g_c Gᵀ) ⊙ (Bᵀ d_c B) ] A
    Σ|terms| = |Aᵀ|[ Σ_c (|G||g||Gᵀ|) ⊙ (|Bᵀ||d||B|) ]|A|

which is the same however the three matrices share their factors.

Rounding to int8 moves a factor by at most half a scale, 1/254 of the largest that shares it: of a
row, all channels at one point of a tile, or of a column, all those at one point of a weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = {0: 2.0**-24, 2: 2.0**-8}  # by dtype code
HALF_SCALE = 1 / 254


@dataclass(frozen=True)
class Transform:
    """Tiles of the input that begin `step` apart, to tiles of the answer."""

    answer: Tensor  # Aᵀ
    weight: Tensor  # G
    data: Tensor  # Bᵀ
    step: int

    @property
    def depth(self) -> int:
        """Roundings on the way of a term through the six one-dimensional transforms: a product, and
        a sum with each of the others of its row."""
        matrices = (self.answer, self.weight, self.data)
        return 2 * sum(int((m != 0).sum(1).max()) for m in matrices)

    def absolute(self) -> Transform:
        return Transform(self.answer.abs(), self.weight.abs(), self.data.abs(), self.step)


def toom_cook(points: tuple[float, ...], m: int) -> Transform:
    """F(m, 3) on these points and infinity. Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308."""
    n = m + 2
    assert len(points) == n - 1
    answer, weight, data = (torch.zeros(s, dtype=torch.float64) for s in ((m, n), (n, 3), (n, n)))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        powers = torch.tensor([p**k for k in range(max(m, 3))], dtype=torch.float64)
        answer[:, j] = powers[:m]
        weight[j] = powers[:3] / math.prod(p - q for q in others)
        data[j, : n - 1] = _coefficients(others)
    answer[m - 1, n - 1] = weight[n - 1, 2] = 1
    data[n - 1] = _coefficients(points)
    return Transform(answer, weight, data, m)


def _coefficients(roots: list[float] | tuple[float, ...]) -> Tensor:
    """Of Π(x − root), lowest first."""
    found = torch.ones(1, dtype=torch.float64)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


# Doubled by nearest neighbour, a pixel and its neighbours give two answers an axis:
# w₀x₋ + (w₁ + w₂)x = w₀(x₋ − x) + (w₀ + w₁ + w₂)x, and likewise (w₀ + w₁ + w₂)x + w₂(x₊ − x).
DOUBLED = Transform(
    torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.float64),
    torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64),
    torch.tensor([[1, -1, 0], [0, 1, 0], [0, -1, 1]], dtype=torch.float64),
    1,
)
TRANSFORMS = {
    "winograd2": toom_cook((0, 1, -1), 2),
    "winograd4": toom_cook((0, 0.75, -0.75, 1.5, -1.5), 4),
    "up_winograd": DOUBLED,
}


def transformed(x: Tensor, weight: Tensor, t: Transform, power: int = 1) -> Tensor:
    """The convolution by transform `t`; with `power` 2, the sum of its products' squares."""
    u, v = _points(x, weight, t)
    return _answers(u**power, v**power, t.answer**power, x, t)


def moved(x: Tensor, weight: Tensor, t: Transform) -> Tensor:
    """By how much int8 factors may move the convolution by transform `t`."""
    u, v = (p.abs() for p in _points(x, weight, t))
    wide_u, wide_v = (p + HALF_SCALE * p.amax(1, keepdim=True) for p in (u, v))
    a = t.answer.abs()
    return _answers(wide_u, wide_v, a, x, t) - _answers(u, v, a, x, t)


def variance(x: Tensor, weight: Tensor, t: Transform) -> Tensor:
    """Of what int8 factors move, were they rounded at random: a third of half a scale's square."""
    u, v = (p.square() for p in _points(x, weight, t))
    du, dv = (HALF_SCALE**2 / 3 * p.amax(1, keepdim=True).expand_as(p) for p in (u, v))
    a = t.answer.square()
    return _answers(u, dv, a, x, t) + _answers(du, v, a, x, t)


def _points(x: Tensor, weight: Tensor, t: Transform) -> tuple[Tensor, Tensor]:
    """Of the weight (out, c, i, j), and of all tiles (n, c, down, across, i, j)."""
    u = torch.einsum("ik,ockl,jl->ocij", t.weight, weight, t.weight)
    return u, torch.einsum("ia,ncxyab,jb->ncxyij", t.data, _tiles(x, t), t.data)


def _answers(u: Tensor, v: Tensor, a: Tensor, x: Tensor, t: Transform) -> Tensor:
    y = torch.einsum("pi,ncxyij,ocij,qj->noxpyq", a, v, u, a).flatten(4, 5).flatten(2, 3)
    many = len(t.answer) // t.step
    return y[:, :, : many * x.shape[2], : many * x.shape[3]]


def _tiles(x: Tensor, t: Transform) -> Tensor:
    """(n, c, tiles down, tiles across, side, side) with a zero border."""
    side, (h, w) = t.data.shape[1], x.shape[2:]
    beyond = [(-(-s // t.step) - 1) * t.step + side - 1 - s for s in (w, h)]
    padded = F.pad(x, (1, beyond[0], 1, beyond[1]))
    return padded.unfold(2, side, t.step).unfold(3, side, t.step)


def filtered(x: Tensor, weight: Tensor, stride: int, before: int, size: tuple[int, int]) -> Tensor:
    """The convolution as it is defined: zeros around x, `size` answers."""
    down, across = ((s - 1) * stride + weight.shape[-1] for s in size)
    beyond = (max(0, across - before - x.shape[3]), max(0, down - before - x.shape[2]))
    around = F.pad(x, (before, beyond[0], before, beyond[1]))
    return F.conv2d(around[:, :, :down, :across], weight, stride=stride)


def filtered_moved(
    x: Tensor, weight: Tensor, stride: int, before: int, size: tuple[int, int]
) -> Tensor:
    """By how much int8 factors may move it, where a pixel and a tap have scales of their own."""
    x, weight = x.abs(), weight.abs()
    wide_x, wide_w = (p + HALF_SCALE * p.amax(1, keepdim=True) for p in (x, weight))
    window = stride, before, size
    return filtered(wide_x, wide_w, *window) - filtered(x, weight, *window)


def rms(v: Tensor) -> float:
    return float(v.square().mean().sqrt())
