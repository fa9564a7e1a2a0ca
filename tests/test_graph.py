"""Captured callables: static memory, exact replays, and errors that say which line is at fault."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kdgen import graph, kernels, noise
from kdgen.graph import CaptureError, compiling
from kdgen.graph.faults import explained


@dataclass(frozen=True)
class Both:
    x: Tensor
    more: list[Tensor]
    label: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


def polynomial(x: Tensor, c: Tensor) -> Tensor:
    return (x * c + 1).square().sum(1)


# Replays


def test_a_replay_computes_from_what_the_inputs_hold_now(recorder: Any):
    x, c = torch.randn(3, 4), torch.tensor(2.0)
    captured = graph.capture(polynomial, x, c, driver=recorder)
    assert captured.outputs.isnan().all()  # recording does nothing
    for k in range(3):
        y, d = torch.randn(3, 4), torch.tensor(float(k))
        assert torch.equal(captured(y, d), polynomial(y, d))
    captured.inputs[0].fill_(7)
    captured.replay()
    assert torch.equal(captured.outputs, polynomial(torch.full((3, 4), 7.0), d))


def test_inputs_are_copies_and_outputs_stay_where_they_are(recorder: Any):
    x, c = torch.randn(3, 4), torch.tensor(2.0)
    before = x.clone()
    captured = graph.capture(polynomial, x, c, driver=recorder)
    first = captured(torch.zeros(3, 4), c)
    assert captured(x, c) is first is captured.outputs
    assert torch.equal(x, before)
    assert captured.inputs[0] is not x


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_callable_runs_to_warm_up_and_once_to_be_recorded(recorder: Any, warmup: int):
    runs = []

    def call(x: Tensor) -> Tensor:
        runs.append(1)
        return x + 1

    captured = graph.capture(call, torch.zeros(2), warmup=warmup, driver=recorder)
    captured(torch.ones(2))
    captured(torch.ones(2))
    assert len(runs) == warmup + 1
    assert recorder.log == ["aside"] * warmup + ["record", "replay", "replay"]


def test_inputs_and_outputs_may_be_trees(recorder: Any):
    def call(both: Both, scale: tuple[Tensor, float]) -> dict[str, Any]:
        y = both.x * scale[0] + scale[1]
        return {"pair": Pair(y, both.more[0] + 1), "none": both.label, "again": Both(y, [y + 1])}

    def given(k: int) -> tuple[Both, tuple[Tensor, float]]:
        return Both(torch.full((2,), float(k)), [torch.arange(3) + k]), (torch.tensor(k), 0.5)

    captured = graph.capture(call, *given(1), driver=recorder)
    for k in (2, 5):
        mine, exact = captured(*given(k)), call(*given(k))
        assert torch.equal(mine["pair"].first, exact["pair"].first)
        assert torch.equal(mine["pair"].second, exact["pair"].second)
        assert torch.equal(mine["again"].more[0], exact["again"].more[0])
        assert mine["none"] is None


def test_the_layout_of_an_example_is_kept(recorder: Any):
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    captured = graph.capture(lambda x: x * 2, x, driver=recorder)
    assert captured.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert captured(x).stride() == x.stride()


def test_outputs_of_a_network_need_no_gradient(recorder: Any):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(3, 2, 4, 4)
    captured = graph.capture(net, x, driver=recorder)
    assert not captured.outputs.requires_grad
    assert torch.equal(captured(x), net(x))
    with torch.no_grad():
        net[3].bias += 1  # weights are read, not remembered
    assert torch.equal(captured(x), net(x))


def test_drawn_and_fused_ops_are_replayed_by_their_addresses(recorder: Any):
    def call(index: Tensor) -> Tensor:
        x = noise.normal(3, noise.Stream.SAMPLE, index, (8, 4, 4))
        return kernels.group_norm_silu(x, torch.ones(8), torch.zeros(8), 4)

    captured = graph.capture(call, noise.addresses(0, 2), driver=recorder)
    for first in (10, 2**40):
        index = noise.addresses(first, 2)
        assert torch.equal(captured(index), call(index))


def test_graphs_share_a_pool_when_asked(recorder: Any):
    one = graph.capture(lambda x: x + 1, torch.ones(2), driver=recorder)
    two = graph.capture(lambda x: x + 2, torch.ones(3), driver=recorder, pool=one.pool)
    other = graph.capture(lambda x: x + 3, torch.ones(3), driver=recorder)
    assert one.pool is two.pool
    assert other.pool is not one.pool
    assert recorder.pools == [one.pool, one.pool, other.pool]


# What does not fit


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            (torch.zeros(3, 5), torch.zeros(())),
            r"argument \[0\] has shape \(3, 5\); expected \(3, 4",
        ),
        (
            (torch.zeros(3, 4), torch.zeros((), dtype=torch.float64)),
            r"\[1\] has dtype torch.float64",
        ),
        (
            (torch.zeros(3, 4, device="meta"), torch.zeros(())),
            r"\[0\] has device meta; expected cpu",
        ),
        ((torch.zeros(3, 4),), r"called with \[0\]; expected \[0\], \[1\]"),
        ((torch.zeros(3, 4), 2.0), r"argument \[1\] is 2.0"),
    ],
    ids=["shape", "dtype", "device", "missing", "number"],
)
def test_arguments_unlike_the_examples_are_refused_by_name(recorder: Any, wrong: Any, text: str):
    captured = graph.capture(polynomial, torch.ones(3, 4), torch.tensor(2.0), driver=recorder)
    captured(torch.ones(3, 4), torch.tensor(2.0))
    kept = captured.outputs.clone()
    with pytest.raises(ValueError, match=text):
        captured(*wrong)
    assert torch.equal(captured.outputs, kept)
    assert torch.equal(captured.inputs[0], torch.ones(3, 4))


def test_a_constant_of_a_tree_cannot_change(recorder: Any):
    captured = graph.capture(lambda x, n: x[:n], torch.ones(3), 2, driver=recorder)
    with pytest.raises(ValueError, match=r"argument \[1\] is 3; expected 2, as captured"):
        captured(torch.ones(3), 3)


def test_what_is_elsewhere_is_refused(recorder: Any):
    with pytest.raises(CaptureError, match=r"a tensor \(\[1\]\) is on meta.*Move it to cpu"):
        graph.capture(polynomial, torch.ones(3, 4), torch.ones((), device="meta"), driver=recorder)


def test_without_a_gpu_graphs_are_refused_with_the_reason():
    assert graph.available("cpu") == "the device is cpu; expected cuda"
    with pytest.raises(CaptureError, match="graph: the device is cpu; expected cuda"):
        graph.capture(polynomial, torch.ones(3, 4), torch.ones(()))
    with pytest.raises(ValueError, match="no example is a tensor; expected device"):
        graph.capture(lambda: 1)


def clamps(x: Tensor) -> Tensor:
    return x.clamp(max=x.mean().item())


def branches(x: Tensor) -> Tensor:
    return x + 1 if x.sum() > 0 else x - 1


def picks(x: Tensor) -> Tensor:
    return x[x > 0]


def as_array(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1)


WAITING = [
    (clamps, "x.mean().item()", "waits"),
    (branches, "x.sum() > 0", "waits"),
    (picks, "x[x > 0]", "depends on values|waits"),
]


@pytest.mark.parametrize(("call", "line", "what"), WAITING, ids=["item", "if", "mask"])
def test_a_wait_is_met_in_the_warm_up_and_named(recorder: Any, call: Any, line: str, what: str):
    with pytest.raises(CaptureError, match=what) as caught:
        graph.capture(call, torch.ones(3), driver=recorder)
    assert "test_graph.py" in str(caught.value)
    assert line in str(caught.value)
    assert "record" not in recorder.log


@pytest.mark.parametrize(("call", "line", "what"), WAITING, ids=["item", "if", "mask"])
def test_a_wait_is_met_while_recording_and_named(recorder: Any, call: Any, line: str, what: str):
    with pytest.raises(CaptureError, match="waits") as caught:
        graph.capture(call, torch.ones(3), driver=recorder, warmup=0)
    assert line in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_wait_that_only_the_first_call_needs_is_no_fault(recorder: Any):
    """As of Triton, which compiles, and of tables that are made once."""
    kept: dict[str, float] = {}

    def call(x: Tensor) -> Tensor:
        if "scale" not in kept:
            kept["scale"] = x.sum().item()
        return x * kept["scale"]

    assert torch.equal(
        graph.capture(call, torch.ones(3), driver=recorder)(torch.ones(3)), torch.full((3,), 3.0)
    )


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (clamps, "x.mean().item()"),
        (branches, "x.sum() > 0"),
        (picks, "x[x > 0]"),
        (as_array, "x.numpy()"),
    ],
    ids=["item", "if", "mask", "numpy"],
)
def test_shapes_alone_show_the_fault(call: Any, line: str):
    x = torch.ones(3)
    found = graph.objection(call, x)
    assert found is not None
    assert line in str(found)
    assert torch.equal(x, torch.ones(3))
    assert graph.objection(polynomial, torch.ones(3, 4), torch.ones(())) is None


def test_looking_at_shapes_changes_no_module():
    net = nn.BatchNorm1d(4)
    before = {n: x.clone() for n, x in net.state_dict().items()}
    assert graph.objection(lambda net, x: net(x).square().mean(), net, torch.randn(3, 4)) is None
    assert all(torch.equal(x, before[n]) for n, x in net.state_dict().items())
    assert type(net.running_mean) is Tensor


def test_an_error_of_the_call_itself_is_no_objection():
    def wrong(x: Tensor) -> Tensor:
        raise ValueError("mine")

    assert graph.objection(wrong, torch.ones(3)) is None


def test_a_mistake_in_the_callable_is_raised_as_it_is(recorder: Any):
    with pytest.raises(RuntimeError, match="must match the size"):
        graph.capture(lambda x: x + torch.ones(4), torch.ones(3), driver=recorder)


def test_running_out_of_memory_is_not_dressed_up(recorder: Any):
    calls = []

    def hungry(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return x + 1

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        graph.capture(hungry, torch.ones(3), driver=recorder, warmup=1)


# Random numbers


def test_a_generator_must_be_known(recorder: Any):
    generator = torch.Generator().manual_seed(3)

    def call(x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    with pytest.raises(CaptureError, match="generator that the graph does not know") as caught:
        graph.capture(call, torch.zeros(3), driver=recorder)
    assert "torch.rand(x.shape, generator=generator)" in str(caught.value)
    captured = graph.capture(call, torch.zeros(3), driver=recorder, generators=[generator])
    generator.manual_seed(5)
    found = captured(torch.zeros(3)).clone()
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(captured(torch.zeros(3)), found)


# Compiling


def test_what_triton_would_compile_while_recording_is_named(recorder: Any):
    knobs = pytest.importorskip("triton.knobs")

    def call(x: Tensor) -> Tensor:
        if (hook := knobs.runtime.jit_cache_hook) is not None:  # as a kernel that is not there yet
            hook(key="k", repr="_forward[fp32]", already_compiled=False)
        return x + 1

    with pytest.raises(CaptureError, match=r"compiled while recording.*_forward\[fp32\].*warmup"):
        graph.capture(call, torch.ones(3), driver=recorder)
    assert knobs.runtime.jit_cache_hook is None


def test_triton_calls_the_hook_that_is_relied_upon():
    """Read in its source, since here nothing is compiled."""
    jit = pytest.importorskip("triton.runtime.jit")
    import inspect

    source = inspect.getsource(jit)
    assert "knobs.runtime.jit_cache_hook" in source
    assert "repr=" in source


def test_what_dynamo_would_compile_while_recording_is_refused(monkeypatch: pytest.MonkeyPatch):
    started: list[Any] = []
    handler = SimpleNamespace(
        register_start_callback=lambda f: started.append(f) or f,
        remove_start_callback=started.remove,
    )
    module = SimpleNamespace(callback_handler=handler)
    monkeypatch.setitem(sys.modules, "torch._dynamo.callback", module)  # type: ignore[arg-type]
    with compiling.forbidden():
        (refuse,) = started
        with pytest.raises(compiling.Compiles, match=r"torch\.compile"):
            refuse(None)
    assert started == []


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("called a synchronizing CUDA operation", "host waits"),
        ("CUDA error: operation not permitted when stream is capturing", "host waits"),
        ("CUDA error: operation failed due to a previous error during capture", "host waits"),
        (
            "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU "
            "tensor is pinned.",
            "copied between host and device",
        ),
        ("Offset increment outside graph capture encountered unexpectedly.", "random numbers"),
        ("Attempt to increase offset for a CUDA generator not in capture mode.", "random numbers"),
        ("something new", "failed while it was recorded"),
    ],
)
def test_what_torch_says_is_explained(said: str, what: str):
    error = explained(RuntimeError(said), "graph")
    assert what in str(error)
    assert said.split(".")[0] in str(error)
    assert str(error).startswith("graph: ")


# On a GPU


@pytest.mark.gpu
def test_on_a_gpu_a_replay_equals_a_call():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3)).cuda()
    x = torch.randn(4, 3, 16, 16, device="cuda")
    captured = graph.capture(net, x)
    for k in range(3):
        y = torch.randn_like(x) * k
        with torch.no_grad():
            assert torch.equal(captured(y), net(y))


@pytest.mark.gpu
@pytest.mark.parametrize(("call", "line", "what"), WAITING, ids=["item", "if", "mask"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_on_a_gpu_a_wait_is_named_and_the_device_is_usable_after(
    call: Any, line: str, what: str, warmup: int
):
    x = torch.ones(3, device="cuda")
    with pytest.raises(CaptureError) as caught:
        graph.capture(call, x, warmup=warmup)
    assert line in str(caught.value)
    # Neither the allocator nor the generator is left recording.
    drawn = torch.rand(1000, device="cuda")
    assert drawn.mean().item() > 0
    assert torch.cuda.get_sync_debug_mode() == 0
    captured = graph.capture(lambda x: torch.nn.functional.dropout(x, 0.5), drawn)
    assert (captured(drawn) == 0).any()


@pytest.mark.gpu
def test_on_a_gpu_a_host_constant_is_named():
    with pytest.raises(CaptureError) as caught:
        graph.capture(lambda x: x * torch.tensor([1.0, 2.0], device="cuda"), torch.ones(2).cuda())
    assert "test_graph.py" in str(caught.value)


@pytest.mark.gpu
def test_on_a_gpu_a_generator_must_be_known():
    generator = torch.Generator("cuda").manual_seed(3)

    def call(x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=generator, device="cuda")

    x = torch.zeros(64, device="cuda")
    with pytest.raises(CaptureError, match="generator"):
        graph.capture(call, x)
    captured = graph.capture(call, x, generators=[generator])
    generator.manual_seed(5)
    found = captured(x).clone()
    again = torch.Generator("cuda").manual_seed(5)
    assert torch.equal(found, torch.rand(64, generator=again, device="cuda"))


@pytest.mark.gpu
def test_on_a_gpu_a_shared_pool_takes_no_more_than_the_largest():
    def call(x: Tensor) -> Tensor:
        return (x * 2).square().sum()

    x = torch.ones(1 << 24, device="cuda")
    one = graph.capture(call, x)
    before = torch.cuda.memory_reserved()
    two = graph.capture(call, x[: 1 << 22], pool=one.pool)
    assert torch.cuda.memory_reserved() - before < (1 << 22) * 4 * 3
    assert one(x).item() == 4 * (1 << 24)
    assert two(x[: 1 << 22]).item() == 4 * (1 << 22)
