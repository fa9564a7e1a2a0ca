"""`make bench-peers`: the order of turns, the rows of those that fail, what is made of a file."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.cpu_peers import (
    again,
    case,
    claims,
    figures,
    measuring,
    networks,
    pictures,
    report,
    rounds,
    tables,
    variants,
    worker,
)
from benchmarks.cpu_peers.__main__ import main
from benchmarks.cpu_peers.process import Failed, Process
from benchmarks.cpu_peers.record import Record
from kdgen.nets.layers import Pointwise

# ---- the error ------------------------------------------------------------------------------


def test_the_error_is_summed_in_float64():
    """In float32 the squares would overflow, and the small difference would drown."""
    expected = np.full((2, 3, 50, 50), 2.0**83, dtype=np.float32)
    out = expected.copy()
    out[0, 0, 0, 0] *= 1.5
    exact = 0.5 / expected.size**0.5  # one value of equal ones is off by a half
    assert case.relative(out, expected) == pytest.approx(exact, rel=1e-7)
    assert case.relative(expected, expected) == 0


def test_the_error_is_relative_to_the_reference_whatever_the_output():
    expected = np.float32([[3.0, 4.0]])
    assert case.relative(np.float32([[0.0, 0.0]]), expected) == 1
    assert case.relative(2 * expected, expected) == pytest.approx(1)
    assert np.isnan(case.relative(np.float32([[np.nan, 4.0]]), expected))


def test_an_output_of_another_shape_is_no_answer():
    with pytest.raises(ValueError, match=r"\(2, 1\); expected \(1, 2\)"):
        case.relative(np.zeros((2, 1)), np.ones((1, 2)))


# ---- the networks ---------------------------------------------------------------------------


@pytest.fixture(params=["tiny16", "digits"])
def named(request: pytest.FixtureRequest) -> Any:
    return request.param, *networks.NETWORKS[request.param]()


def test_every_contestant_gets_the_function_of_the_network(named: Any):
    name, net, time = named
    known = case.Case(name, time, net.shape, net.classes, 0.0, 0)
    x, *label = networks.tensors(*case.inputs(known, 3))
    expected = net.double().eval()(x.double(), torch.full((3,), time).double(), *label)
    found = networks.at_time(net, time, torch.float64)(x.double(), *label)
    # Both in float64, the answer rounded to float32 once.
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)


def test_contestants_run_torchs_own_layers(named: Any):
    _, net, time = named
    made = networks.at_time(net, time)
    assert not [m for m in made.modules() if isinstance(m, Pointwise)]
    assert any(isinstance(m, Pointwise) for m in net.modules())


def test_in_bfloat16_the_time_keeps_its_digits():
    made = networks.AtTime(nn.Identity(), 999.0).to(torch.bfloat16)
    assert made.time.item() == 999.0


@pytest.mark.parametrize("preset", ["tiny16", "tiny8-edm"])
def test_no_layer_is_left_at_nothing(preset: str):
    net, _ = networks._preset(preset, 1.0)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert min(m.weight.abs().max().item() for m in layers) > 1e-3


# ---- turns ----------------------------------------------------------------------------------


def test_everybody_has_one_turn_a_round_and_another_one_begins():
    found = list(rounds.turns(["a", "b", "c"], [1, 8], 3))
    by_round = [[(who, batch) for k, who, batch in found if k == r] for r in range(3)]
    assert by_round[0] == [("a", 1), ("a", 8), ("b", 1), ("b", 8), ("c", 1), ("c", 8)]
    assert [turn[0][0] for turn in by_round] == ["a", "b", "c"]
    assert all(sorted(turn) == sorted(by_round[0]) for turn in by_round)


@pytest.mark.parametrize(("seconds", "calls"), [(0.01, 30), (0.2, 2), (0.29, 2), (4.0, 1)])
def test_calls_are_repeated_until_they_last_long_enough(seconds: float, calls: int):
    assert rounds.calls(seconds) == calls
    assert calls * seconds >= rounds.ROUND_SECONDS


def test_a_round_begins_with_a_call_that_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    durations = iter([100.0, 1.0, 2.0, 6.0])

    def call() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock[0])
    contestant = worker.Contestant.__new__(worker.Contestant)
    contestant.calls = {8: call}
    assert contestant.round(8, 3) == {"seconds": 3.0}


def test_a_batch_that_would_outlast_the_budget_is_refused_with_the_reason():
    assert rounds.too_slow(5.0, 7, 70.0) == ""
    assert rounds.too_slow(5.1, 7, 70.0) == "over the budget of 70 s: a call takes about 5 s"
    assert rounds.too_slow(0.29, 100, 86.0)  # two calls behind an untimed one
    assert not rounds.too_slow(0.29, 100, 88.0)


class Asked:
    """Stands for a process: notes what it is asked, and refuses what it is told to."""

    def __init__(self, name: str, log: list[tuple[str, int]], fails_at: int = 0) -> None:
        self.name, self.log, self.fails_at = name, log, fails_at

    def ask(self, limit: float, do: str, **what: Any) -> dict[str, Any]:
        assert do == "round"
        self.log.append((self.name, what["batch"]))
        if what["batch"] == self.fails_at:
            raise Failed("its process ended with signal SIGKILL")
        return {"seconds": 0.1 * what["batch"]}


def raced(tmp_path: Path, fails_at: int) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    log: list[tuple[str, int]] = []
    names = ["eager-fp32", "kdgen-fp32"]
    ready: Any = [
        measuring.Contestant(
            variants.BY_NAME[n], Asked(n, log, fails_at * (n == "kdgen-fp32")), {1: 0.1, 2: 0.2}
        )
        for n in names
    ]
    plan = measuring.Plan([c.variant for c in ready], (1, 2), 2, 1, 60.0, tiny=True)
    record = Record(tmp_path / "here.json", {"device": "here"})
    record.network("tiny16", {"batches": [1, 2]})
    measuring._race(ready, "tiny16", plan, record)
    return log, json.loads(record.path.read_text())["networks"]["tiny16"]["variants"]


def test_processes_are_asked_one_after_the_other(tmp_path: Path):
    log, rows = raced(tmp_path, fails_at=0)
    a, b = [("eager-fp32", 1), ("eager-fp32", 2)], [("kdgen-fp32", 1), ("kdgen-fp32", 2)]
    assert log == a + b + b + a
    assert rows["eager-fp32"]["batches"]["2"]["seconds"] == [0.2, 0.2]


def test_one_that_fails_has_its_reason_and_stops_nobody(tmp_path: Path):
    log, rows = raced(tmp_path, fails_at=2)
    assert log.count(("kdgen-fp32", 2)) == 1
    assert log.count(("eager-fp32", 2)) == 2
    assert rows["kdgen-fp32"]["batches"]["2"] == {"failed": "its process ended with signal SIGKILL"}
    assert rows["kdgen-fp32"]["batches"]["1"]["seconds"] == [0.1, 0.1]


# ---- processes ------------------------------------------------------------------------------

ECHO = """
import sys
import time
from itertools import pairwise
print('{"ready": true}', flush=True)
for line in sys.stdin: print(line, end="", flush=True)
"""


def process(tmp_path: Path, code: str) -> Process:
    return Process([sys.executable, "-c", code], {}, tmp_path / "log")


def test_a_process_answers_what_it_is_asked(tmp_path: Path):
    child = process(tmp_path, ECHO)
    assert child.answer(60) == {"ready": True}
    assert child.ask(60, "round", batch=8) == {"do": "round", "batch": 8}
    child.stop()


@pytest.mark.parametrize(
    ("code", "limit", "why"),
    [
        ('print(\'{"failed": "no package"}\')', 60, "^no package$"),
        ("import sys; sys.exit('torch is broken')", 60, "exit code 1: torch is broken$"),
        ("import os; os.kill(os.getpid(), 9)", 60, "signal SIGKILL$"),
        ("import time; time.sleep(60)", 0.2, "^over the budget of 0 s$"),
    ],
    ids=["refused", "error", "killed", "slow"],
)
def test_one_that_does_not_answer_says_why(tmp_path: Path, code: str, limit: float, why: str):
    child = process(tmp_path, code)
    with pytest.raises(Failed, match=why):
        child.answer(limit)
    child.stop()


def test_a_process_that_is_too_slow_is_ended_with_what_it_started(tmp_path: Path):
    started = tmp_path / "started"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "print('{}', flush=True)\n"
        "time.sleep(60)"
    )
    child = process(tmp_path, code)
    child.answer(60)
    grandchild = Path("/proc") / started.read_text()
    if not grandchild.exists():
        pytest.skip("no /proc here")
    with pytest.raises(Failed):
        child.answer(0.1)
    deadline = time.monotonic() + 20  # a signal takes a moment; by itself it would live for 60 s
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(grandchild)


def alive(entry: Path) -> bool:
    """Of a process's place in /proc: there, and no zombie."""
    try:
        return "State:\tZ" not in (entry / "status").read_text()
    except OSError:
        return False


@pytest.fixture
def measured(tmp_path: Path) -> dict[str, Any]:
    """The digits, once, by one that can and by one that cannot."""
    arguments = ["--quick", "--networks", "digits", "--variants", "eager-fp32", "diffusers-fp32"]
    arguments += ["--batches", "2", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    before = torch.get_num_threads()
    try:
        assert main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    (file,) = tmp_path.glob("*.json")
    return figures.read(file)


@pytest.mark.slow
def test_a_run_leaves_a_file_with_every_contestant_in_it(measured: dict[str, Any]):
    said = measured["networks"]["digits"]
    assert {"commit", "command", "versions", "threads", "roofs"} <= said.keys()
    eager = said["variants"]["eager-fp32"]
    assert eager["start"] > 0
    assert eager["memory"] > 1 << 20
    assert eager["batches"]["2"]["error"] < 1e-5  # the reference is eager, too
    assert len(eager["batches"]["2"]["seconds"]) == 1
    assert said["variants"]["diffusers-fp32"]["failed"]
    text = "\n".join(tables.page(measured, "picture.png"))
    assert f"diffusers, fp32: {said['variants']['diffusers-fp32']['failed']}" in text


# ---- the file -------------------------------------------------------------------------------


def document(scale: float = 1.0) -> dict[str, Any]:
    """As a run leaves it: kdgen twice as fast as OpenVINO in every round, but for the error."""

    def row(seconds: list[float], error: float) -> dict[str, Any]:
        batches = {"8": {"seconds": seconds, "error": error}}
        return {"start": 4.2, "memory": 700 << 20, "batches": batches}

    slow = [0.8, 1.6, 0.8, 0.8]  # the second round was disturbed
    rows = {
        "eager-fp32": row(slow, 0.0),
        "openvino-fp32": row(slow, 2e-6),
        "openvino-bf16": {"failed": "openvino not installed"},
        "kdgen-fp32": row([s / (2.0 * scale) for s in slow], 3e-6),
    }
    network = {
        "commit": "0123456789ab",
        "command": "python -m benchmarks.cpu_peers",
        "versions": {"torch": "2.13.0+cpu", "openvino": None},
        "threads": 2,
        "rounds": 4,
        "batches": [8],
        "flops": 12.5e9,
        "parameters": 35_746_307,
        "roofs": {"fp32": 250e9},
        "variants": rows,
    }
    return {"schema": 1, "device": "A machine, 2 threads", "networks": {"ddpm32": network}}


def written(tmp_path: Path, content: Any, name: str = "a-machine.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def the_page(tmp_path: Path) -> Path:
    path = tmp_path / "performance.md"
    path.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    return path


def test_the_report_is_made_from_the_file_alone(tmp_path: Path):
    file, page = written(tmp_path, document()), the_page(tmp_path)
    arguments = [str(file), "--page", str(page), "--no-picture"]
    assert report.main(arguments) == 0
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter.\n")
    assert "old" not in text
    # 8 images in 0.8 s; the disturbed round moves a quartile. 10 images/s of 12.5 GFLOP: 50 %.
    expected = "| OpenVINO, fp32 | 10.0 (8.75–10.0) | 2.0e-06 | 50% | 4.2 s |  | 700 MiB |"
    assert expected in text
    assert "| **kdgen fp32** | 20.0 (17.5–20.0) | 3.0e-06 | 100% |" in text
    assert "- OpenVINO, bf16: openvino not installed" in text
    assert "commit 0123456789ab" in text
    assert report.main(arguments) == 0
    assert page.read_text() == text


def test_a_disturbed_round_disturbs_no_ratio():
    """It is taken round by round."""
    (found,) = (v for v in verdicts() if v.claim.against == "OpenVINO fp32")
    assert found.ratio == figures.Spread(2.0, 2.0, 2.0, 2.0, 2.0)
    assert found.errors == (3e-6, 2e-6)
    assert found.aim == 2.0


def verdicts() -> list[claims.Verdict]:
    return [v for r in figures.networks(document()) for v in claims.verdicts(r)]


def test_the_share_of_the_roof_is_of_the_products_that_were_made():
    content = document()
    said = content["networks"]["ddpm32"]
    said["roofs"]["bf16"] = 50e9
    said["variants"]["kdgen-bf16"] = {**said["variants"]["kdgen-fp32"], "dtype": "fp32"}
    (results,) = figures.networks(content)
    assert results.figure("kdgen-bf16", 8).fraction == pytest.approx(1.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("explained", "expected"),
    [
        ("  network    native, class bf16: float32, F(4×4); error 1e-6", "fp32"),
        ("  network    native, class bf16: bfloat16, float32, direct; error 1e-2", "bf16"),
        ("  batch      3", ""),
    ],
)
def test_what_the_engine_chose_is_read_from_what_it_explains(explained: str, expected: str):
    from benchmarks.cpu_peers.runners.accelerated import chosen

    note, dtype = chosen(f"UNet at t = 1\n{explained}\n  batch 3")
    assert dtype == expected
    assert ";" not in note


def test_a_ratio_that_cannot_be_had_says_why():
    missing = [v.why for v in verdicts() if v.ratio is None]
    assert "kdgen bf16: not asked for" in missing
    content = document()
    content["networks"]["ddpm32"]["variants"]["kdgen-bf16"] = {"failed": "no engine"}
    (results,) = figures.networks(content)
    assert "kdgen bf16: no engine" in [v.why for v in claims.verdicts(results)]


def test_the_fastest_of_several_peers_counts():
    content = document()
    rows = content["networks"]["ddpm32"]["variants"]
    rows["kdgen-bf16"] = rows["kdgen-fp32"]
    for name, seconds in {"compile-bf16": 0.9, "aot-fp32": 0.6, "autotune-fp32": 0.7}.items():
        rows[name] = {"batches": {"8": {"seconds": [seconds] * 4, "error": 1e-2}}}
    (results,) = figures.networks(content)
    (found,) = (v for v in claims.verdicts(results) if "torch.compile" in v.claim.against)
    assert found.peer == "aot-fp32"
    assert "the best torch.compile: AOTInductor, fp32" in "\n".join(tables.page(content, ""))


def test_claims_name_contestants_that_there_are():
    names = {name for c in claims.CLAIMS for name in (c.ours, *c.peers)}
    assert names <= variants.BY_NAME.keys()
    assert {n for c in claims.CLAIMS for n in c.networks} == networks.NETWORKS.keys()


@pytest.mark.parametrize(
    "text", ["no markers", f"{report.BEGIN} x", f"{report.BEGIN}{report.END}{report.END}"]
)
def test_a_page_without_its_markers_is_left_alone(tmp_path: Path, text: str):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(SystemExit):
        report.main([str(written(tmp_path, document())), "--page", str(page), "--no-picture"])
    assert page.read_text() == text


@pytest.mark.parametrize("content", [[], {}, {"networks": {"ddpm32": {}}}, {"networks": {}}])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: Any):
    with pytest.raises(ValueError, match="is no result"):
        figures.read(written(tmp_path, content))


def test_a_run_leaves_the_networks_that_it_does_not_measure(tmp_path: Path):
    path = tmp_path / "here.json"
    Record(path, {"device": "here"}).network("ddpm32", {"commit": "first"})
    record = Record(path, {"device": "here"})
    record.network("digits", {"commit": "second"})
    record.variant("digits", "kdgen-fp32", failed="why")
    found = json.loads(path.read_text())["networks"]
    assert found["ddpm32"]["commit"] == "first"
    assert found["digits"]["variants"] == {"kdgen-fp32": {"failed": "why"}}


def test_of_two_roofs_the_better_one_counts(tmp_path: Path):
    record = Record(tmp_path / "here.json", {})
    record.network("digits", {})
    for rate in (2e11, 3e11, 1e11):
        record.roofs("digits", {"fp32": rate})
    assert record.document["networks"]["digits"]["roofs"] == {"fp32": 3e11}


@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (1.5, 0), (0.9, 1)])
def test_a_second_run_confirms_what_is_not_lower_than_all_rounds_of_the_first(
    tmp_path: Path, scale: float, code: int, capsys: Any
):
    first, second = written(tmp_path, document()), written(tmp_path, document(scale), "b.json")
    assert again.main([str(first), str(second)]) == code
    assert ("LOWER" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize(("row", "code"), [({"failed": "it hung"}, 1), (None, 0)])
def test_a_claim_of_which_nothing_is_left_is_not_confirmed(
    tmp_path: Path, row: dict[str, Any] | None, code: int, capsys: Any
):
    """One that the second run was not asked for is no matter."""
    content = {**document(), "networks": {}}
    for name in ("ddpm32", "edm32"):
        content["networks"][name] = document()["networks"]["ddpm32"]
    first = written(tmp_path, content)
    del content["networks"]["edm32"]["variants"]["openvino-fp32"]
    if row is not None:
        content["networks"]["edm32"]["variants"]["openvino-fp32"] = row
    assert again.main([str(first), str(written(tmp_path, content, "b.json"))]) == code
    assert ("GONE" in (said := capsys.readouterr().out)) == bool(code)
    assert ("it hung" in said) == bool(code)


def test_a_claim_is_not_confirmed_without_the_peer_that_was_the_fastest(
    tmp_path: Path, capsys: Any
):
    content = document()
    rows = content["networks"]["ddpm32"]["variants"]
    rows["kdgen-bf16"] = rows["kdgen-fp32"]
    for name, seconds in {"aot-fp32": 0.6, "compile-fp32": 0.9}.items():
        rows[name] = {"batches": {"8": {"seconds": [seconds] * 4, "error": 1e-2}}}
    first = written(tmp_path, content)
    rows["aot-fp32"] = {"failed": "it hung"}
    assert again.main([str(first), str(written(tmp_path, content, "b.json"))]) == 1
    assert "GONE" in capsys.readouterr().out
    del rows["aot-fp32"]
    assert again.main([str(first), str(written(tmp_path, content, "c.json"))]) == 0


def test_what_a_run_was_asked_for_is_in_its_file(tmp_path: Path):
    """One that was ended early has no row of the contestants that were still to come."""
    content = document()
    content["networks"]["ddpm32"]["contestants"] = ["openvino-fp32", "kdgen-fp32", "kdgen-bf16"]
    (results,) = figures.networks(content)
    assert results.asked("kdgen-bf16")
    assert results.why("kdgen-bf16", 8) == "not measured"
    assert not results.asked("kdgen-exact")
    assert results.why("kdgen-exact", 8) == "not asked for"


def test_two_runs_with_nothing_in_common_confirm_nothing(tmp_path: Path):
    empty = document()
    empty["networks"]["ddpm32"]["variants"] = {}
    first, second = written(tmp_path, document()), written(tmp_path, empty, "b.json")
    assert again.main([str(first), str(second)]) == 1


def test_labels_do_not_lie_on_one_another():
    heights = pictures.apart([0.5, 0.5, 0.51, 0.9, 0.5], [1e-6, 2e-6, 1e-6, 1e-6, 1e-2])
    near = sorted(heights[:4])
    assert min(b - a for a, b in pairwise(near)) >= pictures.GAP - 1e-9
    assert heights[4] == 0.5  # nobody is near


def test_the_picture_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    pictures.draw(document(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# ---- who takes part -------------------------------------------------------------------------


def test_contestants_are_chosen_by_name_or_family():
    assert [v.name for v in variants.chosen(["openvino", "eager-fp32"])] == [
        "eager-fp32",
        "openvino-fp32",
        "openvino-bf16",
        "openvino-int8",
    ]
    assert variants.chosen([]) == list(variants.VARIANTS)
    with pytest.raises(ValueError, match="variant is 'tvm'"):
        variants.chosen(["tvm"])


def test_what_is_made_before_is_made_by_those_that_can():
    """Read from the sources: importing the runners would take their packages."""
    folder = Path(variants.__file__).with_name("runners")
    for variant in variants.VARIANTS:
        source = (folder / f"{variant.runner}.py").read_text()
        assert variant.made == ("def prepare(job: Job) -> None:" in source)
        assert "def start(job: Job) -> Runner:" in source


def test_a_kdgen_without_the_engine_is_refused_by_name(monkeypatch: Any):
    from benchmarks.cpu_peers.runners import Refused, accelerated

    def old(unet: Any, t: float) -> None: ...

    monkeypatch.setattr("kdgen.accelerate", old, raising=False)
    with pytest.raises(Refused, match="no accuracy and no engine="):
        accelerated.start(None)  # type: ignore[arg-type]
