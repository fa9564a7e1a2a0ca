"""What one call of an op costs: FLOPs and the bytes that any implementation has to move.

Bytes count every input once and every output once: a fused kernel's floor. An exponential, a
logarithm, a sine, a root or a division counts as one FLOP; Philox's integer work is counted the
same way. All these ops wait for memory, but for Philox on a CPU and attention over large images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """`products`: the FLOPs are those of matrix products, in the dtype of the inputs."""

    flops: float
    bytes: float
    products: bool = False

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The slower of the two limits, given in FLOP/s and bytes/s."""
        return max(self.flops / peak, self.bytes / bandwidth)


def cost(op: str, args: tuple[Any, ...]) -> Cost:
    """Of `op(*args)`, every default written out. KeyError for an op that is not modelled."""
    return _FORWARD[op](*args)


def backward_cost(op: str, args: tuple[Any, ...]) -> Cost:
    """Of the gradients of all tensors among args; only for `DIFFERENTIATED`."""
    return DIFFERENTIATED[op](*args)


def _size(*tensors: Any) -> int:
    """Bytes of the tensors among these."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    more: Tensor | None,
) -> Cost:
    """Mean 1, variance 3, normalise 2, affine 2; add 1, scale 2 (with its 1 +), shift 1, SiLU 4."""
    each = 8 + (add is not None) + 2 * (scale is not None) + (shift is not None) + 4 * act
    count = x.numel() + (0 if more is None else more.numel())
    return Cost(each * count, 2 * _size(x, more) + _size(weight, bias, scale, shift, add))


def _norm_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    more: Tensor | None,
) -> Cost:
    """xhat 2, two sums per channel 3, two per group 4, dx 5; z, its sigmoid and SiLU's slope 9."""
    each = 14 + (add is not None) + 9 * act
    small = _size(weight, bias, scale, shift, add)
    count = x.numel() + (0 if more is None else more.numel())
    return Cost(each * count, 3 * _size(x, more) + 2 * small)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> Cost:
    """Two products; scores are scaled, shifted, exponentiated and summed 4, the output divided."""
    pixels = q[0, 0].numel()
    scores = len(q) * heads * pixels * pixels
    return Cost(4 * pixels * q.numel() + 4 * scores + q.numel(), _size(q, k, v, q), True)


def _attention_backward(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> Cost:
    """Five products, one of them the scores again; 5 for each score; Σ dout·out, and a scaling."""
    pixels = q[0, 0].numel()
    scores = len(q) * heads * pixels * pixels
    flops = 10 * pixels * q.numel() + 5 * scores + 4 * q.numel()
    return Cost(flops, 2 * _size(q, k, v, q), True)


def _update(x_t: Tensor, x0: Tensor, a: Any, b: Any, clip: float | None) -> Cost:
    each = 3 + 2 * (clip is not None)
    return Cost(each * x_t.numel(), 2 * _size(x_t) + _size(x0, a, b))


def _update_bytes(x_t: Tensor, x0: Tensor, a: Any, b: Any, clip: float | None) -> Cost:
    each = 8 + 2 * (clip is not None)  # clamp 2, shift, scale and round 3 more
    return Cost(each * x_t.numel(), _size(x_t, x0, a, b) + x_t.numel())


def _to_bytes(x: Tensor) -> Cost:
    return Cost(5 * x.numel(), _size(x) + x.numel())


def _draw(itemsize: int, each: float) -> Callable[..., Cost]:
    def drawn(seed: int, stream: int, index: Tensor, size: int) -> Cost:
        count = index.numel() * size
        return Cost(each * count, _size(index) + itemsize * count)

    return drawn


# Ten rounds of two wide products (low and high word), four xors and two key additions give 4 words.
_WORD = 10 * (4 + 4 + 2) / 4

_FORWARD: Mapping[str, Callable[..., Cost]] = {
    "group_norm_silu": _norm,
    "attention": _attention,
    "ddim_update": _update,
    "ddim_update_uint8": _update_bytes,
    "to_uint8": _to_bytes,
    "philox_uint32": _draw(8, _WORD),  # words are held in int64
    "philox_uniform": _draw(4, _WORD + 3),
    # Box–Muller makes two of two: log, root, sine, cosine and ten simple operations.
    "philox_normal": _draw(4, _WORD + 7),
}
DIFFERENTIATED: Mapping[str, Callable[..., Cost]] = {
    "group_norm_silu": _norm_backward,
    "attention": _attention_backward,
}
