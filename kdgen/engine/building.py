"""From a folded denoiser to one that the engine runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from kdgen import fold, memory
from kdgen.denoiser import Denoiser
from kdgen.engine import choice, report
from kdgen.engine.asking import Wish
from kdgen.engine.compiling import compiled
from kdgen.engine.measuring import probe
from kdgen.engine.network import Network
from kdgen.engine.refusal import Refused
from kdgen.engine.tracing import trace
from kdgen.errors import MemoryLimitError
from kdgen.kernels import native
from kdgen.nets.unet import UNet

log = logging.getLogger("kdgen")

# A doubling and the 3×3 behind it are one step of the engine, cheaper than what the fold makes.
FOLDS = tuple(name for name in fold.ALL if name != "up")


@dataclass(frozen=True)
class Taken:
    """The denoiser, folded, with a `Network`; or None, and why torch has to run it."""

    denoiser: fold.Folded | None
    why: str


def taken(
    denoiser: Denoiser,
    times: Sequence[float],
    wish: Wish,
    dtype: torch.dtype,
    device: torch.device,
    folds: Collection[str] = FOLDS,
) -> Taken:
    """`denoiser` for these times only, as the wish has it; `dtype` is what the network was asked
    for in. Autocast is left aside, the engine rounds as its class says and is held to float32; so
    is torch's default device.

    Raises what `Wish.leave` raises, where it insists on the engine; MemoryLimitError where there
    is no room for it then.
    """
    if not (why := wish.unable(dtype, device) or fold.overgrown(times, denoiser.classes)):
        try:
            with torch.device("cpu"), torch.autocast("cpu", enabled=False):
                return Taken(_compiled(denoiser, times, folds, wish.accuracy_for(dtype)), "")
        except Refused as refused:
            why = str(refused)
        except (MemoryError, RuntimeError) as error:
            if not memory.ran_out(error):
                raise
            why = _no_room(wish, error)
    wish.leave(why, dtype)
    return Taken(None, why)


def _no_room(wish: Wish, error: Exception) -> str:
    """What torch is left with. MemoryLimitError where the wish insists on the engine."""
    why = "memory ran out while it was made"
    if wish.engine == "native":
        raise MemoryLimitError(
            f"engine: native was asked for, and {why}; expected room for it. Free memory, or let "
            "torch run it (engine='auto')."
        ) from error
    if wish.accuracy is None:  # else `leave` warns
        log.warning("engine: torch runs the network: %s.", why)
    return why


def _compiled(
    denoiser: Denoiser, times: Sequence[float], folds: Collection[str], accuracy: str
) -> fold.Folded:
    try:
        folded = fold.fold(denoiser, times, folds=folds, dtype=torch.float32).cpu()
    except (ValueError, fold.FoldError) as error:  # not a network that folds understand
        raise Refused(str(error)) from error
    folded.net = network(folded, accuracy)
    return folded


def network(folded: fold.Folded, accuracy: str) -> Network:
    """The network of `folded`, whose weights are float32, in the engine. Measures its error.

    Raises `Refused` for what the engine does not know.
    """
    found, sample, net = trace(folded), probe(folded), folded.net
    assert isinstance(net, UNet)

    def attempt(plan: choice.Plan) -> tuple[Network, float]:
        try:
            made = Network(net, compiled(plan), found.output.channels)
        except ValueError as error:  # beyond a limit of the engine: filters of many taps, say
            raise Refused(str(error)) from error
        with torch.inference_mode():
            return made, sample.error(made(sample.x, sample.time, sample.label))

    plans = choice.plans(found, accuracy, **fast())
    settled = choice.settled(plans, choice.BOUNDS[accuracy], attempt)
    settled.made.report = _report(accuracy, settled)
    if not settled.error <= choice.BOUNDS[accuracy]:
        log.warning("engine: %s", settled.made.report.heading())
    return settled.made


def _report(accuracy: str, settled: choice.Settled[Network]) -> report.Report:
    program = settled.made.program
    return report.Report(
        accuracy,
        choice.BOUNDS[accuracy],
        settled.plan.candidate,
        settled.error,
        settled.trials,
        program.isa,
        program.packed,
        report.lines(settled.plan),
        report.calls(settled.plan),
    )


def fast() -> dict[str, bool]:
    """Which products are one instruction."""
    assert native.module is not None
    program = native.module.Program()
    return {"fast_bf16": program.fast_bf16, "fast_int8": program.fast_int8}
