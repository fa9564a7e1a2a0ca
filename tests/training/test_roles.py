"""What methods may ask of the loop beyond one student: joint roles, a target, unequal rounds."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen import checkpoint
from kdgen.loop import Loop
from kdgen.run import Run
from kdgen.training import fit, rectification


def nets(toy: SimpleNamespace, method: Any) -> dict[str, Any]:
    return {role: toy.denoiser(k) for k, role in enumerate(method.roles)}


def weights(denoiser: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in denoiser.parameters()])


def test_one_loss_trains_two_roles_and_leaves_the_others(toy: SimpleNamespace):
    method = toy.Ensemble()
    roles = nets(toy, method)
    before = {role: weights(net) for role, net in roles.items()}
    step = next(fit(method, roles, toy.Source(), toy.training()))
    moved = {role for role in method.roles if not torch.equal(weights(roles[role]), before[role])}
    assert moved == {"student", "helper", "target"}
    assert step.grad_norm > 0


def test_the_target_is_the_average_that_the_method_asks_for(toy: SimpleNamespace):
    """keeps() at the fraction of the round done, recomputed with plain arithmetic."""
    method = toy.Ensemble()
    roles = nets(toy, method)
    expected = weights(roles["target"])
    for step in fit(method, roles, toy.Source(), toy.training(steps=4)):
        if step.round:
            break
        keep = 0.5 + (step.number - 1) / 4 / 4
        expected = keep * expected + (1 - keep) * weights(step.nets.student)
        torch.testing.assert_close(weights(step.nets.target), expected, rtol=1e-5, atol=1e-6)
        assert not any(p.requires_grad for p in step.nets.target.parameters())


def test_rounds_have_the_length_and_the_sampling_they_ask_for(toy: SimpleNamespace):
    method = toy.Ensemble()
    ends, seen, rates = [], [], []
    training = toy.training(steps=6, warmup=0, decay="linear")
    for step in fit(method, nets(toy, method), toy.Source(), training):
        assert step.steps == 9
        assert step.method.level == (1.0, 0.5)[step.round]
        assert step.ema.sampling.steps == step.nets.student.sampling.steps
        seen.append((step.round, step.ema.sampling.steps))
        rates.append(step.lr)
        if step.ends_round:
            ends.append(step.number)
    assert ends == [6, 9]
    assert seen == [(0, 8)] * 6 + [(1, 4)] * 3
    expected = [1e-2 * (1 - k / 6) for k in range(6)] + [1e-2 * (1 - k / 3) for k in range(3)]
    assert rates == pytest.approx(expected)


def test_a_new_round_starts_the_target_at_the_student(toy: SimpleNamespace):
    method = toy.Ensemble()
    loop = Loop(method, nets(toy, method), toy.Source(), toy.training(steps=4), None)
    steps = loop.steps()
    for _ in range(4):
        step = next(steps)
    raw = weights(step.nets.student)
    step = next(steps)
    assert step.round == 1
    expected = 0.5 * raw + 0.5 * weights(step.nets.student)
    torch.testing.assert_close(weights(step.nets.target), expected, rtol=1e-5, atol=1e-6)


def test_gauges_are_in_the_log_at_its_lines(toy: SimpleNamespace, tmp_path: Any):
    method = toy.Ensemble()
    with Run(tmp_path / "a", {}) as run:
        for step in fit(method, nets(toy, method), toy.Source(), toy.training(steps=4), run=run):
            if step.number == 3:  # the weights that the line of step 3 has seen
                gap = gauge(toy, method, step)
    lines = [json.loads(x) for x in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    found = {line["step"]: line["gap"] for line in lines}
    assert set(found) == {3, 6}
    assert found[3] == pytest.approx(gap, rel=1e-6)


def gauge(toy: SimpleNamespace, method: Any, step: Any) -> float:
    loop = Loop(method, nets(toy, method), toy.Source(), toy.training(steps=4), None)
    batch = loop.batches(step.number - 1, 0.0)
    modes = {role: net.training for role, net in step.nets.items()}
    for net in step.nets.values():
        net.eval()
    with torch.no_grad():
        value = method.gauges(step.nets, batch)["gap"]
    for role, mode in modes.items():
        step.nets[role].train(mode)
    return float(value)


def test_each_phase_has_draws_of_its_own_and_the_same_images(toy: SimpleNamespace):
    method = toy.Duel()
    loop = Loop(method, nets(toy, method), toy.Source(), toy.training(), None)
    first, second, again = (loop.batches(3, 0.0, phase) for phase in (0, 1, 0))
    assert torch.equal(first.x0, second.x0)
    for draw in ("z", "eps", "u"):
        assert torch.equal(getattr(first, draw), getattr(again, draw))
        assert not torch.equal(getattr(first, draw), getattr(second, draw))


def test_a_method_gets_as_many_uniforms_as_it_asks_for(toy: SimpleNamespace):
    for method, count in ((toy.Ensemble(), 2), (toy.Denoise(), 4)):
        loop = Loop(method, nets(toy, method), toy.Source(), toy.training(), None)
        assert loop.batches(0, 0.0).u.shape == (8, count)


def test_joint_roles_are_kept_and_restored_together(toy: SimpleNamespace, tmp_path: Any):
    method = toy.Ensemble()
    with Run(tmp_path / "a", {}) as run:
        for _ in fit(method, nets(toy, method), toy.Source(), toy.training(steps=4), run=run):
            pass
    files = set(checkpoint.find(tmp_path / "a").manifest["files"])
    assert {"student", "helper", "target", "teacher", "ema"} <= {f.split(".")[0] for f in files}
    assert "student+helper.adam.safetensors" in files
    loaded = checkpoint.load(tmp_path / "a", build=toy.build)
    assert loaded.sampling.steps == 4  # the last round's


def test_a_method_may_refuse_its_denoisers_before_the_first_step(toy: SimpleNamespace):
    class Picky(toy.Denoise):  # type: ignore[misc, name-defined]
        def check(self, nets: Any) -> None:
            raise ValueError("Picky: no. Bring another.")

    with pytest.raises(ValueError, match="Picky: no"):
        fit(Picky(), {"student": toy.denoiser()}, toy.Source(), toy.training())


def test_a_phase_must_not_train_the_target(toy: SimpleNamespace):
    class Wrong(toy.Ensemble):  # type: ignore[misc, name-defined]
        trains = {"main": ("student", "target")}  # noqa: RUF012

    with pytest.raises(ValueError, match="without target"):
        fit(Wrong(), nets(toy, toy.Ensemble), toy.Source(), toy.training())


def test_rectification_is_the_papers(toy: SimpleNamespace):
    """Liu et al. 2019, algorithm 2, at beta2 = 0.999: infinite variance for the first five."""
    found = [rectification(k, 0.999) for k in range(1, 2001)]
    assert found[:5] == [0.0] * 5
    assert found[5] > 0
    assert all(a < b for a, b in pairwise(found[5:]))
    assert 0.8 < found[-1] < 1
    assert rectification(10**6, 0.999) == pytest.approx(1.0)
    assert toy.training(optimizer="radam").rate(0) == 0


def test_radam_is_torchs_from_the_sixth_update(toy: SimpleNamespace):
    """The same gradients through torch.optim.RAdam, whose first five steps are plain momentum: the
    differences of the weights from there on agree."""
    torch.manual_seed(0)
    grads = torch.randn(40, 5)
    theirs = torch.nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.RAdam([theirs], lr=0.1)
    training = toy.training(optimizer="radam", lr=0.1, warmup=0, decay="constant")
    mine, lr = torch.nn.Parameter(torch.zeros(5)), torch.zeros(())
    adam = torch.optim.AdamW([mine], lr=lr, weight_decay=0.0, fused=True)
    for k, g in enumerate(grads):
        before = theirs.detach().clone(), mine.detach().clone()
        theirs.grad, mine.grad = g.clone(), g.clone()
        lr.fill_(training.rate(k))
        optimizer.step()
        adam.step()
        if k >= 5:
            torch.testing.assert_close(
                mine.detach() - before[1], theirs.detach() - before[0], rtol=1e-3, atol=1e-6
            )
