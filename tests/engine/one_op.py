"""Programs of one step: named parts in, one answer out, bands around every buffer.

A program has one input. Parts of other channels and sizes lie in it side by side, and 1×1
convolutions with ones and zeros take them out again, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen.kernels import native

FLOAT32, BFLOAT16, INT8 = 0, 2, 3
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
ISAS = native.module.supported_isas() if native.module else []
BAND, MARK = 64, 12345.678  # values on either side of the answer, and which

needs_native = pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")
per_isa = pytest.mark.parametrize("isa", ISAS)
# For steps that are no convolutions: those of avx512_vnni are avx512's.
per_other_isa = pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "avx512_vnni"])
per_storage = pytest.mark.parametrize("storage", [FLOAT32, BFLOAT16], ids=["fp32", "bf16"])


def padded(channels: int) -> int:
    return -(-channels // 16) * 16


def apart(v: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Zeros behind each of the parts that `dim` consists of, up to a multiple of 16."""
    parts = []
    for part, size in zip(v.split(list(sizes), dim), sizes, strict=True):
        shape = list(part.shape)
        shape[dim] = padded(size) - size
        parts += [part, part.new_zeros(shape)]
    return torch.cat(parts, dim).contiguous()


def stored(x: Tensor, storage: int) -> Tensor:
    """As a buffer of this type holds it."""
    return x.to(DTYPES[storage]).float()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int, most: int = 3) -> Tensor:
    r = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=r).float()


def numbers(n: int, rows: int) -> Tensor | None:
    """Which row each image takes: all of them, the last first. None when there is one."""
    return None if rows == 1 else (rows - 1 - torch.arange(n) % rows).int()


def address(v: Tensor | None) -> int:
    return 0 if v is None else v.data_ptr()


class OneOp:
    """`at` names the buffers of the parts, each (n, c, h, w); `parts` is what they hold."""

    def __init__(self, isa: str, storage: int, *, guarded: bool = True, **parts: Tensor) -> None:
        self.program = native.module.Program(isa=isa, guarded=guarded)  # type: ignore[union-attr]
        self.storage = storage
        self.parts = {name: stored(x, storage) for name, x in parts.items()}
        self.images = _side_by_side(list(self.parts.values()))
        _, h, w, c = self.images.shape
        whole = self.buffer(c, h, w)
        self.program.input(whole, c)
        self.at = dict.fromkeys(self.parts, whole)
        if len(self.parts) > 1:
            self._take_apart(whole)
        self._answer = (0, 0, 0)

    def buffer(self, channels: int, height: int, width: int) -> int:
        found: int = self.program.buffer(height, width, padded(channels), self.storage)
        return found

    def _take_apart(self, whole: int) -> None:
        channels, first = self.images.shape[3], 0
        for name, part in self.parts.items():
            _, c, h, w = part.shape
            self.at[name] = self.buffer(c, h, w)
            weight = torch.zeros(padded(c), padded(channels), 1, 1)
            weight[range(c), range(first, first + c)] = 1.0
            self.convolve(self.at[name], weight, torch.zeros(1, padded(c)), x=whole, kernel=1)
            first += c

    def convolve(
        self,
        y: int,
        weight: Tensor,
        bias: Tensor,
        *,
        x: int,
        more: int = -1,
        residual: int = -1,
        kernel: int = 3,
        stride: int = 1,
        before: int = 0,
        form: str = "direct",
        product: int | None = None,
        scale: float = 1.0,
    ) -> None:
        self.program.convolve(
            "layer",
            x,
            more,
            residual,
            y,
            weight.data_ptr(),
            bias.data_ptr(),
            len(bias),
            kernel,
            stride,
            before,
            form,
            self.storage if product is None else product,
            scale,
        )

    def answer(self, y: int, channels: int, height: int, width: int) -> OneOp:
        self.program.output(y, channels)
        self._answer = (height, width, channels)
        return self

    def run(
        self, images: Tensor | None = None, rows: Tensor | None = None, threads: int = 1
    ) -> Tensor:
        """(n, c, h, w); nothing around it has been written."""
        images = (self.images if images is None else images).contiguous()
        size = torch.Size(self._answer).numel() * len(images)
        room = torch.full((size + 2 * BAND,), MARK)
        out = room[BAND : BAND + size]
        out.fill_(torch.nan)
        self.program.run(
            address(images if len(images) else None),
            address(rows),
            out.data_ptr(),
            len(images),
            threads,
        )
        assert bool((torch.cat([room[:BAND], room[-BAND:]]) == torch.tensor(MARK)).all())
        return out.view(len(images), *self._answer).permute(0, 3, 1, 2).contiguous()


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """(n, H, W, all channels), zeros where a part is smaller than the largest."""
    height, width = (max(p.shape[d] for p in parts) for d in (2, 3))
    images = torch.zeros(len(parts[0]), height, width, sum(p.shape[1] for p in parts))
    first = 0
    for p in parts:
        _, c, h, w = p.shape
        images[:, :h, :w, first : first + c] = p.permute(0, 2, 3, 1)
        first += c
    return images


def same_bits(op: OneOp, rows: Tensor | None = None) -> None:
    """An image comes out the same alone, anywhere in a batch, and whatever the threads."""
    n = len(op.images)
    together = op.run(rows=rows)
    assert not together.isnan().any()
    for threads in (2, 3):
        assert torch.equal(op.run(rows=rows, threads=threads), together)
    for k in range(n):
        alone = op.run(op.images[k : k + 1], rows=None if rows is None else rows[k : k + 1])
        assert torch.equal(alone[0], together[k])
    order = torch.arange(n - 1, -1, -1)
    mixed = None if rows is None else rows[order].contiguous()
    assert torch.equal(op.run(op.images[order], rows=mixed, threads=2), together[order])


def spoilt(x: Tensor, values: Sequence[float], seed: int) -> Tensor:
    """Each value somewhere in the first image."""
    r, x = torch.Generator().manual_seed(seed), x.clone()
    for value in values:
        x[(0, *(int(torch.randint(n, (), generator=r)) for n in x.shape[1:]))] = value
    return x


def refused(*where: str) -> Any:
    """A ValueError in the house's form, of a step's kind or, in a program, of its name."""
    return pytest.raises(ValueError, match=rf"^({'|'.join(where)}): .+; expected .+\.$")
