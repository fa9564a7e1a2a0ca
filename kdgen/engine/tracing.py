"""From a folded U-Net to steps: its forward pass, written down."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.denoiser import TIMES
from kdgen.engine.blocks import chain, resized
from kdgen.engine.refusal import Refused
from kdgen.engine.steps import Trace
from kdgen.engine.tape import Image, Tape, own_bias
from kdgen.fold import FixedTimes, Folded
from kdgen.fold.layers import heads
from kdgen.fold.opaque import Opaque
from kdgen.nets.resample import Shrink
from kdgen.nets.unet import UNet


@torch.no_grad()
def trace(folded: Folded) -> Trace:
    """The steps of its network, with weights in the network's dtype, padded.

    Raises `Refused`, naming the part, for a network that was not folded in time, or holds what only
    torch knows.
    """
    net = _checked(folded)
    times = torch.tensor(folded.times, dtype=torch.float64)
    gains = net.gains(TIMES[folded.time](folded.schedule, times).sort().values)
    assert isinstance(net.embedding, FixedTimes)
    writing = _Writing(net, Tape(net, net.embedding.rows), gains)
    return writing.run()


def _checked(folded: Folded) -> UNet:
    net = folded.net
    if not isinstance(net, UNet):
        raise Refused(
            f"engine: the network is a {type(net).__name__}; expected a UNet. Leave it to torch."
        )
    if not isinstance(net.embedding, FixedTimes):
        raise Refused(
            "engine: the network embeds its times; expected tables of them. Add the fold 'time'."
        )
    return net


class _Writing:
    """One forward pass; `gains` of both halves of every concatenation, (times, 1, 1, 1) each."""

    def __init__(self, net: UNet, tape: Tape, gains: tuple[Tensor, Tensor] | None) -> None:
        self.net, self.tape = net, tape
        weight = net.conv_in.weight
        each = net.classes + 1 if net.classes else 1
        self.gains = [g.flatten().repeat_interleave(each).to(weight) for g in gains or ()]

    def run(self) -> Trace:
        image = self.tape.input(*self.net.shape)
        skips = self._encode(image)
        x = chain(self.tape, self.net.middle, skips[-1])
        for k, modules in enumerate(self.net.decoder):
            x, skip = self._weighed(k, x, skips.pop())
            x = chain(self.tape, modules, x, skip)
        self.tape.output(self._heads(x))
        return self.tape.trace()

    def _encode(self, image: Image) -> list[Image]:
        x = self.tape.layer(self.net.conv_in, image)
        skips = [x]
        for k, modules in enumerate(self.net.encoder):
            x = chain(self.tape, modules, x)
            if str(k) in self.net.pyramid:
                shrink = self.net.pyramid[str(k)]
                image = self._shrunk(shrink, image)
                x = image = self.tape.add(shrink, x, image, self.net.pyramid_scale)
            skips.append(x)
        return skips

    def _shrunk(self, shrink: nn.Module, image: Image) -> Image:
        assert isinstance(shrink, Shrink)
        return resized(self.tape, shrink.halve, self.tape.layer(shrink.conv, image))

    def _weighed(self, k: int, x: Image, skip: Image) -> tuple[Image, Image]:
        if not self.gains:
            return x, skip
        names = (f"decoder.{k} gain", f"decoder.{k} gain of the skip")
        pairs = zip(names, (x, skip), self.gains, strict=True)
        x, skip = (self.tape.combine(name, image, gain) for name, image, gain in pairs)
        return x, skip

    def _heads(self, x: Image) -> Image:
        """Each head in channels of its own, added to what the heads before it left there."""
        found = heads(self.net)
        if len(found) == 1:
            return self.tape.layer(found[0][1], self.tape.normalise(found[0][0], x))
        if strange := [conv for _, conv in found if isinstance(conv, Opaque)]:
            raise Refused(
                f"engine: {strange[0].name} {strange[0].why}; expected the convolution as it was "
                "made, where a network has several heads. Leave it to torch."
            )
        total = sum(len(conv.weight) for _, conv in found)
        first, y = 0, None
        for norm, conv in found:
            h = self.tape.normalise(norm, x)
            around = (first, total - first - len(conv.weight))
            weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, *around))
            bias = F.pad(own_bias(conv), around)
            y = self.tape.layer(conv, h, weight=weight, bias=bias, residual=y)
            first += len(conv.weight)
        assert y is not None
        return y
