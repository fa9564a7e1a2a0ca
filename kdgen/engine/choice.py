"""How exactly, and by which form, each convolution is computed.

An accuracy class has candidates, each a rule of what layers may use. For each, every layer takes
the form that the cost table expects to be the fastest, and the candidate that is expected to be the
fastest is tried first. None of this depends on how many images a call has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from kdgen.engine import cost
from kdgen.engine.steps import NONE, Convolve, Step, Trace

Made = TypeVar("Made")

# The largest relative error (L2) of the network's output that a class admits.
# That of the fastest is below the error of OpenVINO's int8 on the 35.7M network, 5.8e-2.
BOUNDS: Mapping[str, float] = {"exact": math.inf, "fp32": 1e-5, "bf16": 1.1e-2, "fastest": 4.7e-2}
# Channels of the narrowest layers that may multiply in int8. An image has fewer: rounding it, or
# what it is made of, costs more in quality than it saves.
ROUNDABLE = 32
# What a network asked for in this dtype gets, unless it is said.
USUAL = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Candidate:
    """A rule. `largest`: side of the largest map that may take F(4×4), whose transforms magnify
    rounding by more than F(2×2)'s. `narrowest`: the fewest channels that such a layer reads.
    `worth`: a layer takes it where its time is at most this share of the others'. `rounded`: in
    other forms, layers of at least ROUNDABLE channels on both sides may multiply in int8."""

    activations: torch.dtype
    products: torch.dtype  # of transformed layers; the others' are those of the activations
    winograd: bool = True
    largest: float = math.inf
    narrowest: int = 0
    worth: float = 1.0
    rounded: bool = False

    @property
    def name(self) -> str:
        """In words."""
        mixed = self.products is not self.activations
        kind = f"{_short(self.activations)}{f', products {_short(self.products)}' * mixed}"
        return f"{kind}{', or int8 products' * self.rounded}, {self._forms()}"

    def _forms(self) -> str:
        if not self.winograd:
            return "direct"
        if not self.largest:
            return "F(2×2)"
        upto = f" up to {self.largest:g}×{self.largest:g}" if self.largest < math.inf else ""
        wide = f" from {self.narrowest} channels" if self.narrowest else ""
        return f"F(2×2), F(4×4){upto}{wide}"

    def allows(self, form: str, side: int, channels: int) -> bool:
        """Whether a layer whose answer is so large, of so many channels, may take it."""
        if form in ("direct", "up_direct"):
            return True
        if form != "winograd4":
            return self.winograd
        return self.winograd and side <= self.largest and channels >= self.narrowest

    def offered(self, form: str, fewest: int) -> tuple[torch.dtype, ...]:
        """Products of a layer of this form, which has so many channels on its narrower side."""
        own = self.activations if form in ("direct", "up_direct") else self.products
        rounds = self.rounded and form != "winograd4" and fewest >= ROUNDABLE
        return (own, torch.int8) if rounds else (own,)


_F32, _BF16 = torch.float32, torch.bfloat16
DIRECT = Candidate(_F32, _F32, winograd=False)
_WIDE = (Candidate(_F32, _F32), Candidate(_F32, _F32, largest=0), DIRECT)
# F(4×4) in bfloat16 costs 1.05e-2 where it is used at 16×16, 1.8e-2 everywhere, and F(2×2) 8.9e-3
# (the 35.7M network); 5.9e-3 with activations in float32.
_NARROW = (
    Candidate(_BF16, _BF16, largest=16, worth=0.85),
    Candidate(_BF16, _BF16, largest=32, narrowest=384, worth=0.85),
    Candidate(_BF16, _BF16, largest=0),
    Candidate(_F32, _BF16, largest=0),
)
# 3.6e-2 where all layers are rounded (the 35.7M network).
_ROUNDED = (Candidate(_BF16, _BF16, rounded=True), Candidate(_F32, _F32, rounded=True))
CANDIDATES: Mapping[str, tuple[Candidate, ...]] = {
    "exact": (DIRECT,),
    "fp32": _WIDE,
    "bf16": _NARROW + _WIDE,
    "fastest": (*_ROUNDED, Candidate(_BF16, _BF16), *_NARROW, *_WIDE),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """A step, how it is done ("" where there is but one way), and its seconds as `cost` has it."""

    step: Step
    form: str
    product: torch.dtype
    seconds: float


@dataclass(frozen=True, eq=False)
class Plan:
    """A trace, and how each of its steps is done."""

    trace: Trace
    candidate: Candidate
    layers: tuple[Layer, ...]

    @property
    def activations(self) -> torch.dtype:
        """Of every buffer."""
        return self.candidate.activations

    @property
    def seconds(self) -> float:
        """Of one core for one image, as `cost` has it."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for plans that compute the same."""
        return self.activations, *((layer.form, layer.product) for layer in self.layers)


@dataclass(frozen=True)
class Trial:
    """A candidate, and the error that was measured with it."""

    candidate: Candidate
    error: float


def plans(trace: Trace, accuracy: str, *, fast_bf16: bool, fast_int8: bool = False) -> list[Plan]:
    """Those of a class, the one that is expected to be the fastest first.

    Without `fast_bf16`, products of bfloat16 are slower here than those of float32: none has them.
    Likewise `fast_int8`.
    """
    found: dict[tuple[object, ...], Plan] = {}
    for candidate in CANDIDATES[accuracy]:
        slow = not fast_bf16 and candidate.products is _BF16
        if not slow and (fast_int8 or not candidate.rounded):
            plan = planned(trace, candidate)
            found.setdefault(plan.signature, plan)
    return sorted(found.values(), key=lambda plan: plan.seconds)


def planned(trace: Trace, candidate: Candidate) -> Plan:
    """Every layer in the form that is the fastest of those that the candidate allows."""
    return Plan(trace, candidate, tuple(_layer(step, trace, candidate) for step in trace.steps))


def settled(
    plans: Sequence[Plan], bound: float, attempt: Callable[[Plan], tuple[Made, float]]
) -> Settled[Made]:
    """The first plan whose measured error is within the bound; else the one with the smallest.

    `attempt` makes something of a plan, and measures its error. Nothing that was made is kept while
    the next is: there may not be room for both. So the nearest one may have to be made again.
    """
    trials: list[Trial] = []
    for plan in plans:
        made, error = attempt(plan)
        trials.append(Trial(plan.candidate, error))
        nearest = plans[_nearest(trials)]
        if error <= bound or (len(trials) == len(plans) and nearest is plan):
            return Settled(plan, made, error, tuple(trials))
        del made
    made, error = attempt(nearest)
    return Settled(nearest, made, error, tuple(trials))


def _nearest(trials: Sequence[Trial]) -> int:
    """Which has the smallest error; NaN is the largest, and the last of equals counts."""
    errors = [math.inf if math.isnan(trial.error) else trial.error for trial in trials]
    return min(reversed(range(len(errors))), key=errors.__getitem__)


@dataclass(frozen=True)
class Settled(Generic[Made]):
    """What came of it: the plan, what was made of it, its error, and all that was tried."""

    plan: Plan
    made: Made
    error: float
    trials: tuple[Trial, ...]


def _layer(step: Step, trace: Trace, candidate: Candidate) -> Layer:
    activations = candidate.activations
    if not isinstance(step, Convolve):
        return Layer(step, "", activations, cost.other(step, trace, activations))
    y = trace.buffers[step.y]
    side, c_in = max(y.height, y.width), step.weight.shape[1]
    read = sum(trace.buffers[at].own for at in (step.x, step.more) if at != NONE)
    fewest = min(y.own, read)
    seconds = {
        (form, product): cost.convolution(step, y, form, product, activations)
        for form in cost.forms(step, trace)
        if candidate.allows(form, side, c_in)
        for product in candidate.offered(form, fewest)
    }
    form, product = min(seconds, key=lambda way: seconds[way] / _worth(way[0], candidate))
    return Layer(step, form, product, seconds[form, product])


def _worth(form: str, candidate: Candidate) -> float:
    return candidate.worth if form == "winograd4" else 1.0


def _short(dtype: torch.dtype) -> str:
    return str(dtype)[6:]
