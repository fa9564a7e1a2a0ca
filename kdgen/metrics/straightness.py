"""How far a denoiser's path from noise to image is from a straight line."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen.denoiser import Predicts


@torch.no_grad()
def straightness(denoiser: Predicts, z: Tensor, steps: int, label: Tensor | None = None) -> Tensor:
    """∫ |(Z1 − Z0) − v(Z_t, t)|² dt per image, mean over pixels: (n,). Liu et al. 2022,
    arXiv:2209.03003, §2.2; 0 where one Euler step follows the path exactly.

    From unit noise z (n, C, H, W) along the Euler path of `steps` evaluations, whose own error is
    of order 1/steps. On any schedule the path is measured as a flow's, y = x_t/(alpha + sigma) over
    r = sigma/(alpha + sigma), from the r of the schedule's t = 1 to 0. Raises ValueError for fewer
    than two steps, of which any path is straight.
    """
    if steps < 2:
        raise ValueError(
            f"straightness: steps is {steps}; expected at least 2, one step is always straight. "
            "Use 100."
        )
    q = denoiser.schedule
    alpha, sigma = q.levels(1.0)
    top = sigma / (alpha + sigma)
    y = q.start(z, 1.0) / (alpha + sigma)
    # Z1 − Z0 is the mean of the Euler path's velocities: their variance, in one pass (Welford).
    mean = spread = torch.zeros_like(y)
    for k in range(steps):
        r = top * (1 - k / steps)
        v = _velocity(denoiser, y, r, 1.0 if k == 0 else q.t_of_sigma(r / (1 - r)), label)
        y = y - top / steps * v
        before, mean = mean, mean + (v - mean) / (k + 1)
        spread = spread + (v - before) * (v - mean)
    per_image: Tensor = spread.flatten(1).mean(1) / steps
    return per_image


def _velocity(denoiser: Predicts, y: Tensor, r: float, t: float, label: Tensor | None) -> Tensor:
    """dy/dr = eps − x0, which is (y − x0)/r."""
    alpha, sigma = denoiser.schedule.levels(t)
    return (y - denoiser((alpha + sigma) * y, t, label).x0) / r
