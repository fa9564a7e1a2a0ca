"""What was planned, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from kdgen.engine import steps
from kdgen.engine.choice import Candidate, Layer, Plan, Trial
from kdgen.engine.steps import Step, Trace

SMALLEST = 0.01  # share of a line of its own

_VERBS: dict[type, str] = {
    steps.Normalise: "group norm",
    steps.Attend: "attention",
    steps.Resample: "filter",
    steps.Combine: "sum",
}


@dataclass(frozen=True)
class Line:
    """Steps that are alike: what they do, how, how many there are, their share of the time that the
    cost table predicts, and the name of one."""

    what: str
    how: str
    count: int
    share: float
    first: str


@dataclass(frozen=True)
class Report:
    """Of one network. `error` is its measured distance from torch in float32, relative; `trials`
    are all that was measured."""

    accuracy: str
    bound: float
    candidate: Candidate
    error: float
    trials: tuple[Trial, ...]
    isa: str
    packed: int  # bytes of weights
    lines: tuple[Line, ...]
    calls: tuple[str, ...] = ()  # what torch runs all the same, and why

    def heading(self) -> str:
        """The class, what it became, and how exact that is."""
        bound = f", bound {self.bound:.1e}" if self.bound < math.inf else ""
        missed = [t for t in self.trials if not t.error <= self.bound]
        told = "".join(f"; {t.candidate.name} missed it: {t.error:.1e}" for t in missed)
        end = "" if self.error <= self.bound else "; nothing kept it"
        how = f"native on {self.isa}, class {self.accuracy}: {self.candidate.name}"
        return f"{how}; error {self.error:.1e}{bound}{told}{end}"

    def table(self) -> list[str]:
        """A row for steps that are alike, the dearest first."""
        wide, far = (max(len(getattr(x, n)) for x in self.lines) for n in ("what", "how"))
        return [
            f"{x.what:<{wide}}  {x.how:<{far}}  x{x.count:<3} {_percent(x.share)}  {x.first}"
            + " …" * (x.count > 1)
            for x in self.lines
        ]


def lines(plan: Plan) -> tuple[Line, ...]:
    """The steps that take time, in groups."""

    def alike(layer: Layer) -> tuple[str, str]:
        return _what(layer.step, plan.trace), way(layer)

    timed = sorted((layer for layer in plan.layers if layer.seconds), key=alike)
    found = []
    for (what, how), group in groupby(timed, alike):
        members = list(group)
        share = sum(layer.seconds for layer in members) / plan.seconds
        found.append(Line(what, how, len(members), share, members[0].step.name))
    found.sort(key=lambda line: -line.share)
    return (*_shortened(found), *_called(plan))


def calls(plan: Plan) -> tuple[str, ...]:
    """What torch runs, each with the reason."""
    found = (step for step in plan.trace.steps if isinstance(step, steps.Call))
    return tuple(f"{step.name}: torch, because it {step.why}" for step in found)


def _called(plan: Plan) -> list[Line]:
    """A line each, without a share: the cost table does not know them."""
    return [
        Line(_what(step, plan.trace), "torch", 1, math.nan, step.name)
        for step in plan.trace.steps
        if isinstance(step, steps.Call)
    ]


def _percent(share: float) -> str:
    return f"{'–':>6}" if math.isnan(share) else f"{share:6.1%}"


def _shortened(found: list[Line]) -> tuple[Line, ...]:
    """With all the small ones in a last line."""
    large = [line for line in found if line.share >= SMALLEST]
    small = found[len(large) :]
    if len(small) < 2:
        return tuple(found)
    count, share = sum(x.count for x in small), sum(x.share for x in small)
    return (*large, Line("others", "", count, share, small[0].first))


def way(layer: Layer) -> str:
    """Its form and its products; "" where there is but one way."""
    return f"{layer.form} {str(layer.product)[6:]}" if layer.form else ""


def _what(step: Step, trace: Trace) -> str:
    assert not isinstance(step, steps.Output)
    y = trace.buffers[step.y]
    size = f"at {y.height}×{y.width}"
    c_out = y.own
    if isinstance(step, steps.Call):
        return f"{type(step.module).__name__} {c_out} {size}"
    if not isinstance(step, steps.Convolve):
        return f"{_VERBS[type(step)]} {c_out} {size}"
    inputs = [trace.buffers[at] for at in (step.x, step.more) if at != steps.NONE]
    c_in = sum(x.own for x in inputs)
    stride = f" stride {step.stride}" if step.stride > 1 else ""
    return f"{step.kernel}×{step.kernel}{stride} {c_in}→{c_out} {size}"
