"""Dropout, and the way to have the same of it in two networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mask(NamedTuple):
    """What one layer kept of one batch (a bool for each number), and by how much the rest grew."""

    kept: Tensor
    gain: float


class Dropout(nn.Module):
    """As `nn.Dropout`; `Masks` can look at what it drops, and say what it is to drop."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.remembers = False
        self.mask: Mask | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is not None and not self.remembers:
            return x * self.mask.kept * self.mask.gain
        if not self.remembers or not self.training or not self.p:
            return F.dropout(x, self.p, self.training)
        y, kept = torch.native_dropout(x, self.p, True)
        self.mask = Mask(kept, 1 / (1 - self.p))
        return y


class Masks:
    """The dropout of one forward pass, for another: consistency models want the same of both.

        masks = Masks()
        with masks.drawn(student):
            guess = student(x, t)
        with masks.reused(target), torch.no_grad():
            answer = target(y, s)

    The k-th `Dropout` of the second network then uses the mask of the first's k-th, whatever its
    own probability and mode. Where nothing was dropped, nothing is remembered and nothing changes.
    """

    def __init__(self) -> None:
        self._masks: list[Mask | None] = []

    @contextmanager
    def drawn(self, net: nn.Module) -> Iterator[None]:
        """Remembers what the forward pass inside drops; the last one, if there are several."""
        layers = _layers(net)
        for layer in layers:
            layer.remembers = True
        try:
            yield
        finally:
            self._masks = [layer.mask for layer in layers]
            _forget(layers)

    @contextmanager
    def reused(self, net: nn.Module) -> Iterator[None]:
        """Drops the same again. Raises ValueError for a network with other layers."""
        layers = _layers(net)
        if len(layers) != len(self._masks):
            raise ValueError(
                f"Masks.reused: the network has {len(layers)} dropout layers; expected "
                f"{len(self._masks)}, as many as masks were drawn for. Use a copy of that network."
            )
        for layer, mask in zip(layers, self._masks, strict=True):
            layer.mask = mask
        try:
            yield
        finally:
            _forget(layers)


def _layers(net: nn.Module) -> list[Dropout]:
    return [module for module in net.modules() if isinstance(module, Dropout)]


def _forget(layers: list[Dropout]) -> None:
    for layer in layers:
        layer.remembers, layer.mask = False, None
