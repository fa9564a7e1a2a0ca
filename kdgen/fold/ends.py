"""The scaling of the input and of the output, as weights; for one time only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdgen.fold.layers import bias_of, heads, multiply, replace_weights
from kdgen.fold.opaque import Opaque
from kdgen.fold.readings import Reading
from kdgen.nets.resample import Shrink
from kdgen.nets.unet import UNet


def fold_input(net: UNet, c_in: float) -> int:
    """The network then takes x_t itself; returns the number of convolutions that see the image, or
    0 where one of them is opaque."""
    found: list[nn.Module] = [net.conv_in]
    if net.pyramid:
        first = net.pyramid[min(net.pyramid, key=int)]
        assert isinstance(first, Shrink)
        found.append(first.conv)
    if any(isinstance(conv, Opaque) for conv in found):
        return 0
    for conv in found:
        multiply(conv, c_in, 1.0)
    return len(found)


def fold_output(net: UNet, q: Sequence[float]) -> int:
    """Every head then gives Σ q_k·raw_k, the network's share of x0, in place of its raw images;
    returns the number of heads, or 0 where the convolution of one is opaque."""
    found = heads(net)
    if any(isinstance(conv, Opaque) for _, conv in found):
        return 0
    for _, conv in found:
        weight, bias = (_blended(rows, q) for rows in (conv.weight, bias_of(conv)))
        replace_weights(conv, weight, bias)
        conv.out_channels = len(bias)
    return len(found)


def _blended(rows: Tensor, q: Sequence[float]) -> Tensor:
    """Σ q_k·rows_k, of rows (len(q)·C, …)."""
    blend: Tensor = torch.tensordot(rows.new_tensor(q), rows.unflatten(0, (len(q), -1)), 1)
    return blend


def left(reading: Reading) -> Reading:
    """How x0 and eps follow from x_t and the network's share of x0."""
    (p, *qs), (p_eps, *q_eps) = reading.x0, reading.eps
    # x_t = alpha·x0 + sigma·eps, so eps takes the same blend of raw outputs as x0.
    q, e = max(zip(qs, q_eps, strict=True), key=lambda pair: abs(pair[0]))
    return Reading(reading.c_in, (p, 1.0), (p_eps, e / q))
