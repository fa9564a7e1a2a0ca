"""The loop against closed forms and against itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdgen.batches import Batches, split
from kdgen.data.order import indices
from kdgen.ema import Ema
from kdgen.errors import DataError, NonFiniteError
from kdgen.training import Training, fit


def weights(denoiser):
    return torch.cat([p.detach().double().flatten() for p in denoiser.parameters()])


def run_to_end(toy, method=None, nets=None, **changes):
    """(denoisers, steps' facts) after training; facts are copied because tensors are live."""
    nets = nets or {"student": toy.denoiser()}
    seen = []
    for step in fit(method or toy.Denoise(), nets, toy.Source(), toy.training(**changes)):
        seen.append(
            (step.number, step.lr, float(step.loss), weights(step.nets.student), weights(step.ema))
        )
    return nets, seen


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"batch": 10, "accumulate": 4},
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"clip": 0.0},
        {"warmup": -1},
        {"decay": "cosin"},
        {"precision": "fp16"},
        {"skips": 0},
        {"save_every": 0},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Training(**{"steps": 10, **wrong})


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_learning_rates_follow_their_closed_form(toy, decay):
    _, seen = run_to_end(toy, steps=12, warmup=4, lr=3e-3, decay=decay)
    for number, lr, *_ in seen:
        done = number - 1
        fall = {
            "constant": 1.0,
            "linear": 1 - done / 12,
            "cosine": (1 + math.cos(math.pi * done / 12)) / 2,
        }[decay]
        assert lr == pytest.approx(3e-3 * min(1, number / 4) * fall, rel=1e-12)


def test_the_optimizer_really_uses_those_rates(toy):
    """Adam's first update moves every weight by lr, up to eps."""
    nets = {"student": toy.denoiser()}
    before = weights(nets["student"])
    next(fit(toy.Denoise(), nets, toy.Source(), toy.training(lr=1e-3, warmup=0, clip=None)))
    moved = (weights(nets["student"]) - before).abs()
    assert moved[moved > 0].median().item() == pytest.approx(1e-3, rel=1e-2)
    assert moved.max().item() <= 1.001e-3


# Averages


@pytest.mark.parametrize(
    "ema",
    [
        Ema.constant(0.9),
        Ema.half_life(images=40, ramp=0.5),
        Ema.power(gamma=3.0),
        Ema.power(sigma_rel=0.1),
    ],
    ids=["constant", "half_life", "power", "sigma_rel"],
)
def test_the_average_follows_its_recursion(toy, ema):
    _, seen = run_to_end(toy, ema=ema)
    mine = weights(toy.denoiser())
    for number, _, _, raw, average in seen:
        kept = ema.kept(number, 8)
        mine = kept * mine + (1 - kept) * raw
        torch.testing.assert_close(average, mine, rtol=1e-5, atol=1e-6)
    assert not torch.equal(seen[-1][3], seen[-1][4])


def test_averages_keep_what_their_papers_say():
    edm = Ema.half_life(images=500_000, ramp=0.05)
    assert edm.kept(1, 256) == 0
    assert edm.kept(10**6, 256) == pytest.approx(0.999645172, abs=1e-9)
    assert [Ema.power(gamma=2).kept(n, 8) for n in (1, 2, 4)] == [0, 0.5**3, 0.75**3]
    # Karras et al. 2024: gamma 6.94 is a profile of relative width 0.10, 16.97 one of 0.05.
    assert Ema.power(sigma_rel=0.10).gamma == pytest.approx(6.94, abs=5e-3)
    assert Ema.power(sigma_rel=0.05).gamma == pytest.approx(16.97, abs=5e-3)


def test_a_power_average_weighs_steps_by_their_number_to_the_gamma():
    """Unrolled, the weight of step i of n is proportional to i^gamma for large i."""
    ema, n = Ema.power(gamma=2), 400
    share = [
        (1 - ema.kept(i, 1)) * math.prod(ema.kept(j, 1) for j in range(i + 1, n + 1))
        for i in range(1, n + 1)
    ]
    assert sum(share) == pytest.approx(1)
    assert share[399] / share[199] == pytest.approx((400 / 200) ** 2, rel=0.02)


@pytest.mark.parametrize(
    "wrong", [{"kind": "linear"}, {"decay": 1.0}, {"images": 0}, {"gamma": 0}], ids=str
)
def test_averages_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="Ema"):
        Ema(**wrong)
    with pytest.raises(ValueError, match="exactly one"):
        Ema.power()
    with pytest.raises(ValueError, match="sigma_rel"):
        Ema.power(sigma_rel=0.3)


def test_without_an_average_the_student_stands_for_it(toy):
    for step in fit(
        toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training(ema=Ema.none())
    ):
        assert step.ema is step.nets.student


def test_an_average_is_in_eval_mode_and_copies_buffers(toy):
    for step in fit(toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training()):
        assert not step.ema.training
        assert step.ema.net.calls == step.nets.student.net.calls == step.number


# Batches


def test_batches_are_a_function_of_their_number(toy):
    source, method = toy.Source(), toy.Denoise()
    batches = Batches(method, source, 8, 3, True, torch.device("cpu"), (1, 8, 8), 0)
    big = Batches(method, source, 16, 3, True, torch.device("cpu"), (1, 8, 8), 0)
    a, b, both = batches(6, 0.0), batches(7, 0.0), big(3, 0.0)
    for name in ("x0", "z", "eps", "u", "index"):
        torch.testing.assert_close(
            torch.cat([getattr(a, name), getattr(b, name)]), getattr(both, name), rtol=0, atol=0
        )
    assert torch.equal(source.taken[0], indices(50, 3, 48, 8))


def test_flipping_mirrors_about_half_of_the_images_and_nothing_else(toy):
    source, method = toy.Source(50), toy.Denoise()
    facts = torch.device("cpu"), (1, 8, 8), 0
    plain = Batches(method, source, 200, 0, False, *facts)(0, 0.0).x0
    flipped = Batches(method, source, 200, 0, True, *facts)(0, 0.0).x0
    same, mirrored = (
        (flipped == plain).flatten(1).all(1),
        (flipped == plain.flip(-1)).flatten(1).all(1),
    )
    assert (same | mirrored).all()
    assert 60 < int(mirrored.sum()) < 140


def test_draws_that_a_method_does_not_name_are_not_made(toy):
    class Frugal(toy.Denoise):
        draws = ("eps", "u")

    batch = Batches(Frugal(), toy.Source(), 8, 0, False, torch.device("cpu"), (1, 8, 8), 0)(0, 0.25)
    assert batch.z.numel() == 0
    assert batch.eps.shape == (8, 1, 8, 8)
    assert batch.u.shape == (8, 4)
    assert batch.progress.item() == 0.25
    assert [len(part.eps) for part in split(batch, 4)] == [2, 2, 2, 2]


def test_pairs_bring_their_own_noise(toy):
    class Pairs(toy.Source):
        kind = "pairs"

        def take(self, index):
            return 7 + self.x0[index][:, None], *super().take(index)

    class Regress(toy.Denoise):
        data = "pairs"

    batch = Batches(Regress(), Pairs(), 8, 0, False, torch.device("cpu"), (1, 8, 8), 0)(0, 0.0)
    torch.testing.assert_close(batch.z, 7 + batch.x0)
    with pytest.raises(ValueError, match="flip"):
        fit(Regress(), {"student": toy.denoiser()}, Pairs(), toy.training(flip=True))
    with pytest.raises(DataError, match="holds pairs"):
        fit(toy.Denoise(), {"student": toy.denoiser()}, Pairs(), toy.training())
    with pytest.raises(DataError, match="holds images"):
        fit(Regress(), {"student": toy.denoiser()}, toy.Source(), toy.training())


def test_a_method_that_learns_from_noise_needs_no_source(toy):
    class Dream(toy.Halving):
        data = "noise"

    nets = {"student": toy.denoiser(dropout=0.0), "teacher": toy.denoiser(1, dropout=0.0)}
    steps = list(fit(Dream(), nets, None, toy.training(steps=2)))
    assert len(steps) == 6
    with pytest.raises(DataError, match="a source"):
        fit(toy.Denoise(), {"student": toy.denoiser()}, None, toy.training())


# The update


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulating_parts_of_a_batch_equals_the_whole_batch(toy, parts):
    def end(accumulate):
        nets, seen = run_to_end(
            toy, nets={"student": toy.denoiser(dropout=0.0)}, accumulate=accumulate
        )
        return weights(nets["student"]), [loss for _, _, loss, _, _ in seen]

    whole, losses = end(1)
    split_, theirs = end(parts)
    torch.testing.assert_close(split_, whole, rtol=0, atol=1e-6)
    assert theirs == pytest.approx(losses, abs=1e-6)


def test_training_twice_gives_the_same_bits_and_leaves_the_callers_randomness_alone(toy):
    def end():
        torch.manual_seed(5)
        nets, _ = run_to_end(toy)
        return weights(nets["student"]), torch.rand(3)

    (a, mine), (b, _) = end(), end()
    torch.manual_seed(5)
    assert torch.equal(a, b)
    assert torch.equal(mine, torch.rand(3))


def test_dropout_masks_differ_between_steps_and_seeds(toy):
    first, second = (run_to_end(toy, seed=s, steps=3)[1] for s in (0, 1))
    assert not torch.equal(first[-1][3], second[-1][3])


def test_clipping_bounds_the_gradient_that_adam_sees(toy):
    """With betas (0, 0) Adam's moments are the clipped gradient itself."""
    from kdgen.loop import Loop

    def moments(clip):
        loop = Loop(
            toy.Denoise(),
            {"student": toy.denoiser()},
            toy.Source(),
            toy.training(clip=clip, betas=(0.0, 0.0)),
            None,
        )
        step = next(loop.steps())
        tensors = loop.learners["student"].tensors()
        return torch.cat(
            [t.flatten() for n, t in tensors.items() if n.startswith("exp_avg/")]
        ), step

    free, step = moments(None)
    assert free.norm().item() == pytest.approx(step.grad_norm.item(), rel=1e-5)
    clipped, again = moments(0.01)
    assert again.grad_norm.item() == pytest.approx(step.grad_norm.item())
    torch.testing.assert_close(clipped, free * (0.01 / step.grad_norm), rtol=1e-4, atol=1e-9)


def test_weight_decay_is_decoupled(toy):
    def first(decay):
        nets = {"student": toy.denoiser()}
        next(fit(toy.Denoise(), nets, toy.Source(), toy.training(warmup=0, weight_decay=decay)))
        return weights(nets["student"])

    start = weights(toy.denoiser())
    torch.testing.assert_close(first(0.5), first(0.0) - 1e-2 * 0.5 * start, rtol=1e-4, atol=1e-7)


def test_bf16_runs_networks_under_autocast_and_keeps_weights_in_float32(toy):
    seen = set()

    class Watch(toy.Denoise):
        def loss(self, phase, nets, batch):
            hook = nets.student.net.inward.register_forward_hook(
                lambda m, a, out: seen.add(out.dtype)
            )
            loss = super().loss(phase, nets, batch)
            hook.remove()
            return loss

    nets, steps = run_to_end(toy, Watch(), precision="bf16", steps=30)
    assert seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in nets["student"].parameters())
    assert all(math.isfinite(loss) for _, _, loss, _, _ in steps)
    assert not torch.equal(steps[-1][3], run_to_end(toy, steps=30)[1][-1][3])


def test_under_bf16_a_pass_without_gradients_does_not_hide_the_weights(toy):
    class Twice(toy.Denoise):
        def loss(self, phase, nets, batch):
            with torch.no_grad():
                super().loss(phase, nets, batch)
            return super().loss(phase, nets, batch)

    before = toy.denoiser()
    nets, _ = run_to_end(toy, Twice(), precision="bf16", steps=2)
    for old, new in zip(before.parameters(), nets["student"].parameters(), strict=True):
        assert not torch.equal(old, new)


# Phases, rounds


def test_each_phase_trains_one_role_and_lets_gradients_through_the_others(toy):
    flags = {}

    class Watch(toy.Duel):
        def loss(self, phase, nets, batch):
            flags[phase] = {
                r: all(p.requires_grad for p in nets[r].parameters()) for r in self.roles
            }
            modes = {r: nets[r].training for r in self.roles}
            assert modes == flags[phase]
            assert all(p.grad is None for net in nets.values() for p in net.parameters())
            return super().loss(phase, nets, batch)

    nets = {role: toy.denoiser(k) for k, role in enumerate(("student", "fake", "teacher"))}
    start = {role: weights(net) for role, net in nets.items()}
    step = next(fit(Watch(), nets, toy.Source(), toy.training()))
    assert flags == {
        "fake": {"student": False, "fake": True, "teacher": False},
        "generator": {"student": True, "fake": False, "teacher": False},
    }
    assert torch.equal(weights(nets["teacher"]), start["teacher"])
    assert not torch.equal(weights(nets["student"]), start["student"])
    assert not torch.equal(weights(nets["fake"]), start["fake"])
    assert step.losses.keys() == {"fake", "generator"}
    assert step.loss is step.losses["generator"]


def test_the_fake_phase_alone_leaves_the_student_as_it_was(toy):
    class Half(toy.Duel):
        phases = ("fake",)

    nets = {role: toy.denoiser(k) for k, role in enumerate(("student", "fake", "teacher"))}
    start = weights(nets["student"])
    next(fit(Half(), nets, toy.Source(), toy.training()))
    assert torch.equal(weights(nets["student"]), start)


def test_requires_grad_is_as_before_when_the_loop_is_left(toy):
    nets = {role: toy.denoiser(k) for k, role in enumerate(("student", "fake", "teacher"))}
    for step in fit(toy.Duel(), nets, toy.Source(), toy.training()):
        if step.number == 2:
            break
    del step
    assert all(p.requires_grad for net in nets.values() for p in net.parameters())


def test_parameters_that_the_caller_froze_stay_frozen(toy):
    student = toy.denoiser()
    student.net.time.requires_grad_(False)
    frozen = student.net.time.weight.clone()
    list(fit(toy.Denoise(), {"student": student}, toy.Source(), toy.training(steps=3)))
    assert torch.equal(student.net.time.weight, frozen)
    with pytest.raises(ValueError, match="requires gradients"):
        fit(toy.Denoise(), {"student": student.requires_grad_(False)}, toy.Source(), toy.training())


def test_a_sampling_caller_does_not_switch_dropout_off(toy):
    def end(meddle):
        nets = {"student": toy.denoiser()}
        for step in fit(toy.Denoise(), nets, toy.Source(), toy.training()):
            if meddle:
                step.nets.student.eval()
                torch.rand(3)
        return weights(nets["student"])

    assert torch.equal(end(True), end(False))


def test_between_rounds_raw_weights_become_the_teacher_and_adam_starts_anew(toy):
    from kdgen.loop import Loop

    nets = {"student": toy.denoiser(), "teacher": toy.denoiser(1)}
    mine = weights(nets["teacher"])
    loop = Loop(toy.Halving(), nets, toy.Source(), toy.training(steps=4, warmup=0), None)
    raw = {}
    for step in loop.steps():
        raw[step.number] = weights(step.nets.student)
        assert step.round == (step.number - 1) // 4
        if step.number in (5, 9):
            assert torch.equal(weights(step.nets.teacher), raw[step.number - 1])
            counts = {
                float(t)
                for n, t in loop.learners["student"].tensors().items()
                if n.startswith("step/")
            }
            assert counts == {1.0}
            assert step.lr == 1e-2  # the schedule starts anew too
            kept = 0.9 * raw[step.number - 1] + 0.1 * raw[step.number]
            torch.testing.assert_close(weights(step.ema), kept, rtol=1e-5, atol=1e-6)
    assert step.number == step.steps == 12
    assert torch.equal(weights(nets["teacher"]), mine)  # the caller's own is untouched


def test_progress_runs_from_zero_towards_one_in_each_round(toy):
    seen = []

    class Watch(toy.Halving):
        def rounds(self):
            yield self
            yield self

        def loss(self, phase, nets, batch):
            seen.append(batch.progress.item())
            return super().loss(phase, nets, batch)

    nets = {"student": toy.denoiser(), "teacher": toy.denoiser(1)}
    list(fit(Watch(), nets, toy.Source(), toy.training(steps=4)))
    assert seen == [0, 0.25, 0.5, 0.75] * 2


# What does not fit is refused before the first step


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        ({"teacher": {}}, "no role 'student' among teacher; expected student, teacher"),
        ({"student": {"classes": 3}, "teacher": {}}, "teacher has"),
        ({}, "among none"),
    ],
    ids=["missing", "classes", "empty"],
)
def test_denoisers_that_do_not_fit_are_refused(toy, roles, text):
    nets = {role: toy.denoiser(**options) for role, options in roles.items()}
    with pytest.raises(ValueError, match=text):
        fit(toy.Halving(), nets, toy.Source(), toy.training())


def test_one_denoiser_in_two_roles_is_refused(toy):
    net = toy.denoiser()
    with pytest.raises(ValueError, match="share one denoiser"):
        fit(toy.Halving(), {"student": net, "teacher": net}, toy.Source(), toy.training())


def test_data_that_does_not_fit_is_refused(toy):
    wide, labelled, empty = toy.Source(), toy.Source(), toy.Source(0)
    wide.shape = (3, 8, 8)
    labelled.classes = 10
    with pytest.raises(DataError, match=r"\(3, 8, 8\); expected \(1, 8, 8\)"):
        fit(toy.Denoise(), {"student": toy.denoiser()}, wide, toy.training())
    with pytest.raises(DataError, match="10 classes; expected 4"):
        fit(toy.Denoise(), {"student": toy.denoiser(classes=4)}, labelled, toy.training())
    with pytest.raises(DataError, match="empty"):
        fit(toy.Denoise(), {"student": toy.denoiser()}, empty, toy.training())


def test_a_loss_of_the_wrong_shape_or_without_gradients_is_refused(toy):
    class Mean(toy.Denoise):
        def loss(self, phase, nets, batch):
            return super().loss(phase, nets, batch).mean()

    class Constant(toy.Denoise):
        def loss(self, phase, nets, batch):
            return batch.u[:, 0]

    for method in (Mean(), Constant()):
        with pytest.raises(ValueError, match="one value per image"):
            next(fit(method, {"student": toy.denoiser()}, toy.Source(), toy.training()))


# Numbers that are not finite


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", [0, 7])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_bad_image_leaves_weights_moments_and_average_as_they_were(
    toy, factor, place, accumulate
):
    from kdgen.loop import Loop

    method = toy.Denoise(poison=((3 * 8 + place, factor),))
    loop = Loop(
        method, {"student": toy.denoiser()}, toy.Source(), toy.training(accumulate=accumulate), None
    )
    states = {}
    for step in loop.steps():
        moments = [t.clone() for t in loop.learners["student"].tensors().values()]
        states[step.number] = [weights(step.nets.student), weights(step.ema), *moments]
        if step.number == 4:
            assert not math.isfinite(step.loss)
    assert all(torch.equal(a, b) for a, b in zip(states[3], states[4], strict=True))
    assert not torch.equal(states[4][0], states[5][0])
    assert torch.isfinite(states[20][0]).all()


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is(toy):
    class Root(toy.Denoise):
        """sqrt has an infinite slope at 0."""

        def loss(self, phase, nets, batch):
            loss = super().loss(phase, nets, batch)
            return loss + 0 * (loss * (batch.index != 40)).sqrt()

    _, seen = run_to_end(toy, Root())
    assert math.isfinite(seen[5][2])
    assert torch.equal(seen[4][3], seen[5][3])
    assert torch.isfinite(seen[-1][3]).all()


def test_three_bad_steps_in_a_row_stop_with_the_step_and_positions(toy):
    poison = tuple((k * 8, math.nan) for k in (2, 5, 6, 9, 10, 11))
    steps = fit(toy.Denoise(poison), {"student": toy.denoiser()}, toy.Source(), toy.training())
    numbers = []
    with pytest.raises(NonFiniteError, match=r"at step 12 .*positions 72…95") as caught:
        numbers.extend(step.number for step in steps)
    assert numbers == list(range(1, 12))  # two in a row, twice, were survived
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_bad_weight_or_moment_stops_the_run(toy, where):
    from kdgen.loop import Loop

    loop = Loop(toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training(), None)
    steps = loop.steps()
    next(steps)
    weight = loop.nets.student.net.inward.weight
    if where == "weight":
        weight.data[0] = math.nan
    else:
        loop.learners["student"].optimizer.state[weight]["exp_avg"][0] = math.inf
    with pytest.raises(NonFiniteError):
        list(steps)


@pytest.mark.parametrize("method", ["Denoise", "Duel", "Halving"])
def test_an_absurd_learning_rate_stops_within_fifty_steps(toy, method):
    method = getattr(toy, method)()
    nets = {role: toy.denoiser(k) for k, role in enumerate(method.roles)}
    training = toy.training(lr=1e20, warmup=0, steps=50, decay="constant")
    if method.name == "halving":
        training = replace(training, steps=16)
    with pytest.raises(NonFiniteError, match="lower lr"):
        list(fit(method, nets, toy.Source(), training))


# Steps


def test_a_step_prints_itself_and_knows_its_number(toy):
    steps = []
    for step in fit(
        toy.Denoise(), {"student": toy.denoiser()}, toy.Source(), toy.training(steps=4)
    ):
        steps.append((step.number, step.images, step.every(2), str(step)))
    assert [s[:3] for s in steps] == [(1, 8, False), (2, 16, True), (3, 24, False), (4, 32, True)]
    assert steps[-1][3].startswith("step 4/4 · loss 0.")


def test_the_loss_falls(toy):
    _, seen = run_to_end(toy, steps=200)
    losses = [loss for _, _, loss, _, _ in seen]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


# The device is not asked


class NoQuestions(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["Denoise", "Duel", "Halving"])
def test_no_part_of_a_step_reads_a_tensor_on_the_host(toy, method):
    from kdgen.loop import Loop

    method = getattr(toy, method)()
    nets = {role: toy.denoiser(k) for k, role in enumerate(method.roles)}
    loop = Loop(method, nets, toy.Source(), toy.training(steps=4, accumulate=2), None)
    loop.ledger.read = lambda *, last=False, now=False: None  # the one place that may
    with NoQuestions():
        numbers = [step.number for step in loop.steps()]
    assert numbers[-1] == loop.total


def test_the_guard_of_the_test_above_bites():
    with NoQuestions(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        float(torch.ones(()))


def test_on_an_accelerator_faults_are_read_only_every_log_every_steps(toy):
    """Played on the CPU: the ledger believes that looking is expensive."""
    from kdgen.loop import Loop

    reads = []

    class Expensive:
        type = "cuda"

    poison = tuple((k * 8, math.nan) for k in (3, 4, 5, 6))
    training = toy.training(log_every=10)
    loop = Loop(toy.Denoise(poison), {"student": toy.denoiser()}, toy.Source(), training, None)
    loop.ledger.device = Expensive()
    start = loop.ledger._judge
    loop.ledger._judge = lambda step, codes: (reads.append(loop.done), start(step, codes))
    with pytest.raises(NonFiniteError, match=r"at step 6 .*positions 24…47"):
        list(loop.steps())
    assert set(reads) == {10}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["Denoise", "Duel", "Halving"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_steps_do_not_wait_and_follow_the_cpu(toy, method, precision):
    method = getattr(toy, method)()

    def end(device):
        nets = {role: toy.denoiser(k, dropout=0.0) for k, role in enumerate(method.roles)}
        training = toy.training(steps=6, log_every=100, lr=1e-3, precision=precision)
        for step in fit(method, nets, toy.Source(), training, device=device):
            if step.number == 2 and device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            if step.number == step.steps - 1:
                torch.cuda.set_sync_debug_mode("default")
        return weights(step.nets.student).cpu(), float(step.loss)

    try:
        (mine, loss), (theirs, other) = end("cuda"), end("cpu")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tolerance = 1e-4 if precision == "fp32" else 2e-3
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)
    assert loss == pytest.approx(other, rel=0.05)


@pytest.mark.gpu
def test_on_a_gpu_a_bad_step_leaves_the_weights_as_they_were(toy):
    states = {}
    method = toy.Denoise(poison=((24, math.nan),))
    for step in fit(
        method, {"student": toy.denoiser()}, toy.Source(), toy.training(), device="cuda"
    ):
        states[step.number] = weights(step.nets.student)
    assert torch.equal(states[3], states[4])
    assert not torch.equal(states[4], states[5])
