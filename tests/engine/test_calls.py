"""Parts that the engine does not know run in torch, each by itself; everything else stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from types import ModuleType
from typing import Any

import pytest
import torch
from strangers import STRANGERS, Lively, Stranger, error, folded, with_engine
from torch import Tensor, nn

from kdgen import engine
from kdgen.engine import Network, steps
from kdgen.engine.choice import BOUNDS, planned
from kdgen.engine.compiling import compiled as program
from kdgen.engine.tracing import trace

MANY = (1.0, 0.25, 0.6)
TOLERANCE = 1e-10  # of float64, as for every other trace

by_place = pytest.mark.parametrize("stranger", STRANGERS, ids=lambda s: s.name)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def calls(net: Network) -> list[str]:
    return [line.split(":")[0] for line in net.report.calls]


@by_place
@pytest.mark.parametrize("many", [False, True], ids=["once", "often"])
def test_the_steps_of_a_network_with_a_stranger_say_what_it_says(
    lively: Lively, inputs: Any, reference: ModuleType, stranger: Stranger, many: bool
):
    if many and stranger.once:
        pytest.skip("this part would have to take what the time adds")
    facts = {"classes": 3, "skip_gain": 0.3} if many else {}
    plain = stranger.denoiser(lively, **facts).double()
    made = folded(plain, MANY if many else (1.0,))
    given, traced = inputs(made), trace(made)
    with torch.no_grad():
        expected = made.net(*given.all)
        row = made.net.embedding(given.time, given.label)  # type: ignore[operator]
        found = reference.run(traced, given.x, row if many else None)
    assert expected.std() > 1e-3
    assert float((found - expected).abs().max() / expected.abs().max()) < TOLERANCE
    made_of = [step for step in traced.steps if isinstance(step, steps.Call)]
    assert {step.name.split(" ")[0] for step in made_of} == {stranger.named}
    assert len([s for s in traced.steps if isinstance(s, steps.Convolve)]) > 10


IN_CLASSES = [(s, "fp32") for s in STRANGERS] + [(s, "bf16") for s in STRANGERS[::4]]


@with_engine
@pytest.mark.parametrize(("stranger", "accuracy"), IN_CLASSES, ids=lambda v: getattr(v, "name", v))
def test_a_network_with_a_stranger_is_within_the_bound_of_its_class(
    lively: Lively, inputs: Any, stranger: Stranger, accuracy: str
):
    made = folded(stranger.denoiser(lively))
    given = inputs(made)
    with torch.no_grad():
        expected = made.double().net(given.x.double(), *given.all[1:])
        net = engine.network(made.float(), accuracy)
        found = net(*given.all)
    # Measured on other images than these: as many again, as in test_network.
    assert error(found, expected) < 2 * BOUNDS[accuracy]
    assert net.report.error <= BOUNDS[accuracy]
    assert {name.split(" ")[0] for name in calls(net)} == {stranger.named}


@with_engine
@pytest.mark.parametrize("activations", [torch.float32, torch.bfloat16], ids=str)
def test_calls_write_no_more_than_their_buffer(
    lively: Lively, inputs: Any, activations: torch.dtype
):
    """With bands around every buffer, and NaN in it before it is written; by the rounding of some
    fifty layers, as in test_network."""
    candidate = engine.choice.Candidate(activations, activations, winograd=False)
    for stranger in STRANGERS[::5]:
        made = folded(stranger.denoiser(lively))
        given = inputs(made)
        with torch.no_grad():
            expected = made.double().net(given.x.double(), given.time)
        ready = program(planned(trace(made.float()), candidate), guarded=True)
        out = torch.empty(6, 3, 8, 8, memory_format=torch.channels_last)
        x = given.x.contiguous(memory_format=torch.channels_last)
        for count in (1, 2, 3):
            ready.run(x.data_ptr(), 0, out.data_ptr(), 6, count)
            bound = 1e-5 if activations is torch.float32 else 2**-9 * 50**0.5
            assert error(out, expected) < bound, stranger.name


@with_engine
@pytest.mark.parametrize("stranger", STRANGERS[::2], ids=lambda s: s.name)
def test_bits_depend_neither_on_the_batch_nor_on_threads(
    lively: Lively, inputs: Any, threads: Callable[[int], None], stranger: Stranger
):
    made = folded(stranger.denoiser(lively))
    net, given = engine.network(made, "fp32"), inputs(made, 20)
    with torch.no_grad():
        whole = net(*given.all)
        for count in (1, 2, 3):
            threads(count)
            for n in (1, 3, 8, 20):
                assert torch.equal(net(given.x[-n:], given.time[-n:]), whole[-n:]), (count, n)


class Slow(nn.Module):
    """Lets others run while it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = Event()

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        self.begun.set()
        time.sleep(0.05)
        return x

    def __deepcopy__(self, memo: object) -> Slow:
        return self  # that the one in the network can be asked


@with_engine
@pytest.mark.timeout(60)
def test_a_plan_can_be_shown_while_a_call_runs(lively: Lively, inputs: Any):
    """Who asks for the workspace waits for the run, which waits for Python's lock."""
    slow = Slow()
    made = folded(
        Stranger("slow", "middle.3", lambda net: net.middle.append(slow)).denoiser(lively)
    )
    net, given = engine.network(made, "fp32"), inputs(made, 3)
    slow.begun.clear()
    running = Thread(target=net, args=given.all, daemon=True)
    running.start()
    assert slow.begun.wait(30)
    assert "packed weights" in net.explain(8)[1]
    running.join(30)
    assert not running.is_alive()


@with_engine
def test_no_images_are_no_call(lively: Lively, inputs: Any):
    made = folded(STRANGERS[0].denoiser(lively))
    given = inputs(made, 0)
    assert engine.network(made, "fp32")(*given.all).shape == (0, 3, 8, 8)


@with_engine
def test_what_is_no_number_stays_in_its_image(lively: Lively, inputs: Any):
    made = folded(STRANGERS[0].denoiser(lively))
    net, given = engine.network(made, "exact"), inputs(made)
    x = given.x.clone()
    x[2, 1, 3, 3] = torch.nan
    found, clean = net(x, given.time), net(given.x, given.time)
    assert found[2].isnan().all()
    assert torch.equal(found[:2], clean[:2])
    assert torch.equal(found[3:], clean[3:])
