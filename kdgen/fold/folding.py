"""Folds by name, and in the order in which they fit together."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch

from kdgen.denoiser import TIMES, Denoiser
from kdgen.fold import checking, ends
from kdgen.fold.attention import fold_attention
from kdgen.fold.folded import Folded
from kdgen.fold.layers import check_known, check_whole
from kdgen.fold.opaque import enclose, opaque
from kdgen.fold.readings import Reading, reading
from kdgen.fold.scales import fold_gains, fold_scales
from kdgen.fold.times import delay_biases, fold_times
from kdgen.fold.up import fold_up
from kdgen.nets.unet import UNet

ALL = ("time", "gains", "scales", "input", "output", "up", "queries", "values")
# "late_bias" saves nothing by itself. It suits a device on which a convolution's bias is a pass of
# its own (CUDA), because the norm adds it for nothing.
KNOWN = (*ALL, "late_bias")


@torch.no_grad()
def fold(
    denoiser: Denoiser,
    times: Sequence[float],
    *,
    folds: Collection[str] = ALL,
    dtype: torch.dtype | None = None,
    check: bool = True,
) -> Folded:
    """The same denoiser for these times (in (0, 1]) only, by a smaller network.

    `folds` are names of `KNOWN`; those that do not fit the network or several times do nothing
    (`Folded.places` counts). Members of a chain and layers of a block that are none of a UNet's
    stay as they are, in an `Opaque`, as long as they need no more than their image. Weights are
    computed in float64 and rounded once, to `dtype` or the network's own. Before that, `check`
    compares with the original, on small images, to 1e-10.
    Raises ValueError for times and names that are none, for networks other than a `UNet`, and for
    changes of one that no fold can respect; `FoldError` when the check fails.
    """
    _check_names(folds)
    times = _rising(times)
    source = check_whole(denoiser.net)
    net = copy.deepcopy(source)
    enclose(net)
    check_known(net)
    weights = source.conv_in.weight
    if "time" not in folds and (found := opaque(net)):
        raise ValueError(
            f"fold: {found[0].name} {found[0].why}, and time stays; expected the fold 'time' "
            "beside such a part. Add it."
        )
    net.double()
    net.folded = True
    folded = _Folding(denoiser, net, times, folds).run().eval()
    if check and weights.device.type != "meta":
        checking.check(denoiser, folded)
    net.to(weights.dtype if dtype is None else dtype)
    return folded.requires_grad_(False)


def tabulate(denoiser: Denoiser, times: Sequence[float]) -> Folded:
    """The same denoiser for these times only, without its time embedding: the fold "time" alone,
    unchecked."""
    return fold(denoiser, times, folds=("time",), check=False)


class _Folding:
    """One network, on its way in float64."""

    def __init__(
        self, denoiser: Denoiser, net: UNet, times: tuple[float, ...], folds: Collection[str]
    ) -> None:
        self.denoiser, self.net, self.times = denoiser, net, times
        self.places: dict[str, int] = dict.fromkeys((f for f in KNOWN if f in folds), 0)
        # What an opaque part sees must keep its size.
        resized = {"gains", "scales"} if opaque(net) else set()
        self.folds = set(folds) - resized
        self.inputs = TIMES[denoiser.time](
            denoiser.schedule, torch.tensor(times, dtype=torch.float64)
        )

    def run(self) -> Folded:
        once = reading(self.denoiser, self.times[0]) if len(self.times) == 1 else None
        self._time()
        if once is not None:
            self._gains()
        self._structure(once)
        return Folded(
            self.net,
            self.denoiser,
            self.times,
            self.places,
            takes_x_t=self.places.get("input", 0) > 0,
            share=ends.left(once) if once is not None and self.places.get("output") else None,
        )

    def _time(self) -> None:
        if "time" in self.folds:
            self.places["time"] = fold_times(self.net, self.inputs)
        if "late_bias" in self.folds:
            self.places["late_bias"] = delay_biases(self.net)

    def _gains(self) -> None:
        gains = self.net.gains(self.inputs)
        if "gains" in self.folds and gains is not None:
            decoder, encoder = (g.item() for g in gains)
            self.places["gains"] = fold_gains(self.net, (decoder, encoder))

    def _structure(self, once: Reading | None) -> None:
        net, folds = self.net, self.folds
        if "scales" in folds:
            self.places["scales"] = fold_scales(net)
        if once is not None and "input" in folds and once.c_in != 1.0:
            self.places["input"] = ends.fold_input(net, once.c_in)
        if once is not None and "output" in folds and any(once.x0[1:]):
            self.places["output"] = ends.fold_output(net, once.x0[1:])
        if "up" in folds:
            self.places["up"] = fold_up(net)
        queries, values = ("queries" in folds), ("values" in folds)
        if queries or values:
            count = fold_attention(net, queries=queries, values=values)
            self.places |= dict.fromkeys({"queries", "values"} & set(folds), count)


def _check_names(folds: Collection[str]) -> None:
    if isinstance(folds, str) or (unknown := [f for f in folds if f not in KNOWN]):
        named = repr(folds) if isinstance(folds, str) else ", ".join(map(repr, unknown))
        raise ValueError(
            f"fold: folds has {named}; expected a collection of {', '.join(KNOWN)}. Correct it."
        )


def _rising(times: Sequence[float]) -> tuple[float, ...]:
    rising = tuple(sorted({float(t) for t in times}))
    if not rising or not (rising[0] > 0 and rising[-1] <= 1):
        raise ValueError(
            f"fold: times are {tuple(times)}; expected at least one, in (0, 1]. Pass those that "
            "the denoiser will be asked at."
        )
    return rising
