"""Attention, forward and backward, at head widths and image sizes of published networks."""

from __future__ import annotations

from collections.abc import Iterator

from kdgen.kernels._triton import attention
from kdgen.kernels._triton import attention_cuts as cuts
from tools.aot.case import ARCHS, SHARED_LIMIT, TENSOR_CORES, Case

# tokens, channels of a head, dtype: ADM, DDPM and DDPM++, a padded head, and float32 with
# heads taken whole (up to 32 channels) and in parts.
SHAPES = (
    (1024, 64, "bf16"),
    (256, 256, "bf16"),
    (64, 256, "bf16"),
    (16, 256, "bf16"),
    (49, 96, "fp16"),
    (16, 16, "fp32"),
    (16, 32, "fp32"),
    (1024, 64, "fp32"),
    (256, 256, "fp32"),
)


def cases() -> Iterator[Case]:
    for tokens, width, dtype in SHAPES:
        itemsize = 4 if dtype == "fp32" else 2
        for arch in ARCHS:
            one = cuts.whole(tokens, width, itemsize, SHARED_LIMIT[arch])
            backward = ("backward_whole",) if one else ("backward_q", "backward_kv")
            for which in ("forward", *backward):
                yield _case(which, tokens, width, dtype, itemsize, arch)


def _case(which: str, tokens: int, width: int, dtype: str, itemsize: int, arch: int) -> Case:
    kernel = attention.KERNELS[which]
    cut = cuts.ruled(which, tokens, width, itemsize, SHARED_LIMIT[arch])
    known = cuts.constants(cut, tokens, width)
    values = ("dout", "q", "k", "v", "out", "dq", "dk", "dv")
    strides = [f"{v}_{of}" for v in values for of in ("image", "token")]
    sizes = ("N",) if tokens % 16 == 0 else ()
    # The tensor cores of sm_90 take 64 rows at least; smaller images use those of sm_80.
    rows = cut.block_k if which == "backward_kv" else cut.block_q
    tensor_core = TENSOR_CORES[arch] if rows >= 64 else "HMMA"
    full = rows * width >= 4 * 32 * cut.warps  # four values for every thread
    return Case(
        f"attention {which} {tokens}x{width} {dtype}",
        kernel,
        {f"{v}_ptr": f"*{dtype}" for v in values} | {"scale": "fp32"},
        {n: v for n, v in known.items() if n in kernel.arg_names},
        cut.warps,
        cut.stages,
        multiples=tuple(n for n in (*sizes, *strides) if n in kernel.arg_names),
        wide=0.7 if full else 0.0,  # the rest is logsumexp and delta, four bytes a row
        instructions={} if dtype == "fp32" else {arch: tensor_core},
        without="tf32" if dtype == "fp32" else "",
        archs=(arch,),
    )
