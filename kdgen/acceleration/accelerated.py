"""The accelerated callable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from kdgen import fold, graph
from kdgen.acceleration.parity import Report
from kdgen.acceleration.source import Source
from kdgen.denoiser import Denoiser
from kdgen.engine import FOLDS, Network, Taken, Wish, taken
from kdgen.fast.chain import single
from kdgen.fast.settings import repeatable
from kdgen.fast.walk import Walk

_SAME = 1e-9  # relative, of a time named in a call
MOST_GRAPHS = 16  # numbers of images that get one; each keeps its inputs and outputs


class Accelerated:
    """`(x, label=None, t=None)`, the answer in x's dtype; see `kdgen.accelerate`."""

    report: Report | None = None

    def __init__(
        self,
        source: Source,
        *,
        dtype: torch.dtype | None = None,
        batch: int | None = None,
        device: torch.device | str | None = None,
        folds: Collection[str] | None = None,
        wish: Wish | None = None,
    ) -> None:
        if batch is not None and batch < 1:
            raise ValueError(
                f"accelerate: batch is {batch}; expected at least 1. Ask for one or more."
            )
        weight = next(source.denoiser.parameters())
        self.source, self.batch = source, batch
        self.dtype = dtype or weight.dtype
        self.device = torch.device(device) if device is not None else weight.device
        self.refusals: tuple[str, ...] = ()
        self.taken = self._taken(source, folds, wish or Wish())
        self.denoiser = self.taken.denoiser or self._folded(source, folds)
        inside = self.dtype if self.taken.denoiser is None else torch.float32
        self.walk = Walk(self.denoiser, single(self.denoiser, source.times), 0, inside)
        self.ungraphed = graph.available(self.device)
        self._graphs: dict[tuple[int, bool, torch.dtype], Callable[..., Tensor]] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, label: Tensor | None = None, t: float | None = None) -> Tensor:
        """x (B, C, H, W), label (B,) int64 for a conditional network, t one of the times it was
        made for (needed where they are several)."""
        self._check(x, label)
        place = self.walk.places[self._place(t)]
        x = x.contiguous(memory_format=torch.channels_last)
        size = self.batch or max(1, len(x))
        parts = [
            self._part(x[k : k + size], None if label is None else label[k : k + size], place, size)
            for k in range(0, len(x), size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else x.clone()

    def explain(self) -> str:
        """What runs, and what does not and why, in lines for people."""
        lines = [
            f"{self.source.name} at t = {', '.join(f'{t:g}' for t in self.source.asked)} on "
            f"{self.device}, {str(self.dtype)[6:]}",
        ]
        if isinstance(self.denoiser, fold.Folded):
            saved = fold.explain(self.source.denoiser, self._outline(self.denoiser))
            lines += [f"  {line}" for line in str(saved).splitlines()]
        first, *rest = self._network()
        lines += [f"  network    {first}", *(f"    {line}" for line in rest)]
        batch = f"{self.batch} images a call" if self.batch else "as many images as it is given"
        lines.append(f"  batch      {batch}")
        most = f"one for each number of images, at most {MOST_GRAPHS}"
        how = "none: " + self.ungraphed if self.ungraphed else most
        lines.append(f"  CUDA graph {how}")
        lines += [f"  fell back  {what}" for what in self._calls()]
        lines += [f"  refused    {why}" for why in self.refusals]
        return "\n".join(lines)

    def _network(self) -> list[str]:
        """Who runs it; of the engine, also its layers."""
        net = self.denoiser.net
        if isinstance(net, Network):
            return net.explain(self.batch or 1)
        return [f"torch: {self.taken.why}"]

    def _calls(self) -> tuple[str, ...]:
        """Parts that the engine leaves to torch, each with the reason."""
        net = self.denoiser.net
        return net.report.calls if isinstance(net, Network) else ()

    def _taken(self, source: Source, folds: Collection[str] | None, wish: Wish) -> Taken:
        wanted = FOLDS if folds is None else folds
        return taken(source.denoiser, source.times, wish, self.dtype, self.device, wanted)

    def _outline(self, folded: fold.Folded) -> fold.Folded:
        """The folded denoiser as torch knows it; of a compiled one, without weights, unless
        somebody's own part has some."""
        if not isinstance(folded.net, Network):
            return folded
        own = self.source.denoiser
        bare = own if self._calls() else copy.deepcopy(own).to("meta")
        return fold.fold(bare, self.source.times, folds=list(folded.places), check=False)

    def _folded(self, source: Source, folds: Collection[str] | None) -> Denoiser:
        wanted = _usual(self.device) if folds is None else folds
        try:
            found: Denoiser = fold.fold(
                source.denoiser, source.times, folds=wanted, dtype=self.dtype
            )
        except fold.FoldError as error:
            self.refusals = (str(error),)
            found = source.denoiser.copy().to(self.dtype).eval().requires_grad_(False)
        return found.to(self.device)

    def _check(self, x: Tensor, label: Tensor | None) -> None:
        shape = self.denoiser.shape
        if x.dim() != 4 or tuple(x.shape[1:]) != shape or not x.is_floating_point():
            raise ValueError(
                f"accelerate: x is {tuple(x.shape)} {x.dtype}; expected (B, "
                f"{', '.join(map(str, shape))}) of floats. Reshape it."
            )
        if x.device != self.device:
            raise ValueError(
                f"accelerate: x is on {x.device}; expected {self.device}. Move it there."
            )
        if (label is None) != (self.denoiser.classes == 0) or (
            label is not None and label.shape != x.shape[:1]
        ):
            expected = f"({len(x)},) classes" if self.denoiser.classes else "None"
            raise ValueError(
                f"accelerate: label is {None if label is None else tuple(label.shape)}; expected "
                f"{expected}. Pass that."
            )

    def _place(self, t: float | None) -> int:
        asked = self.source.asked
        if t is None and len(asked) == 1:
            return 0
        for k, known in enumerate(asked):
            if t is not None and math.isclose(t, known, rel_tol=_SAME, abs_tol=_SAME):
                return k
        shown = ", ".join(f"{known:g}" for known in asked)
        raise ValueError(f"accelerate: t is {t}; expected one of {shown}. Pass t=.")

    def _part(self, x: Tensor, label: Tensor | None, place: Tensor, size: int) -> Tensor:
        """At most `size` images, by a call for exactly so many."""
        count = len(x)
        if count < size:
            x = torch.cat([x, x[-1:].expand(size - count, -1, -1, -1)])
            label = None if label is None else torch.cat([label, label[-1:].expand(size - count)])
        given = () if label is None else (label,)
        with repeatable():
            recorded = self._graph((size, label is not None, x.dtype), x, place, *given)
            if recorded is None:
                return self._step(x, place, *given)[:count]
            return recorded(x, place, *given)[:count].clone()

    def _graph(
        self, key: tuple[int, bool, torch.dtype], *given: Tensor
    ) -> Callable[..., Tensor] | None:
        """None where there is none: it cannot be recorded here, or there are too many."""
        if key in self._graphs:
            return self._graphs[key]
        if self.ungraphed or len(self._graphs) >= MOST_GRAPHS:
            return None
        try:
            self._graphs[key] = graph.capture(self._step, *given, where="accelerate")
        except graph.CaptureError as error:
            self.ungraphed = str(error)
            return None
        return self._graphs[key]

    def _step(self, x: Tensor, place: Tensor, *labels: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        seen = 2 * x.to(wide) - 1 if self.source.centred else x.to(wide)
        return self.walk.step(seen, labels[0] if labels else None, None, place).to(x.dtype)


def _usual(device: torch.device) -> Collection[str]:
    """Those that save something there."""
    return fold.KNOWN if device.type == "cuda" else fold.ALL
