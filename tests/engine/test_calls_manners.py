"""What a part of somebody's own may do inside the engine, and what it may not."""

from __future__ import annotations

import re
import threading
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from strangers import Lively, Mixer, Rescaled, Stranger, error, folded, put, with_engine
from torch import Tensor, nn

from kdgen import engine, fold
from kdgen.denoiser import Denoiser
from kdgen.engine import Network
from kdgen.engine.choice import BOUNDS, DIRECT, planned
from kdgen.engine.compiling import compiled as program
from kdgen.engine.tracing import trace
from kdgen.fast import FastGenerator


class Rude(nn.Module):
    """Writes into its input, and keeps it."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        self.kept = x
        return x.mul_(0.5).add_(1)


class Odd(Exception):
    """None of torch's, none of ours."""


class Failing(nn.Module):
    """Fails once it is told to; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[int] = []

    def __deepcopy__(self, memo: Any) -> Failing:
        return self

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        if self.shared:
            self.shared.append(1)
            raise Odd("in the middle of it")
        return x.tanh()


TOLD: ContextVar[str] = ContextVar("told", default="nothing")


class Watching(nn.Module):
    """Remembers what is set in the thread that it runs in."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo: Any) -> Watching:
        return Watching(self.seen)

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        facts = (x.dtype, len(x), x.is_contiguous(memory_format=torch.channels_last), self.training)
        on = (torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), TOLD.get())
        self.seen.append((threading.get_ident(), (*facts, *on)))
        return x.tanh()


def with_part(lively: Lively, part: nn.Module) -> Denoiser:
    def change(net: Any) -> None:
        net.middle[1] = part

    return Stranger("", "middle.1", change).denoiser(lively)


@with_engine
def test_a_part_may_write_into_an_image_that_nobody_reads_again(lively: Lively, inputs: Any):
    made = folded(Stranger("", "", put("middle.0.dropout", Rude)).denoiser(lively))
    given = inputs(made)
    with torch.no_grad():
        expected = made.double().net(given.x.double(), given.time)
    assert error(engine.network(made.float(), "fp32")(*given.all), expected) < 2 * BOUNDS["fp32"]


def test_elsewhere_it_may_not(lively: Lively):
    """The middle's input is also a skip connection, which torch would go on with as it is then."""

    def change(net: Any) -> None:
        net.middle.insert(0, Rude())

    with pytest.raises(engine.Refused, match=r"middle\.0 writes into an image that is read again"):
        trace(folded(Stranger("", "", change).denoiser(lively)))


@with_engine
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_what_a_part_raises_reaches_the_caller_as_it_was(
    lively: Lively, inputs: Any, count: int, n: int
):
    part = Failing()
    made = folded(with_part(lively, part))
    ready, given = program(planned(trace(made), DIRECT), guarded=True), inputs(made, n)
    x = given.x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    part.shared.append(0)
    for _ in range(2):
        with pytest.raises(Odd, match=r"^in the middle of it$"):
            ready.run(x.data_ptr(), 0, out.data_ptr(), n, count)
    assert len(part.shared) <= 1 + 2 * count
    part.shared.clear()
    ready.run(x.data_ptr(), 0, out.data_ptr(), n, count)
    assert not out.isnan().any()


@with_engine
def test_every_thread_calls_alike(lively: Lively, inputs: Any):
    seen: list[Any] = []
    made = folded(with_part(lively, Watching(seen)))
    TOLD.set("as it was made")
    ready, given = program(planned(trace(made), DIRECT), guarded=True), inputs(made, 20)
    x = given.x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    seen.clear()
    TOLD.set("as it runs")
    with torch.autocast("cpu"):
        ready.run(x.data_ptr(), 0, out.data_ptr(), 20, 2)
    assert len(seen) == 20
    assert {facts for _, facts in seen} == {
        (torch.float32, 1, True, False, True, False, "as it was made")
    }
    assert len({thread for thread, _ in seen}) == 2


@with_engine
def test_a_part_that_changes_its_mind_is_an_error(lively: Lively, inputs: Any):
    class Moody(nn.Module):
        size = 0

        def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
            return x[:, :, Moody.size :]

    made = folded(with_part(lively, Moody()))
    net, given = engine.network(made, "fp32"), inputs(made)
    Moody.size = 1
    with pytest.raises(ValueError, match=r"middle.1 answers with \(1, 40, 3, 4\); expected"):
        net(*given.all)


class Batched(nn.Module):
    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        return x - x.mean(0)


class First(nn.Module):
    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        return x - x[:1] / 2  # the first image of a batch is as it is alone


class Reading(nn.Module):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return x * emb.mean(1)[:, None, None, None].cos()


class Asking(nn.Module):
    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        return x if emb is None else x * emb.mean(1)[:, None, None, None].cos()


REFUSED = [
    (Batched(), "middle.1 answers otherwise for an image alone than beside another"),
    (First(), "middle.1 answers otherwise for an image alone than beside another"),
    (Reading(), "middle.1 is a Reading: AttributeError: 'NoneType' object has no attribute 'mean'"),
    (Asking(), "away from the original .*middle.1 is a Asking"),
]


@with_engine
@pytest.mark.parametrize(("part", "why"), REFUSED, ids=lambda v: type(v).__name__)
def test_what_needs_more_than_its_image_goes_to_torch_with_the_network(
    lively: Lively, part: nn.Module, why: str
):
    make = FastGenerator(with_part(lively, part))
    assert not isinstance(make.denoiser.net, Network)
    assert re.search(f"network +torch: .*{why}", make.explain())
    assert make(2).shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("path", "make", "classes", "why"),
    [
        ("decoder.0.0", lambda: Mixer(80), 0, "takes what the skip connection brings"),
        ("decoder.0.0.norm1", lambda: Rescaled(80), 0, "takes what the skip connection brings"),
        ("middle.0.norm2", lambda: Rescaled(40), 3, "takes what the time adds"),
        ("conv_in", lambda: nn.Sequential(nn.Conv2d(3, 20, 3)), 0, "expected a Conv2d"),
        ("middle.0.time", lambda: nn.Bilinear(1, 1, 1), 0, "expected a part of a UNet"),
    ],
    ids=["first", "norm", "timed norm", "stem", "time"],
)
def test_a_place_that_gets_more_than_an_image_is_named(
    lively: Lively, path: str, make: Any, classes: int, why: str
):
    made = Stranger("", path, put(path, make)).denoiser(lively, classes=classes)
    with pytest.raises((ValueError, fold.FoldError), match=f"{path} is a .*{why}"):
        folded(made)
