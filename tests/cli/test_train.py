"""`kdgen train` and `kdgen distill`: resume, dry run, and refusals before anything is spent."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdgen import checkpoint, cli, distill, evaluate, recipes, sample, train

CIFAR10 = Path(os.environ.get("KDGEN_CIFAR10_ZIP", "unset"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(run, weights="raw").state_dict())


def test_a_run_in_two_parts_equals_one_run(tmp_path: Path, teacher: Path) -> None:
    """The first part is stopped by a signal between two steps."""
    out = tmp_path / "again"
    options = ["digits", "--out", str(out), "--steps", "6", "--batch", "16", "--save-every", "2"]
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(100))
        bar = train.cli.bar
        patch.setattr(train.cli, "bar", lambda s, *a: _interrupt(bar(s, *a), calls))
        with pytest.raises(SystemExit) as stop:
            train.main(options)
    assert stop.value.code == 130
    train.main(options)
    resumed = weights(out)
    for name, value in weights(teacher).items():
        assert torch.equal(value, resumed[name]), name
    assert (out / "log.jsonl").read_bytes() == (teacher / "log.jsonl").read_bytes()


def _interrupt(steps, calls):  # type: ignore[no-untyped-def]
    for step in steps:
        if next(calls) == 2:
            os.kill(os.getpid(), 2)
        yield step


def test_a_run_leaves_samples_checkpoints_and_a_log(teacher: Path) -> None:
    assert list((teacher / "samples").glob("*.png"))
    assert checkpoint.find(teacher).manifest["facts"]["step"] == 6
    assert json.loads((teacher / "config.json").read_text())["config"]["recipe"] == "digits"


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train.main(["digits", "--out", str(out), "--batch", "8", "--dry-run"])
    said = capsys.readouterr().out
    assert not out.exists()
    assert all(word in said for word in ("parameters", "checkpoint", "one step", "steps"))


def test_distill_can_be_tried_dry(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = teacher.parent / "dry"
    distill.main(["--teacher", str(teacher), "--out", str(out), "--batch", "8", "--dry-run"])
    assert not out.exists()
    assert "pairs" in capsys.readouterr().out


def test_distill_can_be_tried_dry_without_pairs(
    teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill.main(["--teacher", str(teacher), "--online", "--dry-run", "--batch", "8"])
    said = capsys.readouterr().out
    assert "one step" in said
    assert "pairs:" not in said


def test_a_student_can_learn_without_stored_pairs(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "online"
    short = ["--teacher-steps", "2", "--steps", "2", "--batch", "8"]
    distill.main(["--teacher", str(teacher), "--out", str(out), "--online", *short])
    assert not (out / "pairs").exists()
    assert checkpoint.load(out).sampling.steps == 1


def test_the_same_distillation_again_changes_nothing(teacher: Path, student: Path) -> None:
    before = {p: p.read_bytes() for p in student.rglob("*.safetensors")}
    short = ["--pairs", "48", "--teacher-steps", "2", "--steps", "4", "--batch", "16"]
    distill.main(["--teacher", str(teacher), "--out", str(student), *short])
    assert before == {p: p.read_bytes() for p in student.rglob("*.safetensors")}


def test_evaluate_writes_every_measure_with_its_floor(student: Path, tmp_path: Path) -> None:
    file = tmp_path / "measures.json"
    evaluate.main(["--checkpoint", str(student), "--n", "200", "--json", str(file)])
    text = file.read_text()
    assert "FID[" not in text
    (measures,) = json.loads(text)["runs"].values()
    for measure in measures:
        assert {"value", "floor", "n", "seed", "caveat"} <= measure.keys()


@pytest.mark.parametrize(
    ("main", "options", "code", "words"),
    [
        (train.main, ["digitz"], 2, "Did you mean digits"),
        (train.main, ["images-tiny"], 2, "brings no images"),
        (train.main, ["digits", "--data", "nowhere"], 3, "nowhere"),
        (train.main, ["digits", "--steps", "0"], 2, "steps is 0"),
        (train.main, ["digits", "--lr", "-1"], 2, "lr is -1"),
        (train.main, ["digits", "--seed", "-1"], 2, "seed is -1"),
        (train.main, ["digits", "--sample-every", "0"], 2, "sample-every is 0"),
        (train.main, ["digits", "--precision", "fp8"], 2, "bf16"),
        (distill.main, ["digits-student"], 2, "digits-denoising-student"),
        (distill.main, ["--teacher", "nowhere"], 4, "nowhere"),
        (evaluate.main, ["--checkpoint", "nowhere"], 4, "nowhere"),
        (sample.main, ["--device", "tpu9"], 2, "auto, cpu, cuda"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_input_is_refused(  # type: ignore[no-untyped-def]
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, main, options, code, words
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(main, options, code)
    assert not list(tmp_path.iterdir())


def test_pairs_that_make_no_sense_are_refused(teacher: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    options = ["--teacher", str(teacher), "--out", str(tmp_path / "out"), "--pairs", "0"]
    assert "count is 0" in refused(distill.main, options, 2)
    assert not list(tmp_path.iterdir())


def test_a_one_step_student_refuses_more_steps(student: Path, tmp_path: Path, refused) -> None:  # type: ignore[no-untyped-def]
    options = ["--checkpoint", str(student), "--steps", "3", "--out", str(tmp_path / "a.png")]
    assert "trained for one step" in refused(sample.main, options, 2)
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_refused_before_measuring(  # type: ignore[no-untyped-def]
    student: Path, tmp_path: Path, refused
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--checkpoint", str(student), "--json", str(tmp_path / "file" / "x.json")]
    assert "file" in refused(evaluate.main, options, 1)


def test_verbs_hint_at_the_nearest_one(  # type: ignore[no-untyped-def]
    refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["kdgen", "tran"])
    assert "Did you mean train?" in refused(lambda _: cli.main(), [], 2)


def test_another_learning_rate_does_not_resume(teacher: Path, refused) -> None:  # type: ignore[no-untyped-def]
    options = ["digits", "--out", str(teacher), "--steps", "6", "--batch", "16", "--lr", "1e-4"]
    assert "lr" in refused(train.main, options, 2)


def test_images_that_do_not_fit_the_model_are_refused(  # type: ignore[no-untyped-def]
    student: Path, tmp_path: Path, refused
) -> None:
    out = tmp_path / "bigger.zip"
    sample.main(["--checkpoint", str(student), "--n", "12", "--out", str(out)])
    options = ["--checkpoint", str(student), "--data", str(out), "--size", "16"]
    assert "expected (1, 8, 8)" in refused(evaluate.main, options, 3)


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Every hundredth image of the zip: `tests/data` reads it whole."""
    made = tmp_path / "some.zip"
    with zipfile.ZipFile(CIFAR10) as whole, zipfile.ZipFile(made, "w") as archive:
        facts = json.loads(whole.read("dataset.json"))
        facts["labels"] = facts["labels"][::100]
        for name, _ in facts["labels"]:
            archive.writestr(name, whole.read(name))
        archive.writestr("dataset.json", json.dumps(facts))
    return made


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_file(), reason="set KDGEN_CIFAR10_ZIP to a zip of CIFAR-10")
def test_cifar10_goes_from_files_to_a_one_step_student(tmp_path: Path, some: Path) -> None:
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    few = ["--steps", "3", "--batch", "8"]
    train.main(["images-tiny", "--data", str(some), "--out", str(teacher), *few])
    few += ["--pairs", "16", "--teacher-steps", "2"]
    recipe = "images-tiny-denoising-student"
    distill.main([recipe, "--teacher", str(teacher), "--out", str(student), *few])
    out = tmp_path / "made.npz"
    sample.main(["--fast", "--checkpoint", str(student), "--n", "9", "--out", str(out)])
    made = checkpoint.load(student)
    assert made.shape == (3, 32, 32)
    assert made.classes == 10


@pytest.mark.parametrize("recipe", [n for n in recipes.STUDENTS if n.startswith("digits-")])
def test_every_digits_recipe_distils_and_resumes(
    recipe: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    short = ["--steps", "1", "--batch", "8", "--pairs", "16", "--teacher-steps", "16"]
    options = [recipe, "--teacher", str(teacher), "--out", str(out), *short]
    distill.main(options)
    student = checkpoint.load(out)
    said = recipes.student(recipe).stages[-1].method
    *_, last = said.rounds()
    assert student.sampling == last.sampling(student)
    stages = len(recipes.student(recipe).stages)
    assert len(list(out.glob("stages/*"))) == stages - 1
    assert len(list(out.glob("rounds/*"))) in (0, len(list(said.rounds())))
    before = weights(out)
    distill.main(options)  # everything is there: nothing is trained again
    for name, value in weights(out).items():
        assert torch.equal(value, before[name]), name


def test_every_round_of_progressive_distillation_is_kept(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "progressive"
    short = ["--steps", "1", "--batch", "8"]
    distill.main(["digits-progressive", "--teacher", str(teacher), "--out", str(out), *short])
    kept = sorted(p.name for p in (out / "rounds").iterdir())
    assert kept == ["01-8-steps", "02-4-steps", "03-2-steps", "04-1-steps"]
    assert [checkpoint.load(out / "rounds" / n).sampling.steps for n in kept] == [8, 4, 2, 1]


def test_a_student_may_be_smaller_than_its_teacher(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    short = ["--steps", "1", "--batch", "8", "--pairs", "16", "--teacher-steps", "2"]
    distill.main(["--teacher", str(teacher), "--out", str(out), "--width", "16", *short])
    student, full = checkpoint.load(out), checkpoint.load(teacher)
    assert student.net.facts.width == 16
    count = {m: sum(p.numel() for p in m.parameters()) for m in (student, full)}
    assert count[student] < 0.3 * count[full]
    assert sample.load(out, None).shape == full.shape


def test_a_recipe_can_be_tried_dry_without_teacher_and_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    distill.main(["digits-progressive", "--teacher", missing, "--batch", "4", "--dry-run"])
    said = capsys.readouterr().out
    assert "an untrained digits stands in for it" in said
    assert "one step" in said
    train.main(["images-tiny", "--batch", "2", "--dry-run"])
    assert "grey images (3, 32, 32)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_class_count_that_does_not_fit_is_refused(
    teacher: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for k in range(3):
            Image.new("L", (8, 8), 40 * k).save(folder / name / f"{k}.png")
    options = ["digits-progressive", "--teacher", str(teacher), "--data", str(folder)]
    said = refused(distill.main, [*options, "--out", str(tmp_path / "out")], 3)
    assert "2 classes" in said
