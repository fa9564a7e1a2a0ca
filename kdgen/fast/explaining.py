"""A fast generator in words: what was folded, what runs where, what falls back and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kdgen import fold, kernels
from kdgen.engine import Network
from kdgen.fast.replay import nodes
from kdgen.fast.walk import Walk

if TYPE_CHECKING:
    from kdgen.fast.fused import FastGenerator

_USED = ("group_norm_silu", "attention", "bias_residual", "philox_normal")
_WALKED = ("scale_input", "chain_step", "chain_step_uint8")


def explain(make: FastGenerator) -> str:
    """Lines of `what: how`."""
    rows = {
        "sampler": _sampler(make),
        "folds": _folds(make),
        "network": _network(make)[0],
        "steps": _steps(make),
        "CUDA graph": _graph(make),
        "batch": _batch(make),
        "algorithms": _algorithms(make),
        "kernels": _kernels(make),
        "fell back": _fallbacks(make),
    }
    where = f"{make.device}, network in {_precision(make)}, everything else in float32"
    lines = [f"FastGenerator on {where}", *(f"  {k:<11} {v}" for k, v in rows.items())]
    return "\n".join([*lines, *(f"    {line}" for line in _network(make)[1:])])


def _precision(make: FastGenerator) -> str:
    net = make.denoiser.net
    dtype = net.report.candidate.activations if isinstance(net, Network) else make.dtype
    return str(dtype)[6:]


def _network(make: FastGenerator) -> list[str]:
    """Who runs it; of the engine, also its layers."""
    net = make.denoiser.net
    return net.explain(make.batch) if isinstance(net, Network) else [f"torch: {make.unengined}"]


def _sampler(make: FastGenerator) -> str:
    how = make.how
    guided = f", guidance {how.guidance:g}" if how.guidance != 1.0 else ""
    return f"{how.sampler}, {make.nfe or 'an unknown number of'} evaluations an image{guided}"


def _folds(make: FastGenerator) -> str:
    if make.unfolded:
        return f"none: {make.unfolded}"
    if not isinstance(make.denoiser, fold.Folded):
        return "none"
    done = [f"{name} ({count})" for name, count in make.denoiser.places.items() if count]
    idle = [name for name, count in make.denoiser.places.items() if not count]
    return ", ".join(done) + (f"; nothing to do for {', '.join(idle)}" if idle else "")


def _steps(make: FastGenerator) -> str:
    if isinstance(make.program, Walk):
        return "a table of coefficients, one fused update after every evaluation"
    return f"{make.how.sampler} step by step: it is more than one update after another"


def _graph(make: FastGenerator) -> str:
    if make.ungraphed:
        return f"none: {make.ungraphed}"
    if make.captured is not None:
        return make.captured.how
    return f"from the second tile on; an evaluation is about {nodes(make.denoiser.net):,} kernels"


def _batch(make: FastGenerator) -> str:
    if make.driver is None:
        padding = f", padded to a multiple of {make.lanes}" if make.lanes > 1 else ""
        return f"at most {make.batch} images{padding}"
    return (
        f"{make.batch} images; the network always sees {make.tile}, so that bits do not depend on "
        "it"
    )


def _algorithms(make: FastGenerator) -> str:
    if make.device.type != "cuda":
        return "an image's bits do not depend on its batch"
    if make.tuned:
        return "measured by cuDNN: another process may find others, and other last bits"
    return "cuDNN's by shape, deterministic, no TF32: the same bits in every process"


def _kernels(make: FastGenerator) -> str:
    own = ("philox_normal",) if isinstance(make.denoiser.net, Network) else _USED
    names = [*own, *(_WALKED if isinstance(make.program, Walk) else ("to_uint8",))]
    ops: dict[str, kernels.Op[Any, Any]] = {op.name: op for op in kernels.OPS}
    return ", ".join(
        f"{name} {_backend(ops[name], make.dtype, make.device)}" for name in names if name in ops
    )


def _fallbacks(make: FastGenerator) -> str:
    """Parts of the network that the engine leaves to torch, and kernels that should have run in
    this process and could not."""
    net = make.denoiser.net
    lines = list(net.report.calls) if isinstance(net, Network) else []
    lines += [
        f"{op}: {fall.instead} in place of {missing}, {fall.calls:,} times, {fall.why}"
        for (op, missing), fall in kernels.fallbacks().items()
    ]
    return "; ".join(lines) or "nothing"


def _backend(op: kernels.Op[Any, Any], dtype: torch.dtype, device: torch.device) -> str:
    """The one that the op's first example in channels last would take."""
    examples = op.examples(dtype, device)
    usual = next((e for e in examples if "last" in e.name), examples[0])
    try:
        return op.choose(*usual.args).name
    except ValueError as error:
        return f"refuses ({error})"
