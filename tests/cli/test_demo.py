"""`kdgen demo` from start to report, and what the bundled student promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdgen import checkpoint, contest, data, demo, metrics, recipes, sample
from kdgen.evaluate import draw


def briefly(what, **changes):  # type: ignore[no-untyped-def]
    """A recipe's teacher, or a stage, in 12 steps of 32."""
    return replace(what, training=replace(what.training, steps=12, batch=32), **changes)


@pytest.mark.slow
def test_the_demo_writes_one_report_that_opens_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = briefly(recipes.teacher("digits"))
    student = recipes.student("digits-denoising-student")
    student = replace(student, stages=(briefly(student.stages[0], pairs=256),))
    monkeypatch.setitem(recipes.TEACHERS, "digits", lambda: teacher)
    monkeypatch.setitem(recipes.STUDENTS, "digits-denoising-student", lambda: student)
    monkeypatch.setattr(contest, "TIMED", 32)
    demo.main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "16 → 1" in said
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")
    for word in ("Quality", "Speed", "Training", "Configuration", "Environment", "floor"):
        assert word in page
    assert (tmp_path / "teacher-and-student.png").exists()


def test_the_bundled_student_keeps_what_its_card_promises() -> None:
    """At most twice its teacher's many-step distance, and what the card says of itself."""
    images = data.load("digits")
    samples, labels = draw(checkpoint.load(sample.BUNDLED), images, len(images), 0, None)
    (found,) = metrics.evaluate(
        samples,
        images,
        labels,
        classifier=metrics.classifier_for(images),
        measures=["FD features"],
    )
    card = checkpoint.find(sample.BUNDLED).card["measures"]
    many = next(v for k, v in card.items() if k.startswith("teacher") and "1 step" not in k)
    assert found.value <= 2 * many[found.name]["value"]
    assert found.value == pytest.approx(card["student, 1 step"][found.name]["value"], rel=0.05)
