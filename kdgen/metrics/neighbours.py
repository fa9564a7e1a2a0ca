"""Measures from nearest neighbours: precision and recall, and closeness to the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen.metrics.pixels import check_same_n

CHUNK = 512


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of fakes on the reals' manifold, and of reals on the fakes' (arXiv:1904.06991)."""
    check_same_n("precision/recall", real, fake)
    return _covered(fake, real, k), _covered(real, fake, k)


def nearest(x: Tensor, among: Tensor, own: Tensor | None = None) -> Tensor:
    """Distance of each row of x to its nearest row of `among`: (n,).

    `own` (n,) is each row's own place in `among`, which then does not count.
    """
    found = []
    for start in range(0, len(x), CHUNK):
        distances = torch.cdist(x[start : start + CHUNK].double(), among.double())
        if own is not None:
            distances.scatter_(1, own[start : start + CHUNK, None], torch.inf)
        found.append(distances.amin(1))
    return torch.cat(found)


def _covered(x: Tensor, support: Tensor, k: int) -> float:
    """Share of rows of x within the k-th neighbour distance of at least one row of `support`."""
    x, support = x.double(), support.double()
    # The nearest row to a row of `support` is itself, so its k-th neighbour is the (k+1)-th value.
    radius = torch.cat(
        [torch.cdist(c, support).kthvalue(k + 1, dim=1).values for c in torch.split(support, CHUNK)]
    )
    inside = [(torch.cdist(c, support) <= radius).any(1) for c in torch.split(x, CHUNK)]
    return float(torch.cat(inside).double().mean())
