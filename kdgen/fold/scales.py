"""Factors of whole tensors, √½ of every residual sum and the gains of skip connections, moved into
weights.

The trunk is stored divided by a number c that changes along the way, c·x~ = x, such that a sum
x' = s·(x + h) is x'~ = x~ + h/c with c' = s·c: the branch's last convolution takes the division,
and nothing is left to multiply. A norm reads the trunk through its eps: GN(c·x~, eps) =
GN(x~, eps/c²). A shortcut of 1×1 may change c as it likes. The two halves of a concatenation need
one c, since groups span the seam: the decoder's blocks, which have such a shortcut, leave their
output at the c of the skip connection that comes next. Only in front of the first concatenation
nothing can be chosen, and the last sum of the middle, at the lowest resolution, keeps a factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from kdgen.fold.layers import heads, multiply
from kdgen.nets.blocks import Attention, ResBlock
from kdgen.nets.layers import GroupNorm
from kdgen.nets.resample import Down, Shrink, Up
from kdgen.nets.unet import UNet

_Sum = ResBlock | Attention


def fold_scales(net: UNet) -> int:
    """Without residual factors; returns how many multiplications are gone."""
    before = _multiplications(net)
    _Walk(net, True, (1.0, 1.0)).rewrite()
    return before - _multiplications(net)


def fold_gains(net: UNet, gains: tuple[float, float]) -> int:
    """Without the gains of the decoder's and the encoder's halves of concatenations, constants at
    one time; returns how many are gone. A gain of 0 stays: nothing divided by 0 is stored."""
    if net.facts.skip_gain is None or 0.0 in gains:
        return 0
    _Walk(net, False, gains).rewrite()
    net.facts = replace(net.facts, skip_gain=None)
    return 2 * len(net.decoder)


def _multiplications(net: UNet) -> int:
    sums = [m for m in net.modules() if isinstance(m, ResBlock | Attention)]
    joined = len(net.pyramid) * (net.pyramid_scale != 1.0)
    return sum(m.skip_scale != 1.0 for m in sums) + joined


@dataclass
class _Walk:
    """Through the network as its forward pass goes; numbers are the c of a tensor."""

    net: UNet
    residuals: bool  # whether their factors are absorbed
    gains: tuple[float, float]

    def rewrite(self) -> None:
        skips = self._encode()
        c = self._run(self.net.middle, skips[-1], self._wanted(skips[-1]))
        for chain in self.net.decoder:
            joined = skips.pop() * self.gains[1]
            c = self._run(chain, joined, self._wanted(skips[-1]) if skips else None)
        for norm, _ in heads(self.net):
            _reads(norm, c)

    def _encode(self) -> list[float]:
        c = image = 1.0
        skips = [c]
        factor = self.net.pyramid_scale
        kept = self._kept(factor)
        for k, chain in enumerate(self.net.encoder):
            c = self._run(chain, c, None)
            if str(k) in self.net.pyramid:
                shrink = self.net.pyramid[str(k)]
                assert isinstance(shrink, Shrink)
                multiply(shrink.conv, image / c, 1 / c)
                c = image = c * factor / kept
            skips.append(c)
        self.net.pyramid_scale = kept
        return skips

    def _wanted(self, skip: float) -> float:
        """Of the decoder's half of a concatenation, for it to have one c."""
        return skip * self.gains[1] / self.gains[0]

    def _run(self, chain: nn.Module, c: float, wanted: float | None) -> float:
        modules = list(chain.children())
        for module, out in zip(modules, self._plan(modules, wanted), strict=True):
            c = self._rewrite(module, c, out)
        return c

    def _plan(self, modules: list[nn.Module], wanted: float | None) -> list[float | None]:
        """Behind each module: None where it may be what it likes.

        Where a c is wanted at the end, the last module that can choose leaves the one from which
        the sums behind it arrive there. When none can choose, the last sum is left with a factor.
        """
        if not any(_chooses(m) for m in modules):
            return [None] * (len(modules) - 1) + [wanted]
        plan: list[float | None] = []
        for module in reversed(modules):
            plan.append(wanted)
            if wanted is not None:
                wanted = None if _chooses(module) else wanted / self._absorbed(module)
        return plan[::-1]

    def _rewrite(self, module: nn.Module, c: float, wanted: float | None) -> float:
        chosen = 1.0 if wanted is None else wanted
        if isinstance(module, Up | Down):
            multiply(module.conv, c / chosen, 1 / chosen)
            return chosen
        assert isinstance(module, ResBlock | Attention)
        _reads(module.norm1 if isinstance(module, ResBlock) else module.norm, c)
        if _chooses(module):
            return self._project(module, c, chosen)
        return self._add(module, c, c * self._absorbed(module) if wanted is None else wanted)

    def _project(self, block: nn.Module, c: float, out: float) -> float:
        assert isinstance(block, ResBlock)
        factor = self._absorbed(block) / out
        multiply(block.shortcut, c * factor, factor)
        multiply(block.conv2, factor, factor)
        block.skip_scale = self._kept(block.skip_scale)
        return out

    def _add(self, module: _Sum, c: float, out: float) -> float:
        multiply(module.conv2 if isinstance(module, ResBlock) else module.out, 1 / c, 1 / c)
        left = module.skip_scale * c / out
        # c·s/s is 1 up to its last bit, and only a factor of 1 costs nothing.
        module.skip_scale = 1.0 if math.isclose(left, 1.0, rel_tol=1e-12) else left
        return out

    def _absorbed(self, module: nn.Module) -> float:
        assert isinstance(module, ResBlock | Attention)
        return module.skip_scale if self.residuals else 1.0

    def _kept(self, factor: float) -> float:
        return 1.0 if self.residuals else factor


def _chooses(module: nn.Module) -> bool:
    """Whether its output can be stored divided by any number."""
    if isinstance(module, ResBlock):
        return not isinstance(module.shortcut, nn.Identity)
    return isinstance(module, Up | Down)


def _reads(norm: GroupNorm, c: float) -> None:
    norm.eps /= c * c
