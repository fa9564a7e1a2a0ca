"""A step that is replayed does what a step that is run does, to the last bit."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen import checkpoint, graph, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.ema import Ema
from kdgen.graph import WARMUP, CaptureError
from kdgen.keeper import Keeper
from kdgen.loop import Loop
from kdgen.methods import Method, methods
from kdgen.methods.catch_up import CatchUp
from kdgen.methods.catch_up_one_step import CatchUpOneStep
from kdgen.methods.consistency import Consistency
from kdgen.methods.denoising_student import DenoisingStudent
from kdgen.methods.diffusion import Diffusion
from kdgen.methods.edm import Edm
from kdgen.methods.progressive import Progressive
from kdgen.methods.reflow import Reflow
from kdgen.methods.sid import Sid
from kdgen.run import Run
from kdgen.schedules import Cosine
from kdgen.training import Training, fit

# Every method, with the options that make a step do more.
METHODS: list[Method] = [
    CatchUp(ramp=True, target="ema", keep=0.8),
    CatchUp(coupling=True, discrete=True),
    CatchUpOneStep(),
    Consistency(kind="cd", points=3, grown=8, mu=0.8),
    Consistency(kind="ect", dropout=0.3, stages=3),
    DenoisingStudent(),
    DenoisingStudent(online=True, error="huber"),
    Diffusion(antithetic=True, label_dropout=0.5),
    Edm(augment=0.5),
    Progressive(steps=2, last_length=1.0),
    Reflow(kind="flow"),
    Reflow(kind="distill", online=True),
    Sid(augment=0.5),
]


def label_of(method: Method) -> str:
    return f"{method.name}-{'-'.join(map(str, method.config().values()))[:40]}"


class Images:
    """Smooth images of two classes, or pairs of noise and such an image."""

    name, digest, classes, shape = "smooth", "0", 2, (1, 8, 8)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 30

    def take(self, index: Tensor) -> tuple[Tensor, ...]:
        grid = torch.linspace(-1, 1, 8)
        x0 = torch.sin(3 * grid[:, None] + index[:, None, None]) * torch.cos(2 * grid)
        pairs = (x0.flip(-1)[:, None] * 1.4,) if self.kind == "pairs" else ()
        return (*pairs, x0[:, None], index % 2)


def source(method: Method) -> Images | None:
    return None if method.data == "noise" else Images(method.data)


@pytest.fixture
def cast(lively: Any) -> Any:
    """The roles of a method around a small U-Net with dropout."""

    def build(method: Method) -> dict[str, Denoiser]:
        config = nets.UNetConfig(
            8, channels=1, width=8, mult=(1,), blocks=1, attention=(8,), classes=2, dropout=0.1,
            augments=9 if getattr(method, "augment", 0) else 0,
            skip_gain=getattr(method, "phi", None),
        )  # fmt: skip
        teacher = Denoiser(nets.UNet(config), Cosine(), "v", None, Sampling(steps=2))
        roles = method.cast(teacher)
        for k, role in enumerate(method.roles):
            lively(roles[role], seed=k)
        return roles

    return build


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> int:
    """One step warms up: what a CPU compiles is compiled."""
    monkeypatch.setattr(graph, "WARMUP", 1)
    return 1


def settings(**changes: Any) -> Training:
    usual: dict[str, Any] = {
        "steps": WARMUP + 2, "batch": 4, "lr": 1e-3, "warmup": 4, "decay": "cosine",
        "ema": Ema.power(gamma=3.0), "save_every": 2, "log_every": 2, "graph": "auto",
    }  # fmt: skip
    return Training(**{**usual, **changes})


def everything(loop: Loop) -> list[list[Tensor]]:
    """Of every step: losses, norms, weights, moments and averages, copied."""
    found = []
    for step in loop.steps():
        state = [*step.losses.values(), *step.grad_norms.values()]
        for net in (*step.nets.values(), step.ema):
            state += net.state_dict().values()
        for learner in loop.learners.values():
            state += learner.tensors().values()
        found.append([x.detach().clone() for x in state])
    return found


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> None:
    assert len(a) == len(b)
    for number, (mine, theirs) in enumerate(zip(a, b, strict=True), 1):
        assert len(mine) == len(theirs)
        for x, y in zip(mine, theirs, strict=True):
            assert torch.equal(x, y), f"step {number}: {x.flatten()[:3]} {y.flatten()[:3]}"


def test_every_method_is_here():
    assert {type(m) for m in METHODS} == set(methods().values())


@pytest.mark.parametrize("method", METHODS, ids=label_of)
def test_a_replayed_step_of_every_method_equals_a_run_one(
    method: Method, cast: Any, recorder: Any, brief: int
):
    training = settings(steps=brief + 2)
    run = Loop(method, cast(method), source(method), training, None)
    captured = Loop(method, cast(method), source(method), training, None, recorder)
    same(everything(run), everything(captured))
    rounds = len(run.plan)
    assert recorder.log.count("aside") == rounds * brief
    assert recorder.log.count("record") == rounds
    assert recorder.log.count("replay") == rounds * 2


@pytest.mark.parametrize("name", ["Denoise", "Duel", "Halving", "Ensemble"])
@pytest.mark.parametrize(
    "changes", [{"accumulate": 4, "flip": True}, {"precision": "bf16", "clip": None}], ids=str
)
def test_rounds_phases_parts_and_targets_are_replayed_exactly(
    toy: Any, recorder: Any, brief: int, name: str, changes: dict[str, Any]
):
    def loop(driver: Any = None) -> Loop:
        method = getattr(toy, name)()
        roles = {role: toy.denoiser(k) for k, role in enumerate(method.roles)}
        training = toy.training(steps=4, ema=Ema.half_life(images=40, ramp=0.5), **changes)
        return Loop(method, roles, toy.Source(), training, None, driver)

    same(everything(loop()), everything(loop(recorder)))
    assert recorder.log.count("replay") >= 4 - brief


def test_what_python_knows_is_a_constant_of_a_round(toy: Any, recorder: Any):
    """The test above can fail: a counter of Python's stands still in a graph."""

    calls = [0]

    class Counts(toy.Denoise):
        def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
            calls[0] += 1
            return super().loss(phase, nets, batch) + calls[0]

    losses = {}
    for driver in (None, recorder):
        roles = {"student": toy.denoiser(dropout=0.0)}
        loop = Loop(Counts(), roles, toy.Source(), toy.training(), None, driver)
        calls[0] = 0
        losses[driver] = [float(step.loss) for step in loop.steps()]
    assert losses[None][:WARMUP] == losses[recorder][:WARMUP]
    assert losses[None][-1] > losses[recorder][-1] + 10


def test_losses_of_a_step_stay_when_the_next_is_replayed(toy: Any, recorder: Any):
    roles = {"student": toy.denoiser()}
    loop = Loop(toy.Denoise(), roles, toy.Source(), toy.training(), None, recorder)
    held = [(step.loss, float(step.loss)) for step in loop.steps()]
    assert [float(loss) for loss, _ in held] == [then for _, then in held]
    assert len({then for _, then in held}) == len(held)


@pytest.mark.parametrize("place", [2, 3, 4])
def test_a_bad_step_is_left_out_also_when_it_is_replayed(toy: Any, recorder: Any, place: int):
    method = toy.Denoise(poison=((place * 8, math.nan),))
    loops = [
        Loop(method, {"student": toy.denoiser()}, toy.Source(), toy.training(steps=7), None, d)
        for d in (None, recorder)
    ]
    run, captured = map(everything, loops)
    for a, b in zip(run, captured, strict=True):
        assert all(torch.equal(x, y) or (x != x).any() for x, y in zip(a, b, strict=True))
    assert torch.isfinite(captured[-1][0])


def test_a_caller_who_samples_in_between_changes_nothing(toy: Any, recorder: Any):
    def end(meddle: bool) -> Tensor:
        loop = Loop(
            toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training(), None, recorder
        )
        for step in loop.steps():
            if meddle:
                step.nets.student.eval()
                torch.rand(3)
        return torch.cat([p.detach().flatten() for p in loop.nets.student.parameters()])

    assert torch.equal(end(True), end(False))


def test_a_loop_that_was_left_holds_no_graph(toy: Any, recorder: Any):
    loop = Loop(
        toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training(), None, recorder
    )
    for step in loop.steps():
        assert (loop.stepper._captured is None) == (step.number <= WARMUP)
    assert loop.stepper._captured is None


# Resuming


@pytest.mark.parametrize("name", ["Duel", "Ensemble"])
@pytest.mark.parametrize("until", [3, WARMUP + 2])
def test_a_resumed_run_of_graphs_equals_an_uninterrupted_one(
    toy: Any, recorder: Any, tmp_path: Any, name: str, until: int
):
    method = getattr(toy, name)()

    def train(folder: str, driver: Any, stop: int | None = None) -> Any:
        roles = {role: toy.denoiser(k) for k, role in enumerate(method.roles)}
        training, data = toy.training(steps=8, save_every=2), toy.Source()
        with Run(tmp_path / folder, {}) as run:
            loop = Loop(method, roles, data, training, None, driver)
            Keeper(loop, run, data).resume()
            for step in loop.steps():
                if step.number == stop:
                    break
        found = checkpoint.find(tmp_path / folder)
        return (
            {name: facts["sha256"] for name, facts in found.manifest["files"].items()},
            (tmp_path / folder / "log.jsonl").read_bytes(),
        )

    whole = train("whole", None)
    train("broken", recorder, until)
    assert train("broken", recorder) == whole


# Where it cannot be


def nosy(toy: Any, how: str) -> Any:
    """A method that reads a value."""

    class Nosy(toy.Denoise):
        def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
            loss: Tensor = super().loss(phase, nets, batch)
            if how == "item":
                loss = loss * loss.max().item()
            if how == "if" and loss.mean() > 0:
                loss = loss * 2
            if how == "mask":
                loss = loss + loss[loss > 0].sum()
            return loss

    return Nosy()


@pytest.mark.parametrize("how", ["item", "if", "mask"])
def test_a_loss_that_reads_values_is_refused_before_the_first_step_and_named(
    toy: Any, recorder: Any, how: str
):
    student = toy.denoiser()
    before = {n: x.clone() for n, x in student.state_dict().items()}
    text = {"item": "loss.max().item()", "if": "loss.mean() > 0", "mask": "loss[loss > 0]"}[how]
    with pytest.raises(CaptureError, match=r"test_captured\.py:") as caught:
        Loop(
            nosy(toy, how),
            {"student": student},
            toy.Source(),
            toy.training(graph="on"),
            None,
            recorder,
        )
    assert text in str(caught.value)
    assert "torch.where" in str(caught.value)
    assert all(torch.equal(x, before[n]) for n, x in student.state_dict().items())
    assert type(student.net.calls) is Tensor
    assert recorder.log == []


def test_a_teacher_whose_solver_decides_by_values_is_named(cast: Any, recorder: Any):
    method = DenoisingStudent(online=True, how=Sampling("rk45"))
    with pytest.raises(CaptureError, match=r"fit: the host waits .*, \w+\.py:\d+ `"):
        Loop(method, cast(method), None, settings(graph="on"), None, recorder)


def test_auto_says_why_not_once_and_goes_on(toy: Any, recorder: Any, caplog: Any):
    method = nosy(toy, "item")
    with caplog.at_level(logging.WARNING, "kdgen"):
        loop = Loop(
            method, {"student": toy.denoiser()}, toy.Source(), toy.training(), None, recorder
        )
        captured = everything(loop)
    assert [r.message.count("Going on without a graph") for r in caplog.records] == [1]
    run = Loop(method, {"student": toy.denoiser()}, toy.Source(), toy.training(), None)
    same(captured, everything(run))


class HiddenWait(torch.autograd.Function):
    """Reads a value where shapes alone do not lead: on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy * max(1.0, 0 * dy.sum().item())


def hidden(toy: Any) -> Any:
    class Hidden(toy.Denoise):
        def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
            loss: Tensor = HiddenWait.apply(super().loss(phase, nets, batch))
            return loss

    return Hidden()


def test_a_wait_in_the_backward_pass_is_met_in_the_warm_up(toy: Any, recorder: Any, caplog: Any):
    def loop(driver: Any, **changes: Any) -> Loop:
        roles = {"student": toy.denoiser()}
        return Loop(hidden(toy), roles, toy.Source(), toy.training(**changes), None, driver)

    steps = loop(recorder, graph="on").steps()
    for _ in range(WARMUP - 1):
        next(steps)
    with pytest.raises(CaptureError, match=r"dy\.sum\(\)\.item\(\)"):
        next(steps)
    with caplog.at_level(logging.WARNING, "kdgen"):
        same(everything(loop(recorder)), everything(loop(None)))
    assert len(caplog.records) == 1


def test_a_recording_that_fails_leaves_the_step_to_be_run(toy: Any, recorder: Any, caplog: Any):
    """A constant made on the host, of which neither shapes nor the warm-up know."""

    class Constant(toy.Denoise):
        def loss(self, phase: str, nets: Any, batch: Any) -> Tensor:
            return super().loss(phase, nets, batch) * torch.tensor(2.0)

    def loop(driver: Any) -> Loop:
        return Loop(
            Constant(), {"student": toy.denoiser()}, toy.Source(), toy.training(), None, driver
        )

    with caplog.at_level(logging.WARNING, "kdgen"):
        same(everything(loop(recorder)), everything(loop(None)))
    assert len(caplog.records) == 1
    assert "torch.tensor(2.0)" in caplog.text
    assert "replay" not in recorder.log


def test_graphs_on_a_cpu_are_refused_or_quietly_left(toy: Any, caplog: Any):
    def begin(wanted: str) -> Any:
        training = toy.training(graph=wanted)
        return fit(toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), training)

    with pytest.raises(CaptureError, match="graph is 'on', but the device is cpu; expected"):
        begin("on")
    with caplog.at_level(logging.WARNING, "kdgen"):
        next(begin("auto"))
        next(begin("off"))
    assert not caplog.records
    with pytest.raises(ValueError, match="unknown graph 'yes'"):
        begin("yes")


def test_a_run_may_be_resumed_with_another_choice_of_graph(toy: Any, tmp_path: Any):
    for wanted in ("auto", "off"):
        with Run(tmp_path / "a", {"training": {"graph": wanted}}) as run:
            training = toy.training(steps=6, graph=wanted)
            steps = fit(toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), training, run=run)
            for step in steps:
                if step.number == 5:  # saved when the next is asked for
                    break
            run.save()


# On a GPU


def on_gpu(method: Method, cast: Any, wanted: str, **changes: Any) -> list[list[Tensor]]:
    loop = Loop(method, cast(method), source(method), settings(graph=wanted, **changes), "cuda")
    found = everything(loop)
    assert loop.stepper.hopeful == (wanted == "on")
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS, ids=label_of)
def test_on_a_gpu_every_method_is_captured_and_equals_eager(
    method: Method, cast: Any, precision: str
):
    """To the bit: the same kernels on the same numbers. Where two eager runs differ (atomics in a
    backward pass), captured ones may differ as much, and four times that is allowed."""
    eager, again = (on_gpu(method, cast, "off", precision=precision) for _ in range(2))
    captured = on_gpu(method, cast, "on", precision=precision)
    for number, (a, b, c) in enumerate(zip(eager, again, captured, strict=True), 1):
        for x, y, z in zip(a, b, c, strict=True):
            if torch.equal(x, y):
                assert torch.equal(x, z), f"step {number}"
            else:
                assert (x - z).abs().max() <= 4 * (x - y).abs().max(), f"step {number}"


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_of_graphs_equals_an_uninterrupted_one(toy: Any, tmp_path: Any):
    def train(folder: str, stop: int | None = None) -> Any:
        method = toy.Ensemble()
        roles = {role: toy.denoiser(k).to("cuda") for k, role in enumerate(method.roles)}
        training = toy.training(steps=8, save_every=2, graph="on")
        with Run(tmp_path / folder, {}) as run:
            for step in fit(method, roles, toy.Source(), training, run=run):
                if step.number == stop:
                    break
        manifest = checkpoint.find(tmp_path / folder).manifest
        return {name: facts["sha256"] for name, facts in manifest["files"].items()}

    whole = train("whole")
    train("broken", 6)
    assert train("broken") == whole


@pytest.mark.gpu
def test_on_a_gpu_dropout_of_a_graph_follows_the_step(toy: Any):
    ends = []
    for wanted in ("off", "on"):
        roles = {"student": toy.denoiser(dropout=0.5).to("cuda")}
        training = toy.training(graph=wanted)
        ends.append([float(s.loss) for s in fit(toy.Denoise(), roles, toy.Source(), training)])
    assert ends[0] == ends[1]


@pytest.mark.gpu
def test_on_a_gpu_rounds_do_not_pile_up_memory(toy: Any):
    method = toy.Halving()
    roles = {role: toy.denoiser(k, width=64).to("cuda") for k, role in enumerate(method.roles)}
    held = []
    for step in fit(method, roles, toy.Source(), toy.training(steps=6, batch=64, graph="on")):
        if step.ends_round:
            torch.cuda.synchronize()
            held.append(torch.cuda.memory_allocated())
    assert held[2] <= 1.1 * held[1]
