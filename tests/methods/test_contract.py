"""What every method of kdgen/methods is held to.

A method brings its known answers in `tests/methods/test_<name>.py`: `answers(batch)` yields
(method, nets, batch) with a loss of zero. Nothing else is to be registered.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils.flop_counter import FlopCounterMode

from kdgen import nets, noise, samplers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.methods import Batch, Method, Nets, methods
from kdgen.methods.base import drops
from kdgen.schedules import Cosine

Answer = tuple[Method, Nets, Batch]
Lively = Callable[..., nn.Module]


def module_of(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"test_{name}.py")
    if not path.exists():
        pytest.fail(f"{path.name} is missing; expected it to bring `answers` for the contract.")
    spec = importlib.util.spec_from_file_location(f"kdgen_answers_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=sorted(methods()))
def answers(request: pytest.FixtureRequest, batch: Callable[..., Batch]) -> list[Answer]:
    found = list(module_of(request.param).answers(batch))
    assert found
    assert {type(method) for method, _, _ in found} == {methods()[request.param]}
    return found


def phases(answers: list[Answer]) -> Iterator[tuple[Method, str, Nets, Batch]]:
    for method, roles, batch in answers:
        for phase in method.phases:
            yield method, phase, roles, batch


@pytest.fixture
def networks(lively: Lively) -> Callable[[Method, int], Nets]:
    """A U-Net for every role, as the loop has them in a phase: of one level, as methods do not see
    how deep a network is."""

    def build(method: Method, classes: int = 0, dropout: float = 0.0) -> Nets:
        size = nets.UNetConfig(
            8, width=8, mult=(1,), blocks=1, attention=(8,), classes=classes, dropout=dropout
        )
        gain = getattr(method, "phi", None)
        time = None if gain is None else "raw"
        net = nets.UNet(replace(size, skip_gain=gain))
        teacher = Denoiser(net, Cosine(), "v", time, Sampling(steps=2))
        roles = method.cast(teacher)
        assert set(roles) == set(method.roles)
        for k, role in enumerate(method.roles):
            lively(roles[role], seed=k).eval()
        roles.student.sampling = method.sampling(roles.student)
        method.check(roles)
        return roles

    return build


def freeze(method: Method, phase: str, roles: Nets) -> None:
    for role in method.roles:
        roles[role].requires_grad_(role in method.trained(phase))


def test_a_method_declares_what_it_needs(answers: list[Answer]):
    for method, _, _ in answers:
        assert "student" in method.roles
        assert method.data in ("images", "pairs", "noise")
        assert set(method.trains) == set(method.phases)
        for phase in method.phases:
            assert set(method.trained(phase)) <= set(method.roles) - {"target"}
        assert method.cost() >= 3
        assert method.config()["method"] == method.name
        assert all(isinstance(m, type(method)) for m in method.rounds())


def test_the_loss_is_zero_at_the_known_answer(answers: list[Answer]):
    for method, phase, roles, batch in phases(answers):
        assert method.loss(phase, roles, batch).abs().max() < 1e-5, method


def test_the_loss_is_not_zero_elsewhere(answers: list[Answer]):
    for method, phase, roles, batch in phases(answers):
        learning = {role for phase in method.phases for role in method.trained(phase)}
        weights = [p for role in learning for p in roles[role].parameters()]
        with torch.no_grad():
            torch._foreach_add_(weights, 0.3)
        assert method.loss(phase, roles, batch).mean().abs() > 1e-3, method
        with torch.no_grad():
            torch._foreach_sub_(weights, 0.3)


@pytest.mark.parametrize("classes", [0, 3])
def test_one_value_for_each_image(
    answers: list[Answer],
    networks: Callable[..., Nets],
    batch: Callable[..., Batch],
    classes: int,
):
    for method, phase, _, _ in phases(answers):
        loss = method.loss(phase, networks(method, classes), batch(classes=classes))
        assert loss.shape == (8,)
        assert loss.dtype == torch.float32
        assert loss.requires_grad


def test_the_loss_is_finite_in_bfloat16(
    answers: list[Answer], networks: Callable[..., Nets], batch: Callable[..., Batch]
):
    for method, phase, _, _ in phases(answers):
        roles = networks(method)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = method.loss(phase, roles, batch())
        exact = method.loss(phase, roles, batch())
        assert loss.isfinite().all()
        torch.testing.assert_close(loss.float(), exact, rtol=0.2, atol=0.05)
        loss.mean().backward()
        for role in method.trained(phase):
            grads = [p.grad for p in roles[role].parameters() if p.grad is not None]
            assert grads
            assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("classes", [0, 3])
def test_gradients_reach_the_trained_role_and_no_other(
    answers: list[Answer],
    networks: Callable[..., Nets],
    batch: Callable[..., Batch],
    classes: int,
):
    for method, phase, _, _ in phases(answers):
        roles = networks(method, classes)
        freeze(method, phase, roles)
        method.loss(phase, roles, batch(classes=classes)).mean().backward()
        for role in method.roles:
            reached = [p.grad is not None for p in roles[role].parameters()]
            assert all(reached) if role in method.trained(phase) else not any(reached), role


def test_the_teacher_gets_no_gradient_even_if_it_could(
    answers: list[Answer], networks: Callable[..., Nets], batch: Callable[..., Batch]
):
    for method, phase, _, _ in phases(answers):
        if "teacher" not in method.roles:
            continue
        roles = networks(method)
        method.loss(phase, roles, batch()).mean().backward()
        assert all(p.grad is None for p in roles.teacher.parameters())


def permuted(batch: Batch, order: Tensor) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "progress"}
    return replace(batch, **{n: None if v is None else v[order] for n, v in values.items()})


@pytest.mark.parametrize("classes", [0, 3])
def test_the_order_of_a_batch_does_not_matter(
    answers: list[Answer],
    networks: Callable[..., Nets],
    batch: Callable[..., Batch],
    classes: int,
):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    for method, phase, _, _ in phases(answers):
        roles, drawn = networks(method, classes), batch(classes=classes)
        loss = method.loss(phase, roles, drawn)
        turned = method.loss(phase, roles, permuted(drawn, order))
        torch.testing.assert_close(turned, loss[order], rtol=1e-3, atol=1e-5)


def loss_without_values(method: Method, phase: str, roles: Nets, batch: Batch) -> Tensor:
    """The loss where tensors have shapes but no values: whoever reads one raises.

    After one real call, so that constants of the schedules are known.
    """
    method.loss(phase, roles, batch)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        fake = {n: v if v is None else mode.from_tensor(v) for n, v in values.items()}
        return method.loss(phase, roles, Batch(**fake))


@pytest.mark.parametrize("classes", [0, 3])
def test_the_loss_never_reads_a_value(
    answers: list[Answer],
    networks: Callable[..., Nets],
    batch: Callable[..., Batch],
    classes: int,
):
    for method, phase, _, _ in phases(answers):
        roles = networks(method, classes)
        loss = loss_without_values(method, phase, roles, batch(classes=classes))
        assert isinstance(loss, FakeTensor)
        assert loss.shape == (8,)


@dataclass(frozen=True)
class Nosy(Method):
    """Reads values in the ways that are easily overlooked."""

    how: str = "item"
    roles = ("student",)

    def loss(self, phase: str, nets: Nets, batch: Batch) -> Tensor:
        guess = nets.student(batch.z, 1.0).x0.flatten(1)
        if self.how == "item":
            return guess.mean(1) * guess.max().item()
        if self.how == "if":
            return guess.mean(1) if guess.mean() > 0 else -guess.mean(1)
        return guess[guess > 0]


@pytest.mark.parametrize("how", ["item", "if", "mask"])
def test_reading_a_value_is_noticed(
    networks: Callable[..., Nets], batch: Callable[..., Batch], how: str
):
    """The test above can fail."""
    method = Nosy(how=how)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        loss_without_values(method, "main", networks(method), batch())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_cost_and_memory_are_what_is_counted(
    answers: list[Answer],
    networks: Callable[..., Nets],
    batch: Callable[..., Batch],
    dropout: float,
):
    """FLOPs of a step in forward passes, and what its largest phase keeps for going back."""
    for method, _, _ in answers:
        if getattr(method, "online", False) or getattr(method, "coupling", False):
            continue  # a teacher's sampling and an encoder come on top
        roles, drawn = networks(method, dropout=dropout), batch()
        student = roles.student.train()
        once, one_graph = measured(partial(forward, student, drawn))
        found = [step(method, phase, roles, drawn) for phase in method.phases]
        flops, kept = sum(f for f, _ in found) / once, max(k for _, k in found) / one_graph
        cost = method.cost(drops(student))
        assert 0.97 * cost < flops <= cost + 1e-6  # nothing goes back into the images
        assert method.graphs - 0.5 < kept < method.graphs + 0.1


def forward(student: Denoiser, batch: Batch) -> Tensor:
    return student(batch.x0, 0.5).x0.mean()


def step(method: Method, phase: str, roles: Nets, batch: Batch) -> tuple[float, float]:
    """`measured` of one phase, as the loop runs it."""
    freeze(method, phase, roles)
    for role in method.roles:
        roles[role].train(role in method.trained(phase))
    return measured(lambda: method.loss(phase, roles, batch).mean(), back=True)


def measured(loss: Callable[[], Tensor], back: bool = False) -> tuple[float, float]:
    """(FLOPs, with those of the backward pass if asked, bytes kept for it)."""
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            kept[t.data_ptr()] = t
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            value = loss()
        if back:
            value.backward()
    return counter.get_total_flops(), float(sum(t.nbytes for t in kept.values()))


def test_generate_uses_the_evaluations_it_declares(
    answers: list[Answer], networks: Callable[..., Nets]
):
    for method, _, _ in answers:
        student = networks(method).student
        calls: list[int] = []
        student.net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        z = noise.normal(0, 0, noise.addresses(0, 4), student.shape)
        images = method.generate(student, z)
        assert images.shape == z.shape
        assert len(calls) == samplers.evaluations(student.schedule, student.sampling)
