"""Run directories: resuming, refusing, remembering."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import stat

import pytest
import torch

from kdgen import checkpoint
from kdgen.errors import BusyError, CheckpointError, Interrupted, NonFiniteError, UsageError
from kdgen.run import Run, differences
from kdgen.training import fit


@pytest.fixture
def train(toy, tmp_path):
    """train("a", steps=…) trains in tmp_path/a; `until` leaves the loop after that step without
    a save."""

    def go(
        name="run",
        *,
        until=None,
        method=None,
        nets=None,
        config=None,
        free=None,
        body=None,
        **changes,
    ):
        method = method or toy.Denoise()
        nets = nets or {role: toy.denoiser(k) for k, role in enumerate(method.roles)}
        options = {} if free is None else {"free": free}
        with Run(tmp_path / name, config or {}, **options) as run:
            for step in fit(method, nets, toy.Source(), toy.training(**changes), run=run):
                if body:
                    body(run, step)
                if step.number == until:
                    break
        return tmp_path / name

    return go


def content(folder):
    """Digests of the newest checkpoint's files, and the log."""
    found = checkpoint.find(folder)
    digests = {name: facts["sha256"] for name, facts in found.manifest["files"].items()}
    return found.facts["step"], digests, (folder / "log.jsonl").read_bytes()


# Resuming


@pytest.mark.parametrize("method", ["Denoise", "Duel", "Halving", "Ensemble"])
@pytest.mark.parametrize("until", [1, 5, 7, 11, 20])
def test_a_resumed_run_equals_an_uninterrupted_one(train, toy, method, until):
    method = getattr(toy, method)()
    whole = train("whole", method=method)
    broken = train("broken", method=method, until=until)
    train("broken", method=method)
    assert content(broken) == content(whole)


def test_resuming_many_times_at_every_step_equals_an_uninterrupted_run(train):
    def save(run, step):
        run.save()

    whole = train("whole", steps=9)
    for until in range(1, 10):
        train("broken", steps=9, until=until, body=save)
    broken = train("broken", steps=9)
    assert content(broken) == content(whole)


def test_log_and_save_intervals_do_not_change_the_weights(train):
    whole = train("whole")
    broken = train("broken", until=7, save_every=2, log_every=1)
    train("broken", save_every=9, log_every=4, skips=5)
    assert content(broken)[1]["student.safetensors"] == content(whole)[1]["student.safetensors"]
    assert content(broken)[1]["ema.safetensors"] == content(whole)[1]["ema.safetensors"]


def test_a_finished_run_gives_its_last_step_again_and_changes_nothing(train):
    seen = []

    def body(run, step):
        run.log(step.number, mine=step.number)
        seen.append((step.number, float(step.loss), str(step)))

    folder = train(body=body)
    before = content(folder)
    train(body=body)
    assert content(folder) == before
    assert seen[-1] == seen[-2]
    assert len(seen) == 21


def test_lines_of_the_caller_survive_like_the_loops_own(train):
    def body(run, step):
        if step.every(4):
            run.log(step.number, grid=f"{step.number}.png")

    whole = train("whole", body=body)
    broken = train("broken", until=8, body=body)
    train("broken", body=body)
    lines = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert content(broken) == content(whole)
    assert [line["step"] for line in lines if "grid" in line] == [4, 8, 12, 16, 20]


def test_the_log_has_means_and_no_clocks(train):
    losses = []
    folder = train(steps=7, body=lambda run, step: losses.append(float(step.loss)))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert lines[0]["loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)
    assert lines[2]["loss"] == pytest.approx(losses[6], rel=1e-5)
    assert lines[0].keys() == {"step", "images", "lr", "loss", "grad_norm"}
    assert all(
        "time" in json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()
    )


def test_a_torn_log_line_is_forgotten(train):
    whole = train("whole")
    broken = train("broken", until=11)
    with open(broken / "log.jsonl", "a") as file:
        file.write('{"step": 12, "lo')
    train("broken")
    assert content(broken) == content(whole)


def test_skipped_steps_are_in_the_log_with_their_positions_and_resume(train, toy):
    method = toy.Denoise(poison=((33, math.nan), (41, math.inf)))
    whole = train("whole", method=method)
    broken = train("broken", method=method, until=6, body=lambda run, step: run.save())
    train("broken", method=method)
    lines = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if "skipped" in line] == [
        {"step": 5, "skipped": "loss", "positions": [32, 39]},
        {"step": 6, "skipped": "loss", "positions": [40, 47]},
    ]
    assert content(broken) == content(whole)


def test_strikes_are_counted_across_a_restart(train, toy):
    method = toy.Denoise(poison=tuple((k * 8, math.nan) for k in (5, 6, 7)))
    train(method=method, until=7, body=lambda run, step: run.save())
    with pytest.raises(NonFiniteError, match=r"at step 8 .*last good checkpoint step 7"):
        train(method=method)


def test_an_absurd_learning_rate_leaves_a_finite_checkpoint(train, toy, tmp_path):
    with pytest.raises(NonFiniteError):
        train(lr=1e20, warmup=0, steps=50, save_every=1)
    loaded = checkpoint.load(tmp_path / "run", build=toy.build)
    assert all(torch.isfinite(p).all() for p in loaded.parameters())


# Averages and raw weights


def test_raw_weights_and_their_average_stay_apart(train, toy):
    seen = {}

    def body(run, step):
        raw = checkpoint.tensors_digest(step.nets.student.state_dict())
        with torch.no_grad():  # validation in the middle of training
            step.ema(torch.zeros(2, 1, 8, 8), 0.5)
        run.save()
        assert checkpoint.tensors_digest(step.nets.student.state_dict()) == raw
        seen[step.number] = raw, checkpoint.tensors_digest(step.ema.state_dict())

    folder = train(body=body)
    average = checkpoint.load(folder, build=toy.build)
    raw = checkpoint.load(folder, "raw", build=toy.build)
    assert (
        checkpoint.tensors_digest(raw.state_dict()),
        checkpoint.tensors_digest(average.state_dict()),
    ) == seen[20]
    assert seen[20][0] != seen[20][1]
    assert not raw.training
    assert not average.training


# Damage


def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(train, caplog):
    whole = train("whole")
    broken = train("broken", until=12)
    file = broken / "checkpoints" / "step-000010" / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 16
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING, "kdgen"):
        train("broken")
    assert "step-000010/student.safetensors: damaged, SHA-256" in caplog.text
    assert "Using step-000005 instead." in caplog.text
    assert content(broken) == content(whole)
    assert len(checkpoint.steps(broken / "checkpoints")) == 2


def test_a_named_damaged_checkpoint_is_refused_with_what_else_there_is(train, toy):
    folder = train()
    named = folder / "checkpoints" / "step-000020"
    (named / "ema.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ema.safetensors: damaged, 0 bytes.*step-000015"):
        checkpoint.load(named, build=toy.build)
    assert checkpoint.find(folder).facts["step"] == 15


def test_if_nothing_verifies_training_does_not_start_from_zero(train):
    folder = train()
    for path in checkpoint.steps(folder / "checkpoints"):
        (path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints can be used") as caught:
        train()
    assert caught.value.exit_code == 4


def test_two_hundred_flipped_bits_are_all_found(train, toy):
    folder = train()
    rng, found, files = random.Random(0), 0, set()
    paths = sorted((folder / "checkpoints" / "step-000020").iterdir())
    for trial in range(200):
        file = paths[trial % len(paths)]
        files.add(file.name)
        data = file.read_bytes()
        bit = rng.randrange(8 * len(data))
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=file.name):
            checkpoint.find(file.parent)
        assert checkpoint.find(folder).facts["step"] == 15
        found += 1
        file.write_bytes(data)
    assert found == 200
    assert len(files) == 5
    assert checkpoint.find(folder).facts["step"] == 20


def test_truncated_zeroed_missing_and_swapped_files_are_found(train):
    folder = train()
    new, old = checkpoint.steps(folder / "checkpoints")
    trials = 0
    for file in sorted(new.iterdir()):
        data, other = file.read_bytes(), (old / file.name).read_bytes()
        spoiled = [data[:n] for n in (0, 1, len(data) // 2, len(data) - 1)]
        spoiled += [data + b"\0", bytes(len(data)), data[:64] + bytes(64) + data[128:], other, None]
        for bad in spoiled:
            if bad == data:
                continue
            trials += 1
            # A manifest of another step is sound itself; it is the files that do not match it.
            name = "damaged" if bad == other else file.name
            file.unlink()
            if bad is not None:
                file.write_bytes(bad)
            with pytest.raises(CheckpointError, match=name):
                checkpoint.read(new).verify()
            file.write_bytes(data)
    assert trials >= 40
    checkpoint.read(new).verify()


def test_checkpoints_of_other_runs_and_renamed_ones_are_not_used(train, caplog):
    folder, other = train("a", until=12), train("b", until=16)
    whole = train("whole")
    shutil.copytree(other / "checkpoints" / "step-000015", folder / "checkpoints" / "step-000015")
    shutil.copytree(folder / "checkpoints" / "step-000010", folder / "checkpoints" / "step-000012")
    with caplog.at_level(logging.WARNING, "kdgen"):
        train("a")
    assert "belongs to run" in caplog.text
    assert "holds step 10; expected the step of its name" in caplog.text
    assert content(folder) == content(whole)


def test_a_damaged_configuration_is_refused(train):
    folder = train()
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"run"', '"nur"'))
    with pytest.raises(CheckpointError, match=r"config.json: damaged"):
        train()


# Configuration


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lr": 1e-4}, "training.lr 0.01 -> 0.0001"),
        ({"batch": 16}, "training.batch 8 -> 16"),
        ({"steps": 40}, "training.steps 20 -> 40"),
        ({"seed": 1}, "training.seed 0 -> 1"),
        ({"clip": None}, "training.clip 1.0 -> null"),
        ({"decay": "linear"}, 'training.decay "cosine" -> "linear"'),
        ({"precision": "bf16"}, "training.precision"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_setting_that_changes_what_is_learned_is_refused_by_name(train, change, text):
    train(until=6)
    with pytest.raises(UsageError) as caught:
        train(**change)
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_other_data_networks_methods_and_teachers_are_refused(train, toy, monkeypatch):
    train("a", until=6)
    with pytest.raises(UsageError, match=r"nets.student.net.width 4 -> 6"):
        train("a", nets={"student": toy.denoiser(width=6)})
    with pytest.raises(UsageError, match=r"method.poison \[\] -> "):
        train("a", method=toy.Denoise(poison=((1, 2.0),)))
    train("b", method=toy.Duel(), until=6)
    nets = {role: toy.denoiser(k + 5) for k, role in enumerate(toy.Duel.roles)}
    with pytest.raises(UsageError, match=r"frozen.teacher"):
        train("b", method=toy.Duel(), nets=nets)
    monkeypatch.setattr(toy.Source, "digest", "1")
    with pytest.raises(UsageError, match=r'source.digest "0" -> "1"'):
        train("a")


def test_the_callers_own_configuration_is_compared_too(train, tmp_path):
    train(config={"data": "digits", "out": {"grid": 4}}, until=6)
    with pytest.raises(UsageError, match=r'data "digits" -> "cifar10"; out.grid 4 -> \(absent\)'):
        train(config={"data": "cifar10"})
    train(config={"data": "digits", "out": {"grid": 8}}, free=("grid", "save_every"))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["out"]["grid"] == 8


def test_a_run_without_checkpoints_may_change_its_mind(train, tmp_path):
    train(config={"a": 1}, until=2)
    train(config={"a": 2}, lr=1e-3)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]


def test_differences_name_what_was_added_removed_and_changed():
    old, new = {"a": 1, "b": {"c": [1], "d": None}, "e": {}}, {"a": 1, "b": {"c": [2]}, "f": 3}
    assert [line for _, line in differences(old, new)] == [
        "b.c [1] -> [2]",
        "b.d null -> (absent)",
        "e {} -> (absent)",
        "f (absent) -> 3",
    ]


# Retention, locks, targets


def test_two_checkpoints_are_kept(train):
    folder = train(save_every=3)
    assert [p.name for p in checkpoint.steps(folder / "checkpoints")] == [
        "step-000020",
        "step-000018",
    ]
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step-000018",
        "step-000020",
    ]


def test_a_run_that_was_not_entered_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="has not been entered"):
        fit(
            toy.Denoise(),
            {"student": toy.denoiser()},
            toy.Source(),
            toy.training(),
            run=Run(tmp_path / "run", {}),
        )


def test_fewer_than_two_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep is 1; expected at least 2"):
        Run(tmp_path / "a", {}, keep=1)


def test_an_old_checkpoint_goes_only_after_the_new_one_verified(train, tmp_path, monkeypatch):
    real, calls = checkpoint.Checkpoint.verify, []

    def verify(self):
        calls.append(sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")))
        return real(self)

    monkeypatch.setattr(checkpoint.Checkpoint, "verify", verify)
    train(save_every=4)
    assert calls[-1] == ["step-000012", "step-000016", "step-000020"]


def test_a_busy_directory_is_refused(train, tmp_path):
    with (
        Run(tmp_path / "run", {}),
        pytest.raises(BusyError, match=rf"in use by pid {os.getpid()} on host") as caught,
    ):
        train()
    assert caught.value.exit_code == 7
    train()


def test_leftovers_of_a_dead_process_are_removed_at_the_start(train):
    folder = train(until=12)
    for name in ("checkpoints/.tmp-step-000015", "checkpoints/.tmp-gone-step-000005"):
        (folder / name).mkdir()
        (folder / name / "student.safetensors").write_bytes(b"x")
    (folder / ".tmp-config.json").write_bytes(b"x")
    train()
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.parametrize(
    "kind", ["file", "fifo", "dangling", "device", "checkpoint", "below_a_file"]
)
def test_a_target_that_is_no_directory_is_refused_and_left_alone(train, toy, tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("mine")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "checkpoint":
        checkpoint.save(path, toy.denoiser())
    else:
        (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError) as caught:
        train("file/run" if kind == "below_a_file" else "run")
    assert caught.value.exit_code == 2
    if kind == "file":
        assert path.read_text() == "mine"
    if kind == "fifo":
        assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_to_a_directory_is_fine(train, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert content(train())[0] == 20


def test_a_disk_without_room_for_one_checkpoint_is_refused(train, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "free", lambda folder: 10)
    with pytest.raises(CheckpointError, match="expected room for it"):
        train("a")
    monkeypatch.setattr(checkpoint, "free", lambda folder: 2000)
    with caplog.at_level(logging.WARNING, "kdgen"):
        train("b")
    assert "MB for 3 of them" in caplog.text


# Signals, in this process


def test_a_signal_is_obeyed_at_the_end_of_the_step_and_handlers_are_put_back(train, tmp_path):
    import signal

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def body(run, step):
        if step.number == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(
        Interrupted, match=r"SIGTERM: saved step-000007 in .* The same command resumes"
    ) as caught:
        train(body=body)
    assert caught.value.exit_code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert checkpoint.find(tmp_path / "run").facts["step"] == 7


def test_a_signal_before_the_first_step_stops_without_a_checkpoint(tmp_path):
    import signal

    with Run(tmp_path / "run", {}) as run:
        run.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT: stopped") as caught:
            run.check()
    assert caught.value.exit_code == 130
