"""Rows of a batch that keep their bits whatever stands beside them."""

from __future__ import annotations

import torch
from torch import Tensor

# BLAS libraries sum in another order for fewer rows. Padding every batch to a multiple of this
# keeps an image's bits independent of the batch it came in.
LANES = 8
# The same for one number a row: vector libraries round the last few of many in another way.
NUMBERS = 32


def padded(rows: Tensor, lanes: int = LANES) -> Tensor:
    """rows (n, …) with the last one repeated until their number is a multiple of `lanes`."""
    return torch.cat([rows, rows[-1:].expand(-len(rows) % lanes, *rows.shape[1:])])
