"""What one pass through a U-Net costs: FLOPs, bytes and the time a device could not beat.

    python -m benchmarks.model ddpm32 --flops 790e12 --bandwidth 4.3e12

The network itself is walked on the meta device, so the count follows the code that runs. FLOPs are
2 × multiply-adds of convolutions, linear layers and attention; elementwise work is counted in bytes
alone, because memory is what it waits for.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdgen.nets import PRESETS, UNet, UNetConfig
from kdgen.nets.unet import Attention, Down, GroupNorm, ResBlock, Up


@dataclass(frozen=True)
class Work:
    """One step of a forward pass for one image; sizes in elements."""

    kind: str
    name: str
    flops: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    weights: float = 0.0  # read once a batch
    scores: float = 0.0  # attention's matrix, where it is materialised
    small: float = 0.0  # what an upsampling in front of this step read


@dataclass(frozen=True)
class Style:
    """Which steps are kernels of their own. Numbers are passes over a step's output."""

    name: str
    passes: Mapping[str, float]
    attention: Callable[[Work], float]
    folded_up: bool = False  # the convolution behind an upsampling reads the small image

    def elements(self, work: Work) -> float:
        """Elements of activations that cross the memory bus for `work`, per image."""
        if work.kind == "attention":
            return self.attention(work)
        if work.kind in self.passes:
            return self.passes[work.kind] * work.writes
        reads = work.small if self.folded_up and work.small else work.reads
        return reads + work.writes


def _materialised(work: Work) -> float:
    """q, k, v and the output copied to another layout, scores written, normalised and read."""
    return work.reads + work.writes + 4 * work.scores + 6 * work.writes


def _streamed(work: Work) -> float:
    return work.reads + work.writes


_EAGER = {
    "bias": 2.0,  # torch adds it after cuDNN's convolution; oneDNN on a CPU has it inside
    "norm": 7.0,  # read for statistics, read, write; 4 more to NCHW and back
    "silu": 2.0,
    "time": 2.0,
    "residual": 3.0,
    "concat": 2.0,
}
STYLES = {
    s.name: s
    for s in (
        # torch on CUDA, channels last, a group norm that knows NCHW only, math attention
        Style("eager", _EAGER, _materialised),
        # one good kernel an operation: no layout copies, the bias inside the convolution
        Style("kernels", {**_EAGER, "bias": 0.0, "norm": 3.0}, _streamed),
        # kdgen today: time, norm and SiLU are one kernel that reads once, of two tensors where the
        # decoder has two, and writes once; a shortcut's two products are added up
        Style(
            "kdgen",
            {**_EAGER, "bias": 0.0, "norm": 2.0, "silu": 0.0, "time": 0.0, "concat": 0.0},
            _streamed,
        ),
        # and everything between two convolutions but the norm in their prologues and epilogues
        Style(
            "fused",
            {
                "bias": 0.0,
                "norm": 2.0,
                "silu": 0.0,
                "time": 0.0,
                "residual": 1.0,
                "concat": 0.0,
                "up": 0.0,
                "pad": 0.0,
            },
            _streamed,
            folded_up=True,
        ),
    )
}


# ---- the walk -------------------------------------------------------------------------------


def walk(net: UNet | UNetConfig) -> list[Work]:
    """The steps of one image through `net`, in the order they run."""
    shadow = _on_meta(net)
    works: list[Work] = []
    joined = set(shadow.decoder)
    for name, module in shadow.named_modules():
        if module in joined:
            module.register_forward_pre_hook(_noting_concat(works, name))
        if count := next((c for kind, c in _COUNTS.items() if isinstance(module, kind)), None):
            module.register_forward_hook(_noting(works, name, count))
    with torch.no_grad():
        shadow(torch.empty(1, *shadow.shape, device="meta"), torch.empty(1, device="meta"))
    ups = {f"{name}.conv" for name, module in shadow.named_modules() if isinstance(module, Up)}
    return [
        replace(w, small=w.reads / 4) if w.name in ups and w.kind == "conv3x3" else w for w in works
    ]


def _on_meta(net: UNet | UNetConfig) -> UNet:
    if isinstance(net, UNetConfig):
        with torch.device("meta"):
            return UNet(net)
    return copy.deepcopy(net).to("meta").eval()


_Count = Callable[[Any, tuple[Any, ...], Tensor, str], list[Work]]


def _noting(works: list[Work], name: str, count: _Count) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        works.extend(count(module, args, out, name))

    return note


def _noting_concat(works: list[Work], name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        x, _emb, skip = args
        size = x.numel() + skip.numel()
        works.append(Work("concat", name, reads=size, writes=size))

    return note


def _values(args: tuple[Any, ...]) -> int:
    """Of one input, or of two that stand for one."""
    return sum(a.numel() for a in args if isinstance(a, Tensor))


def _conv(m: nn.Conv2d, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
    reads, taps = _values(args), m.weight[0].numel()
    kind = f"conv{m.kernel_size[0]}x{m.kernel_size[1]}"
    work = Work(
        kind,
        name,
        2.0 * taps * y.numel(),
        reads,
        y.numel(),
        sum(p.numel() for p in m.parameters()),
    )
    return (
        [work] if m.bias is None else [work, Work("bias", name, reads=y.numel(), writes=y.numel())]
    )


def _linear(m: nn.Linear, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
    x, weights = args[0], sum(p.numel() for p in m.parameters())
    return [Work("linear", name, 2.0 * m.weight.numel(), x.numel(), y.numel(), weights)]


def _norm(m: GroupNorm, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
    return [Work("norm", name, reads=y.numel(), writes=y.numel(), weights=2 * m.weight.numel())] + (
        [Work("silu", name, reads=y.numel(), writes=y.numel())] if m.act else []
    )


def _block(m: ResBlock, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
    size = y.numel()
    work = [Work("residual", name, reads=2 * size, writes=size)]
    # The folded network's table already holds the convolution's bias, but is still added.
    return [Work("time", name, reads=size, writes=size), *work]


def _attention(m: Attention, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
    _, c, h, w = y.shape
    n, size = h * w, y.numel()
    core = Work("attention", name, 4.0 * n * n * c, 3 * size, size, scores=n * n)
    return [core, Work("residual", name, reads=2 * size, writes=size)]


def _resize(kind: str) -> _Count:
    def count(m: nn.Module, args: tuple[Any, ...], y: Tensor, name: str) -> list[Work]:
        x = args[0]
        _, c, h, w = x.shape
        grown = 4 * x.numel() if kind == "up" else c * (h + 1) * (w + 1)
        return [Work(kind, name, reads=x.numel(), writes=grown)]

    return count


_COUNTS: dict[type, _Count] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    GroupNorm: _norm,
    ResBlock: _block,
    Attention: _attention,
    Up: _resize("up"),
    Down: _resize("pad"),
}


# ---- totals ---------------------------------------------------------------------------------


def flops(works: Iterable[Work]) -> float:
    """Of one image."""
    return sum(w.flops for w in works)


def flops_by_kind(works: Iterable[Work]) -> dict[str, float]:
    """Of one image, the largest first; kinds without products are left out."""
    total: dict[str, float] = {}
    for w in works:
        if w.flops:
            total[w.kind] = total.get(w.kind, 0.0) + w.flops
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def activation_bytes(works: Iterable[Work], style: Style, itemsize: int) -> float:
    """Moved for one image, weights not included."""
    return itemsize * sum(style.elements(w) for w in works)


def weight_bytes(works: Iterable[Work], itemsize: int) -> float:
    return itemsize * sum(w.weights for w in works)


def roofline(
    works: Iterable[Work],
    style: Style,
    batch: int,
    itemsize: int,
    peak: float,
    bandwidth: float,
) -> float:
    """Seconds for a batch when every kernel meets the slower of its two limits, FLOP/s and bytes/s.

    Kernels run one after the other, so the limits are compared kernel by kernel, not in total.
    """
    return sum(
        max(
            batch * w.flops / peak,
            itemsize * (batch * style.elements(w) + w.weights) / bandwidth,
        )
        for w in works
    )


def training_roofline(
    works: Sequence[Work],
    style: Style,
    batch: int,
    itemsize: int,
    peak: float,
    bandwidth: float,
) -> float:
    """Seconds for a step: three forward passes, then Adam and an average of the weights in float32.

    Adam reads weight, gradient and two moments and writes all but the gradient, the average is read
    and written beside the weight: ten passes.
    """
    passes = 3 * roofline(works, style, batch, itemsize, peak, bandwidth)
    return passes + 10 * weight_bytes(works, 4) / bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("net", choices=sorted(PRESETS))
    parser.add_argument("--flops", type=float, required=True, help="peak, FLOP/s")
    parser.add_argument("--bandwidth", type=float, required=True, help="copy, bytes/s")
    parser.add_argument("--itemsize", type=int, default=2, help="bytes an element")
    parser.add_argument("--batch", type=int, default=512)
    a = parser.parse_args()
    works = walk(PRESETS[a.net])
    size = weight_bytes(works, a.itemsize) / 1e6
    print(f"{a.net}: {flops(works) / 1e9:.3f} GFLOP/image, weights {size:.1f} MB")
    for kind, count in flops_by_kind(works).items():
        print(f"  {kind:<10} {count / 1e9:8.3f} GFLOP")
    for style in STYLES.values():
        moved = activation_bytes(works, style, a.itemsize)
        seconds = roofline(works, style, a.batch, a.itemsize, a.flops, a.bandwidth) / a.batch
        print(
            f"  {style.name:<10} {moved / 1e6:8.1f} MB/image, "
            f"50,000 images in {50_000 * seconds:.3f} s"
        )


if __name__ == "__main__":
    main()
