"""A network that the compiled engine runs, in the place of the one it was made of."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from kdgen.engine.report import Report
from kdgen.fold import FixedTimes
from kdgen.nets.unet import UNet


class Network(nn.Module):
    """(x (B, C, R, R), time (B,), label (B,) int64 or None) -> (B, outputs·out_channels, R, R).

    On the CPU, for sampling only; answers in float32, channels last. Threads are torch's
    (`torch.set_num_threads`). An image's bits depend neither on its batch nor on them.
    """

    folded = True
    report: Report

    def __init__(self, net: UNet, program: Any, channels: int) -> None:
        super().__init__()
        assert isinstance(net.embedding, FixedTimes)
        self.facts, self.shape, self.classes = net.facts, net.shape, net.classes
        self.embedding = net.embedding
        self.channels = channels  # of the answer
        # Of no element: who asks where a module computes looks at its parameters.
        self.place = nn.Parameter(torch.empty(0, device="cpu"), requires_grad=False)
        self.program = program

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        self._check(x, label)
        rows = self._rows(len(x), time, label, augment)
        x = x.to(torch.float32).contiguous(memory_format=torch.channels_last)
        size = (len(x), self.channels, *self.shape[1:])
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        numbers = 0 if rows is None else rows.data_ptr()
        threads = torch.get_num_threads()
        self.program.run(x.data_ptr(), numbers, out.data_ptr(), len(x), threads)
        return out

    def explain(self, n: int) -> list[str]:
        """What runs, for n images at once, in lines for people; the first says the most."""
        room = self.program.workspace(n, torch.get_num_threads())
        sizes = (
            f"{_size(self.report.packed)} of packed weights, {_size(room)} of workspace for {n} "
            "images"
        )
        return [self.report.heading(), sizes, *self.report.table()]

    def _rows(
        self, n: int, time: Tensor, label: Tensor | None, augment: Tensor | None
    ) -> Tensor | None:
        """(n,) int32, or None where one row serves all."""
        row = self.embedding(time, label, augment)
        if self.embedding.rows == 1:
            return None
        return row.expand(n).to(torch.int32).contiguous()  # type: ignore[no-any-return]

    def _check(self, x: Tensor, label: Tensor | None) -> None:
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            raise ValueError(
                f"engine: x is {tuple(x.shape)} {str(x.dtype)[6:]}; expected (B, "
                f"{', '.join(map(str, self.shape))}) of floats. Reshape it."
            )
        if not x.device.type == self.place.device.type == "cpu":
            raise ValueError(
                f"engine: x is on {x.device}, the network on {self.place.device}; expected the CPU "
                "for both. Move them there, or pass engine='torch'."
            )
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                "engine: x wants a gradient; expected none, the engine only samples. Use "
                "torch.no_grad(), or the network that was not accelerated."
            )
        if label is not None and self.classes and len(label):
            self._check_classes(label)

    def _check_classes(self, label: Tensor) -> None:
        lowest, highest = (int(v) for v in label.aminmax())
        if lowest < -1 or highest >= self.classes:
            raise ValueError(
                f"engine: label has {lowest} … {highest}; expected classes 0 … "
                f"{self.classes - 1}, or -1 for none. Correct them."
            )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ValueError(
            "engine: a compiled network cannot be copied or kept; expected the one that it was "
            "made of. Keep that and accelerate it again: it takes seconds."
        )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
