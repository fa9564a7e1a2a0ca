"""Attention of one head with fewer projections.

Its scores are q·k = (Wq·h_i + bq)·(Wk·h_j + bk). All that does not depend on the key j is the same
for every j, and softmax does not see it: what is left is (Wkᵀ·Wq·h_i + Wkᵀ·bq)·h_j. So the pixels h
are the keys, and one matrix of C×C makes the queries. Softmax weights sum to 1, so that the output
projection may come first: Wo·Σ p_j·(Wv·h_j + bv) + bo = Σ p_j·(Wo·Wv·h_j + Wo·bv + bo).

With more heads, each would need matrices of C×C where it has C×D now: those are left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdgen import kernels
from kdgen.fold.layers import bias_of, blocks, replace_weights
from kdgen.nets.blocks import Attention, Chain, joined
from kdgen.nets.layers import Pointwise
from kdgen.nets.unet import UNet


class Merged(nn.Module):
    """`Attention` of one head; `project` makes queries, keys unless they are the pixels, and
    values, in this order; `out` does nothing where the values have been through it."""

    def __init__(self, like: Attention, *, queries: bool, values: bool) -> None:
        super().__init__()
        self.channels, self.skip_scale = like.channels, like.skip_scale
        self.queries, self.values = queries, values
        self.norm = like.norm
        self.project = _project(like, queries, values)
        self.out = nn.Identity() if values else like.out

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.norm(x)
        q, *k, v = self.project(h).chunk(2 if self.queries else 3, dim=1)
        seen = kernels.attention(q, k[0] if k else h, v, 1)
        return joined(x, self.out(seen), self.skip_scale)


def fold_attention(net: UNet, *, queries: bool, values: bool) -> int:
    """Returns the number of attentions with a single head."""
    count = 0
    for chain in blocks(net, Chain):
        for k, module in enumerate(chain):
            if isinstance(module, Attention) and module.heads == 1:
                chain[k] = Merged(module, queries=queries, values=values)
                count += 1
    return count


def _project(like: Attention, queries: bool, values: bool) -> Pointwise:
    weights = list(like.qkv.weight.flatten(1).chunk(3))
    biases = list(bias_of(like.qkv).chunk(3))
    if values:
        out = like.out.weight.flatten(1)
        weights[2], biases[2] = out @ weights[2], out @ biases[2] + bias_of(like.out)
    if queries:
        keys = weights[1].mT
        weights[0], biases[0] = keys @ weights[0], keys @ biases[0]
        del weights[1], biases[1]
    # on "meta", and in any dtype, until it has its weights
    layer = Pointwise(like.channels, len(weights) * like.channels, 1, device="meta")
    replace_weights(layer, torch.cat(weights)[:, :, None, None], torch.cat(biases))
    return layer
