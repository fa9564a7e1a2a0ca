"""Where the engine spends its time in a network: every kind of step, at several batches.

    python -m benchmarks.cpu_peers.by_layer ddpm32 --batches 1 8 --accuracy fp32

On one thread, so that nothing waits for another; batches in turns; of several runs the least, step
by step. Weights are those that are packed, in the plan that is tried first; where a batch has few
tiles, the engine reads less and makes them.
"""

from __future__ import annotations

import argparse
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdgen import engine, fold
from kdgen.denoiser import Denoiser
from kdgen.engine import building, cost
from kdgen.engine.choice import BOUNDS, Layer, Plan, plans
from kdgen.engine.compiling import compiled
from kdgen.engine.report import way
from kdgen.engine.steps import Attend, Convolve, Normalise
from kdgen.engine.tracing import trace
from kdgen.schedules import LinearVP

from .. import machine
from . import networks
from .layers import program

REPEATS = 7

Seconds = dict[int, dict[str, float]]


@dataclass
class Kind:
    """Steps that are alike."""

    count: int = 0
    packed: float = 0.0  # bytes
    products: float = 0.0  # multiply-adds of a direct convolution, for an image


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("network", choices=list(networks.NETWORKS))
    parser.add_argument("--accuracy", choices=list(BOUNDS), default="fp32")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    a = parser.parse_args(argv)
    if isinstance(why := program(), str):
        print(f"by layer: {why}")
        return 0
    plan = _plan(a.network, a.accuracy)
    made = compiled(plan)
    seconds = _least(made, plan, a.batches, a.repeats)
    for line in _lines(a, plan, made.isa, seconds):
        print(line)
    return 0


def _plan(network: str, accuracy: str) -> Plan:
    net, _ = networks.NETWORKS[network]()
    plain = Denoiser(net.eval(), LinearVP(), "x0")
    folded = fold.fold(plain, (1.0,), folds=engine.FOLDS, check=False)
    return plans(trace(folded), accuracy, **building.fast())[0]


def _least(made: Any, plan: Plan, batches: Sequence[int], repeats: int) -> Seconds:
    """Of each step, for an image: {batch: {name: seconds}}; a norm's moments are part of it."""
    ran: dict[int, list[list[tuple[str, float]]]] = {n: [] for n in batches}
    for _ in range(repeats):
        for n in batches:
            ran[n].append(_profiled(made, plan, n))
    found: Seconds = {n: defaultdict(float) for n in batches}
    for n, runs in ran.items():
        for same in zip(*runs, strict=True):
            name = same[0][0].removesuffix(" moments")
            found[n][name] += min(seconds for _, seconds in same) / n
    return found


def _profiled(made: Any, plan: Plan, batch: int) -> list[tuple[str, float]]:
    entry = plan.trace.buffers[plan.trace.input.y]
    answer = plan.trace.buffers[plan.trace.output.x]
    x = torch.randn(batch, entry.height, entry.width, plan.trace.input.channels)
    out = torch.empty(batch, answer.height, answer.width, plan.trace.output.channels)
    rows = torch.zeros(batch, dtype=torch.int32)
    found: list[tuple[str, float]]
    found = made.profile(x.data_ptr(), rows.data_ptr(), out.data_ptr(), batch)
    return found


def _kinds(plan: Plan) -> tuple[dict[str, str], dict[str, Kind]]:
    """The kind of every step, by its name; and the kinds."""
    names: dict[str, str] = {}
    kinds: dict[str, Kind] = defaultdict(Kind)
    for layer in plan.layers:
        what = _kind(layer, plan)
        kind = kinds[what]
        kind.count += layer.step.name not in names
        names.setdefault(layer.step.name, what)
        if isinstance(layer.step, Convolve):
            y, (c_out, c_in) = plan.trace.buffers[layer.step.y], layer.step.weight.shape[:2]
            kind.packed += cost.taken(layer.step, layer.form).packed(layer.step, layer.product)
            kind.products += layer.step.kernel**2 * c_out * c_in * y.height * y.width
    return names, kinds


def _kind(layer: Layer, plan: Plan) -> str:
    step = layer.step
    if isinstance(step, Convolve):
        y = plan.trace.buffers[step.y]
        return f"{step.kernel}×{step.kernel} at {y.height}×{y.width}, {way(layer)}"
    return {Attend: "attention", Normalise: "group norm"}.get(type(step), "others")


def _lines(a: argparse.Namespace, plan: Plan, isa: str, seconds: Seconds) -> Iterator[str]:
    """A table in Markdown, the dearest first."""
    names, kinds = _kinds(plan)
    spent = {n: _by_kind(found, names) for n, found in seconds.items()}
    first = a.batches[0]
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    yield (
        f"{a.network}, {a.accuracy} on {isa}, one thread, {machine.name(torch.device('cpu'))}, "
        f"{versions}, commit {machine.commit()}, least of {a.repeats}"
    )
    yield ""
    columns = " | ".join(f"batch {n}: ms an image | GFLOP/s" for n in spent)
    yield f"| | steps | weights | {columns} | GB/s at batch {first} |"
    yield "| --- |" + " ---: |" * (3 + 2 * len(spent))
    for what in sorted(kinds, key=lambda w: -spent[first][w]):
        kind = kinds[what]
        cells = [what, str(kind.count), f"{kind.packed / 2**20:,.1f} MiB" if kind.packed else ""]
        for found in spent.values():
            cells += [f"{found[what] * 1e3:.2f}", _rate(2 * kind.products, found[what])]
        cells.append(_rate(kind.packed, spent[first][what] * first))
        yield f"| {' | '.join(cells)} |"
    totals = (f"{sum(found.values()) * 1e3:.1f} | " for found in spent.values())
    yield f"| all | | | {' | '.join(totals)} | |"


def _by_kind(found: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    for name, seconds in found.items():
        spent[names[name]] += seconds
    return spent


def _rate(amount: float, seconds: float) -> str:
    return f"{amount / seconds / 1e9:,.1f}" if amount and seconds else ""


if __name__ == "__main__":
    raise SystemExit(main())
