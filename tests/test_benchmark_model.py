"""The benchmarks' arithmetic: what is predicted, that peers do the same work, and the gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import gate, model, op_model, peers
from benchmarks.cases import cases
from benchmarks.model import STYLES
from benchmarks.race import Timing
from benchmarks.rows import duration, rounded
from kdgen import fold, kernels, nets, noise
from kdgen.denoiser import Denoiser, Sampling
from kdgen.fast import Generator
from kdgen.nets import PRESETS, UNetConfig
from kdgen.schedules import LinearVP

CPU = torch.device("cpu")
OPS = pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)


@pytest.mark.parametrize(
    ("name", "expected"), [("ddpm32", 12.444), ("ddpm64", 48.101), ("ddpm256", 497.028)]
)
def test_the_published_networks_cost_what_is_known_of_them(name: str, expected: float) -> None:
    assert model.flops(model.walk(PRESETS[name])) / 1e9 == pytest.approx(expected, abs=5e-4)


def test_the_cost_of_ddpm32_splits_into_its_known_parts() -> None:
    found = {k: v / 1e9 for k, v in model.flops_by_kind(model.walk(PRESETS["ddpm32"])).items()}
    known = {"conv3x3": 10.924, "conv1x1": 1.179, "attention": 0.336, "linear": 0.0058}
    assert found == pytest.approx(known, abs=5e-4)


@pytest.mark.parametrize("name", ["ddpm32", "tiny8", "tiny16"])
def test_every_weight_is_counted_once(name: str) -> None:
    count = sum(p.numel() for p in nets.preset(name).parameters())
    assert model.weight_bytes(model.walk(PRESETS[name]), 4) == 4 * count


def test_a_walk_over_weights_and_one_over_the_description_agree() -> None:
    assert model.walk(nets.preset("tiny8")) == model.walk(PRESETS["tiny8"])


def test_a_folded_network_does_without_the_time_embedding() -> None:
    student = _student("tiny8")
    folded = fold.tabulate(student, [1.0])
    assert isinstance(student.net, nets.UNet)
    assert isinstance(folded.net, nets.UNet)
    before, after = (model.flops_by_kind(model.walk(net)) for net in (student.net, folded.net))
    assert before.pop("linear") > 0
    assert after == before


@pytest.mark.parametrize("name", ["tiny8", "tiny8-edm", "tiny8-adm"])
def test_a_walk_over_a_folded_network_counts_what_is_left(name: str) -> None:
    student = _student(name)
    folded = fold.fold(student, [1.0])
    known = fold.explain(student, folded).flops
    assert (model.flops(model.walk(student.net)), model.flops(model.walk(folded.net))) == known


def test_a_convolution_costs_two_flops_for_every_tap_of_every_output() -> None:
    config = UNetConfig(8, width=8, mult=(1,), blocks=1, attention=())
    (first,) = (w for w in model.walk(config) if (w.name, w.kind) == ("conv_in", "conv3x3"))
    assert first.flops == 2 * (3 * 9) * (8 * 8 * 8)
    assert (first.reads, first.writes, first.weights) == (3 * 64, 8 * 64, 8 * (27 + 1))


def test_fusing_more_moves_fewer_bytes() -> None:
    works = model.walk(PRESETS["ddpm32"])
    moved = [
        model.activation_bytes(works, STYLES[name], 2)
        for name in ("eager", "kernels", "kdgen", "fused")
    ]
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == 4


def test_the_roofline_is_compute_where_memory_is_free_and_memory_where_compute_is() -> None:
    works, style = model.walk(PRESETS["tiny8"]), STYLES["kdgen"]
    inf = float("inf")
    compute = model.roofline(works, style, 4, 2, 1e9, inf)
    memory = model.roofline(works, style, 4, 2, inf, 1e9)
    moved = 4 * model.activation_bytes(works, style, 2) + model.weight_bytes(works, 2)
    assert compute == pytest.approx(4 * model.flops(works) / 1e9)
    assert memory == pytest.approx(moved / 1e9)
    both = model.roofline(works, style, 4, 2, 1e9, 1e9)
    assert max(compute, memory) < both < compute + memory


# ---- ops ------------------------------------------------------------------------------------


@OPS
def test_every_op_is_timed_and_modelled(op: Any) -> None:
    for case in cases(op.name, CPU, smoke=True):
        for dtype in case.dtypes:
            cost = op_model.cost(op.name, case.make(CPU, dtype))
            assert cost.flops > 0
            assert cost.bytes > 0
            if case.trained:
                assert op_model.backward_cost(op.name, case.make(CPU, dtype)).bytes > 0


@OPS
def test_an_op_writes_what_the_model_says_beside_what_it_reads(op: Any) -> None:
    for case in cases(op.name, CPU, smoke=True):
        args = case.make(CPU, case.dtypes[0])
        y = op.reference(*args)
        touched = [v for v in (*args, y) if isinstance(v, torch.Tensor)]
        bytes_ = sum(v.numel() * v.element_size() for v in touched)
        assert op_model.cost(op.name, args).bytes == bytes_


@pytest.mark.parametrize("name", peers.SAME_VALUES)
def test_a_peer_computes_what_the_op_does(name: str) -> None:
    (op,) = (op for op in kernels.OPS if op.name == name)
    for case in cases(name, CPU, smoke=True):
        args = case.make(CPU, torch.float32)
        ours, theirs = op.reference(*args).float(), peers.OPS[name](*args).float()
        apart = (ours - theirs).abs().max()
        assert apart <= (1 if name.endswith("uint8") else 1e-4)  # a grey level, or rounding
        assert ours.std() > 0


def test_the_plain_network_gives_the_same_images() -> None:
    student = _student("tiny8")
    ours = Generator(student, seed=3, batch=8)(8)
    z = noise.normal(3, noise.Stream.SAMPLE, noise.addresses(0, 8), student.shape)
    theirs = peers.PlainGenerator(student, 8, torch.float32).images(z, None)
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert ours.float().std() > 10


def _student(name: str) -> Denoiser:
    torch.manual_seed(0)
    net = nets.preset(name)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    how = Sampling("ddim", steps=1, clip=1.0)
    return Denoiser(net, LinearVP(), "residual", sampling=how)


# ---- figures and the gate -------------------------------------------------------------------


def test_a_timing_ignores_one_slow_round() -> None:
    timing = Timing((1.0, 1.1, 9.0, 1.0, 1.1))
    assert timing.median == 1.1
    assert timing.best == 1.0
    low, high = timing.middle
    assert 1.0 <= low <= high < 9.0


def test_times_are_read_in_the_unit_that_fits() -> None:
    assert [duration(s) for s in (2.0, 0.0123, 4.5e-5, 3e-8)] == [
        "2 s",
        "12.3 ms",
        "45 µs",
        "30 ns",
    ]


def test_stored_figures_have_four_digits() -> None:
    assert rounded({"a": {"b": 0.123456}, "n": 123456, "s": "x"}) == {
        "a": {"b": 0.1235},
        "n": 123456,
        "s": "x",
    }


def _result(folder: Path, ratios: dict[str, float], device: str = "some CPU") -> Path:
    rows = {key: {"best_ratio": ratio} for key, ratio in ratios.items()}
    folder.mkdir()
    (folder / "some-cpu.json").write_text(json.dumps({"device": device, "rows": rows}))
    return folder


def test_the_gate_passes_what_is_within_the_noise(tmp_path: Path) -> None:
    before = _result(tmp_path / "before", {"a": 2.0, "b": 1.0})
    now = _result(tmp_path / "now", {"a": 1.3, "b": 5.0, "c": 1.0})
    assert gate.main([str(before), str(now)]) == 0


def test_the_gate_names_what_became_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _result(tmp_path / "before", {"steady": 2.0, "worse": 2.0})
    now = _result(tmp_path / "now", {"steady": 2.1, "worse": 1.1})
    assert gate.main([str(before), str(now)]) == 1
    lower = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOWER")]
    assert len(lower) == 1
    assert lower[0].endswith("worse")


def test_the_gate_believes_the_better_of_two_runs(tmp_path: Path) -> None:
    before = _result(tmp_path / "before", {"a": 2.0})
    bad, good = _result(tmp_path / "bad", {"a": 0.5}), _result(tmp_path / "good", {"a": 1.9})
    assert gate.main([str(before), str(bad)]) == 1
    assert gate.main([str(before), str(bad), str(good)]) == 0


def test_the_gate_does_not_compare_devices(tmp_path: Path) -> None:
    before = _result(tmp_path / "before", {"a": 2.0})
    now = _result(tmp_path / "now", {"a": 0.1}, device="another")
    assert gate.main([str(before), str(now)]) == 0


def test_the_gate_has_nothing_to_say_before_there_is_a_baseline(tmp_path: Path) -> None:
    now = _result(tmp_path / "now", {"a": 2.0})
    assert gate.main([str(tmp_path / "nowhere"), str(now)]) == 0


def test_the_gate_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text('{"rows": 3}')
    with pytest.raises(SystemExit, match="2"):
        gate.main([str(tmp_path), str(tmp_path)])
    assert "x.json is not a benchmark result" in capsys.readouterr().err
