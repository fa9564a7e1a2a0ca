"""The plan for one GPU: what can be proved of it without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    clock,
    correct,
    energy,
    kernels,
    profile,
    report,
    sanity,
    stages,
    verdicts,
)
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Record
from benchmarks.race import Timing
from benchmarks.roofs import Roofs

CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(CPU, Record.start(tmp_path / "device.json", CPU), seconds=60.0, tiny=True)


def test_deadlines_share_out_the_minutes() -> None:
    limits = stages.deadlines(stages.chosen(""), 27.0)
    assert sum(limits.values()) == pytest.approx(27 * 60)
    assert min(limits.values()) > 30
    assert stages.deadlines(stages.chosen("images"), 5.0) == {"images": 300.0}


def test_chosen_stages_keep_the_order_of_the_plan() -> None:
    assert [s.name for s in stages.chosen("training, sanity")] == ["sanity", "training"]
    with pytest.raises(ValueError, match=r"stage is 'sanitty'; expected some of sanity, correct"):
        stages.chosen("sanitty")


def test_without_a_gpu_it_says_what_it_would_do_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert all(f"  {s.name} " in said for s in stages.STAGES)
    assert "nothing of this was measured" in said
    assert not (tmp_path / "results").exists()


def test_a_rehearsal_runs_stages_as_processes_and_keeps_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = ["--rehearse", "--stages", "sanity,convolutions", "--out", str(tmp_path)]
    assert command.main(chosen) == 0
    said = capfd.readouterr().out
    assert "convolutions · up 4 to 8, 32 channels · folded" in said
    assert "(d) up 4 to 8, 32 channels: folded is" in said
    assert not list(tmp_path.iterdir())


def test_a_stage_that_dies_is_reported_and_the_others_still_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = command.Run(CPU, tmp_path / "device.json", 1.0, [], True)
    gone = stages.Stage("nowhere", 1.0, "not a module")
    assert command._child(run, gone, 30.0) == "ended with exit code 1"
    monkeypatch.setattr(command, "GRACE", 0.0)
    assert "was stopped" in command._child(run, stages.BY_NAME["sanity"], 0.01)


def test_every_figure_is_on_disk_as_soon_as_it_is_known(bench: Bench) -> None:
    facts: dict[str, Any] = {"group": "g", "case": "c", "batch": 2, "flops": 3.0, "bytes": 4.0}
    timings = {"ours": Timing((1.0, 1.0)), "torch": Timing((2.0, 2.0))}
    bench.rows(timings, "torch", torch.float32, predicted=0.5, **facts)
    document = json.loads(bench.record.path.read_text())
    rows = document["rows"]
    assert rows["g · c · ours · fp32 · batch 2"]["ratio"] == 2.0
    assert "ratio" not in rows["g · c · torch · fp32 · batch 2"]
    again = Record(bench.record.path)  # the next stage's process
    again.note("later", done=True)
    assert set(Record(bench.record.path).document["rows"]) == set(rows)


def test_what_the_deadline_cut_off_is_part_of_the_result(bench: Bench) -> None:
    bench.seconds = 5.0
    assert bench.time_for("soon", 1.0)
    assert not bench.time_for("ops · late", 30.0)
    document = json.loads(bench.record.path.read_text())
    assert "deadline" in document["rows"]["ops · late"]["skipped"]
    assert any("not measured: ops · late" in line for line in report.lines(document))


def test_contestants_take_turns_and_time_is_that_of_one_call() -> None:
    order: list[str] = []
    contestants = {
        name: clock.Contestant(lambda name=name: order.append(name), count=4)  # type: ignore[misc]
        for name in ("a", "b")
    }
    timings = clock.race(contestants, CPU, rounds=3, least=0.0)
    assert order[-6:] == ["a", "b"] * 3
    assert all(len(t.rounds) == 3 for t in timings.values())


def test_a_ring_is_run_in_order_and_counted() -> None:
    seen: list[int] = []
    contestant = clock.captured([lambda: seen.append(1), lambda: seen.append(2)], CPU)
    contestant.run()
    assert (seen, contestant.count, contestant.captured) == ([1, 2], 2, False)


def test_copies_of_inputs_exceed_the_last_cache() -> None:
    from benchmarks.machine import last_cache

    assert clock.copies(last_cache(CPU) / 4, CPU) == 8
    assert clock.copies(1e12, CPU) == 1
    assert clock.copies(1.0, CPU) == 32


def test_joules_are_the_counters_growth_over_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, times = iter([1000.0, 4000.0]), iter([0.0, 0.0, 1.0, 3.0, 3.0])
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(times))
    joules, watts = energy.measured(lambda: None, lambda: next(ticks), CPU)
    assert joules == 1.5  # two runs
    assert watts == 1.0
    assert energy.of(lambda: None, CPU) == "no GPU"


def test_a_device_off_its_known_rates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanity.machine, "name", lambda device: "NVIDIA H200")
    assert sanity.verdict(CPU, 780e12, 4.2e12) == "ok"
    assert "copy 2e+12 instead of 4.3e+12" in sanity.verdict(CPU, 780e12, 2e12)


OUTPUT = """\
FAILED tests/kernels/test_every_op.py::test_x[triton] - AssertionError: worst 1 > 0
1 failed, 30 passed, 2 skipped in 4.20s
"""


def test_the_runners_closing_line_and_failures_are_kept() -> None:
    found = correct.summary(OUTPUT, 1)
    assert found["summary"] == "1 failed, 30 passed, 2 skipped in 4.20s"
    assert found["failed"] == ["tests/kernels/test_every_op.py::test_x[triton]"]
    assert correct.summary("Killed\n", -9)["summary"] == "exit -9"


PROFILE = """\
==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","forward_kernel(int)","dram__bytes_read.sum","Mbyte","138.40"
"0","forward_kernel(int)","launch__registers_per_thread","register/thread","64"
"1","forward_kernel(int)","dram__bytes_read.sum","Mbyte","1,138.5"
"""


def test_counters_are_read_in_base_units_from_the_last_launch() -> None:
    found = profile.table(PROFILE)
    assert found["forward_kernel"]["dram__bytes_read.sum"] == pytest.approx(1138.5e6)
    assert found["forward_kernel"]["launch__registers_per_thread"] == 64
    assert profile.table("no kernels were profiled") == {}


def _row(seconds: float, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "predicted": 1.0, **more}


def test_rules_written_before_the_figures_decide() -> None:
    rows = {
        f"{verdicts.NORM}triton · bf16 · batch 528": _row(2.0),
        "convolutions · 3x3 32x32 128 to 128 · cudnn · bf16 · batch 528": _row(1.25),
        "convolutions · up 16 to 32, 256 channels · folded · bf16 · batch 528": _row(1, ratio=1.6),
        "images · ddpm32 · kdgen fast · bf16 · batch 1056": _row(1.0),
        "images · ddpm32 · torch.compile default · bf16 · batch 1056": _row(1.3),
        "training · ddpm32 step · kdgen · bf16 · batch 512": _row(1.0),
        "training · ddpm32 step · torch.compile · bf16 · batch 512": _row(1.02),
        "ops · late": {"skipped": "deadline"},
    }
    said = verdicts.verdicts({"rows": rows})
    assert [line[:3] for line in said] == ["(a)", "(b)", "(c)", "(c)", "(d)"]
    assert "50% of the copy roof: look at sectors" in said[0]
    assert "80% of the product roof: own kernels would not pay" in said[1]
    assert "1.30 times torch.compile: own kernels stay" in said[2]
    assert "1.02 times torch.compile: not worth" in said[3]
    assert "1.60 times two steps: fold" in said[4]


def test_the_report_shows_predicted_beside_measured(bench: Bench) -> None:
    bench.record.document["rows"]["ops · x"] = {
        "seconds": 2e-3,
        "low": 1.9e-3,
        "high": 2.1e-3,
        "predicted": 1e-3,
        "expected": 1.5e-3,
        "ratio": 1.25,
        "error": 1e-6,
    }
    text = "\n".join(report.lines(bench.record.document))
    for figure in ("1.5 ms", "2 ms", "10%", "50%", "1.25", "1.0e-06"):
        assert figure in text


def test_a_wrong_kernel_is_not_timed() -> None:
    x = torch.randn(4, 3, 8, 8)
    own = kernels.error_of(torch.sigmoid, torch.sigmoid, (x,))
    assert own <= kernels.allowed(own, torch.float32)
    wrong = kernels.error_of(lambda v: torch.sigmoid(v) * 1.001, torch.sigmoid, (x,))
    assert not wrong <= kernels.allowed(own, torch.float32)
    broken = kernels.error_of(lambda v: v.reshape(7, 7), torch.sigmoid, (x,))
    assert not broken <= kernels.allowed(own, torch.float32)  # NaN is not allowed either


def test_the_profiled_call_runs_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import one

    calls: list[str] = []
    monkeypatch.setattr(one, "synchronise", lambda device: calls.append(str(device)))
    one.main(["to_uint8", "native", "0"])
    assert calls == ["cpu"]


def test_roofs_are_measured_once(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    assert isinstance(bench.roofs, Roofs)
    assert bench.roofs is bench.roofs


def test_a_part_of_the_plan_joins_what_other_parts_found(bench: Bench) -> None:
    path = bench.record.path
    bench.record.skip("ops · x", "deadline")
    again = Record.start(path, CPU, more=True)
    assert again.document["rows"] == {"ops · x": {"skipped": "deadline"}}
    again.document["commit"] = "another"
    again.write()
    assert Record.start(path, CPU, more=True).document["rows"] == {}
    bench.record.write()
    assert Record.start(path, CPU).document["rows"] == {}


def test_a_wrong_gradient_is_not_timed_either() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.sigmoid()

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
            return dy

    x = torch.randn(4, 3, 8, 8)
    own = kernels.error_of(torch.sigmoid, torch.sigmoid, (x,), backward=True)
    assert own <= kernels.allowed(own, torch.float32) < 1e-5
    assert kernels.error_of(Wrong.apply, torch.sigmoid, (x,)) <= own + 1e-7
    wrong = kernels.error_of(Wrong.apply, torch.sigmoid, (x,), backward=True)
    assert not wrong <= kernels.allowed(own, torch.float32)
