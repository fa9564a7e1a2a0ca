"""`kdgen compare`: one teacher, equal budgets, every method; nothing done twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdgen import budget, checkpoint, compare, contest, data, nets, recipes, samplers, tournament
from kdgen.denoiser import Denoiser, Sampling
from kdgen.recipes import Stage
from kdgen.schedules import EDM, Cosine
from kdgen.tournament import Kept, Record

Refused = Callable[..., str]
METHODS = (
    "digits-denoising-student",
    "digits-progressive",
    "digits-reflow",
    "digits-catch-up-one-step",
    "digits-catch-up",
)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes of a few steps on batches of eight."""

    def short(stage: Stage) -> Stage:
        training = replace(stage.training, steps=2, batch=8, warmup=0)
        return replace(stage, training=training, pairs=16 if stage.pairs else 0)

    for name in METHODS:
        recipe = recipes.student(name)
        changed = replace(recipe, stages=tuple(map(short, recipe.stages)))
        monkeypatch.setitem(recipes.STUDENTS, name, lambda changed=changed: changed)
    monkeypatch.setattr(tournament, "MEASURED", 1)
    monkeypatch.setattr(contest, "TIMED", 32)
    monkeypatch.setattr(tournament, "STEPS", (2, 1))
    monkeypatch.setattr(tournament, "PATHS", 16)
    monkeypatch.setattr(tournament, "PATH_STEPS", 8)


@pytest.mark.slow
def test_a_comparison_is_measured_once_and_written_in_every_form(
    teacher: Path,
    tmp_path: Path,
    brief: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--teacher", str(teacher), "--out", str(tmp_path), "--n", "130"]
    options += ["--methods", *METHODS, "--workers", "1"]  # others would not see what is patched
    compare.main(options)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert [r["method"] for r in found["records"]] == list(METHODS)
    progressive = found["records"][1]
    assert list(progressive["quality"]) == ["8", "4", "2", "1"]
    assert progressive["nfe"] == 1
    assert [x for x, _ in progressive["curve"]][-1] == progressive["evaluations"]
    assert progressive["evaluations"] == 5 * 8 * (2 + 2 + 4 + 4)
    rounds = [(k["stage"], k["round"], k["nfe"]) for k in progressive["kept"]]
    assert rounds == [(1, 1, 8), (1, 2, 4), (1, 3, 2)]
    assert [k["distance"] for k in progressive["kept"]] == [
        progressive["quality"][str(nfe)] for nfe in (8, 4, 2)
    ]
    reflow = found["records"][2]
    assert [(k["stage"], k["round"], k["nfe"]) for k in reflow["kept"]] == [(1, None, 20)]
    bent, caught = found["records"][3:]
    assert bent["kept"][0]["distance"] == caught["quality"][str(caught["nfe"])]  # one training
    assert not (tmp_path / "seed-0" / bent["method"] / "stages" / "1-catch_up").exists()
    assert bent["seconds"] > caught["seconds"] > 0
    assert bent["evaluations"] > caught["evaluations"]
    assert found["teacher"]["full"]["floor"] > 0
    page = (tmp_path / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + len(METHODS)
    assert (tmp_path / "compare.png").exists()
    table = (tmp_path / "compare.md").read_text()
    assert table in said
    assert "| digits-progressive | 4 |" in table
    flow = "digits-reflow, stage 1 (reflow)"
    assert f"| {flow} | 20 | {reflow['kept'][0]['distance']:.2f} |" in table
    assert flow in page
    assert "digits-progressive, stage" not in table  # they are its rows

    def busy(*_: object) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr(tournament.distill, "steps", busy)
    compare.main(options)
    again = json.loads((tmp_path / "compare.json").read_text())
    assert again["records"] == found["records"]
    for other in (["--evaluations", "2000"], ["--n", "131"]):  # not what was measured
        with pytest.raises(SystemExit) as stop:
            compare.main([*options, *other])
        assert stop.value.code == 2
        assert "measured with another" in capsys.readouterr().err


def test_a_recipe_follows_the_shortest_that_begins_it(tmp_path: Path) -> None:
    """Every recipe once, and none before what it goes on from."""
    a, b, c, d = (replace(recipes.student(n).stages[0], pairs=k) for k, n in enumerate(METHODS[:4]))
    plans = {"abc": (a, b, c), "ab": (a, b), "d": (d,), "a": (a,), "b": (b,), "abd": (a, b, d)}
    rows = compare._courses(compare.Args(out=tmp_path), plans, 0)
    found = [[(c.name, c.begun and c.begun.name) for c in row] for row in rows]
    assert found == [
        [("d", None)],
        [("a", None), ("abc", "a"), ("ab", "a"), ("abd", "a")],
        [("b", None)],
    ]
    whole = rows[1][1]
    assert whole.place(1) == rows[1][0].place(1)
    assert whole.place(2).folder.is_relative_to(tmp_path / "seed-0" / "abc")
    assert whole.place(3).folder == tmp_path / "seed-0" / "abc"


def test_a_stage_begun_by_itself_is_gone_on_with(tmp_path: Path) -> None:
    """In a directory from before there was another recipe to follow."""
    a, b = (replace(recipes.student(METHODS[0]).stages[0], pairs=k) for k in (1, 2))
    plans = {"a": (a,), "ab": (a, b)}
    (before,) = compare._courses(compare.Args(out=tmp_path), plans, 0)
    assert before[1].begun == before[0]
    own = tmp_path / "seed-0" / "ab" / "stages" / f"1-{a.method.name}"
    own.mkdir(parents=True)
    (after,) = compare._courses(compare.Args(out=tmp_path), plans, 0)
    assert after[1].begun is None
    assert after[1].place(1).folder == own


def test_seconds_count_what_another_recipe_did_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path, seconds in ((first, {"1": 10.0}), (second, {"2": 5.0})):
        path.write_text(json.dumps({"points": [], "seconds": seconds}))
    assert tournament._Diary(second, first).seconds == 15.0
    assert tournament._Diary(second).seconds == 5.0  # nothing of the other's is in it
    assert tournament._Diary(second, tmp_path / "gone.json").seconds == 5.0


@pytest.mark.parametrize("build", [0.0, 5.0])
def test_making_a_tutor_is_not_multiplied_by_the_pairs(
    teacher: Path, monkeypatch: pytest.MonkeyPatch, build: float
) -> None:
    now = [0.0]

    class Tutor:
        def __init__(self, *_: object) -> None:
            now[0] += build

        def __call__(self, index: object) -> None:
            now[0] += 1.0

    stage = replace(recipes.student(METHODS[0]).stages[0], pairs=10 * budget.TRIED_PAIRS)
    model = checkpoint.load(teacher)
    monkeypatch.setattr(budget.pairs, "Tutor", Tutor)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    images = data.load("digits", progress=False)
    assert budget._seconds(stage, model, budget.cast(stage, [model]), images) == 10.0


def test_a_kept_model_is_hidden_where_another_takes_as_many_evaluations(tmp_path: Path) -> None:
    """Middle stages always; a round of the last stage, unless it is a row of its own."""
    kept = [Kept(1, None, "a", 1, 9.0), Kept(2, 1, "b", 4, 5.0), Kept(2, 2, "b", 1, 7.0)]
    record = Record(
        "m", 0, 1, {4: 5.0, 1: 3.0}, [(10, 3.0)], 10, 1.0, None, [{}, {}], {"n": 2}, kept
    )
    assert record.hidden() == [kept[0], kept[2]]
    assert [k.name for k in record.hidden()] == ["stage 1 (a)", "stage 2, round 2 (b)"]
    record.save(tmp_path / "measured.json")
    assert Record.load(tmp_path / "measured.json") == record


@pytest.mark.parametrize("name", [n for n in recipes.STUDENTS if n.startswith("digits-")])
def test_a_budget_is_met_within_one_step(teacher: Path, name: str) -> None:
    model, stages = checkpoint.load(teacher), recipes.student(name).stages
    prices = budget.prices(stages, model)
    for wanted in (50_000, 300_000):
        fitted = budget.fitted(stages, prices, wanted, name)
        spent = budget.evaluations(fitted, prices)
        last = fitted[-1]
        lengths = sum(m.length for m in last.method.rounds())
        step = last.training.batch * prices[-1].image * (lengths + 1)
        assert wanted - step < spent <= wanted


def test_a_budget_below_one_step_is_refused_before_a_teacher_is_trained(
    teacher: Path, tmp_path: Path, refused: Refused
) -> None:
    for known in ([], ["--teacher", str(teacher)]):
        options = ["--out", str(tmp_path / "out"), "--evaluations", "10", *known]
        assert "evaluations at least" in refused(compare.main, options, 2)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sampling", "nfe"),
    [
        (Sampling("ddim", steps=16), [16, 8, 4, 2, 1]),
        (Sampling("ddim", steps=5), [5, 4, 2, 1]),
        (Sampling("ddim", steps=20), [20, 16, 8, 4, 2, 1]),
        (Sampling("heun", steps=9, grid="karras"), [17, 16, 8, 4, 2, 1]),
    ],
    ids=str,
)
def test_a_teacher_is_measured_at_its_own_sampling_and_shorter(
    sampling: Sampling, nfe: list[int]
) -> None:
    schedule = EDM() if sampling.sampler == "heun" else Cosine()
    model = Denoiser(nets.preset("tiny8"), schedule, "v", "angle", sampling)
    found = [samplers.evaluations(schedule, how) for how in tournament.shorter(model)]
    assert found == nfe


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "digits-sidd"], "Did you mean digits-sid"),
        (["--family", "letters"], "no recipes of family 'letters'"),
        (["--evaluations", "9", "--minutes", "1"], "both given"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--minutes", "-1"], "not above 0"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    options: list[str], said: str, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert said in refused(compare.main, ["--out", str(out), *options], 2)
    assert not out.exists()
