"""What a step costs, in seconds of one core for one image, as far as choosing needs to know.

Measured once, on two Zen4 cores with AVX-512 and bfloat16 products (128 to 128 channels at 32×32,
direct, F(2×2) and F(4×4), and the whole 35.7M network); int8 beside float32 on cores with AVX-512
VNNI. Only ratios matter: they decide which form a convolution takes. Other machines differ most in
the products of bfloat16 and int8, which are not chosen at all where they are no instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdgen.engine.steps import (
    NONE,
    Attend,
    Buffer,
    Combine,
    Convolve,
    Normalise,
    Resample,
    Step,
    Trace,
)

# Products and sums a second, of a core in full swing: 2 a multiply-add.
ROOF = {torch.float32: 110e9, torch.bfloat16: 220e9, torch.int8: 440e9}
# Values a second that are rounded to int8, with a scale for each row of them.
ROUNDED = 2e9
# Bytes a second from memory, for weights that no cache keeps between two layers …
BANDWIDTH = 16e9
# … and images that share them. A number of its own, never that of a call: an image's bits must not
# depend on its batch.
IMAGES = 4
# Values a second that group norm reads twice and writes, and that a filter or a sum passes over.
NORMALISED = {torch.float32: 1.5e9, torch.bfloat16: 3.4e9}
PASSED = {torch.float32: 2e9, torch.bfloat16: 4e9}
# Exponentials a second.
EXPONENTIALS = 1.5e9


@dataclass(frozen=True)
class Form:
    """A way of computing a 3×3 convolution in tiles of outputs×outputs pixels.

    `products`: matrices of (channels in × channels out) that a tile takes, and that are packed.
    `transformed`: values a second that are transformed on the way in and out, `products` for each
    channel; 0 where nothing is.
    """

    outputs: int
    products: int
    transformed: float = 0.0

    def packed(self, step: Convolve, product: torch.dtype) -> int:
        """Bytes of weights."""
        c_out, c_in = step.weight.shape[:2]
        return self.products * c_in * c_out * product.itemsize


# F(4×4)'s transforms have six points instead of four: each value costs about twice as much.
FORMS = {
    "direct": Form(1, 9),
    "winograd2": Form(2, 16, 5e9),
    "winograd4": Form(4, 36, 2.5e9),
    # Of a doubled image, whose 2×2 pixels over one see 2×2 pixels each, or 3×3 in all.
    "up_direct": Form(2, 16),
    "up_winograd": Form(2, 9, 5e9),
}


def forms(step: Convolve, trace: Trace) -> tuple[str, ...]:
    """Those that can compute it."""
    if step.doubled:
        return "up_direct", "up_winograd"
    usual = (step.kernel, step.stride, step.before, step.more) == (3, 1, 1, NONE)
    x, y = trace.buffers[step.x], trace.buffers[step.y]
    alike = (x.height, x.width) == (y.height, y.width)
    return ("direct", "winograd2", "winograd4") if usual and alike else ("direct",)


def taken(step: Convolve, form: str) -> Form:
    """A direct convolution has a product a tap, whatever its window."""
    return Form(1, step.kernel**2) if form == "direct" else FORMS[form]


def convolution(
    step: Convolve, y: Buffer, form: str, product: torch.dtype, activations: torch.dtype
) -> float:
    """Products at the roof, transforms, and the weights' way from memory."""
    c_out, c_in = step.weight.shape[:2]
    how = taken(step, form)
    tiles = -(-y.height // how.outputs) * -(-y.width // how.outputs)
    seconds = tiles * how.products * c_in * c_out * 2 / ROOF[product]
    if how.transformed:
        seconds += tiles * how.products * (c_in + c_out) / how.transformed
    if product is torch.int8:
        seconds += tiles * how.products * c_in / ROUNDED
    moved = (1 + (step.residual != NONE)) * y.values * activations.itemsize
    return seconds + how.packed(step, product) / BANDWIDTH / IMAGES + moved / BANDWIDTH


def other(step: Step, trace: Trace, activations: torch.dtype) -> float:
    """Of a step that is done in one way only.

    A call counts for nothing: what it costs nobody knows before, it is the same in every plan, and
    only differences between plans decide.
    """
    if isinstance(step, Normalise):
        return trace.buffers[step.y].values / NORMALISED[activations]
    if isinstance(step, Resample | Combine):
        return trace.buffers[step.y].values / PASSED[activations]
    if isinstance(step, Attend):
        y = trace.buffers[step.y]
        pixels = y.height * y.width
        products = 4 * pixels**2 * step.heads * step.width
        return products / ROOF[activations] + pixels**2 * step.heads / EXPONENTIALS
    return 0.0
