"""The gate on the engine's ratios to torch: what it fails, and what it lets pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks.cpu_peers import by_layer, gate, layers
from benchmarks.cpu_peers.layers import BF16, FP32, INT8, LAYERS, Layer, Pair
from kdgen.kernels import native

ROOT = Path(__file__).parents[1]
LAYER = LAYERS[0]


def result(ratio: float, error: float = 1e-6, layer: Layer = LAYER) -> gate.Result:
    return gate.Result(layer, 1e-3, (ratio,) * 3, error)


@pytest.mark.parametrize(
    ("ratio", "error", "floor", "expected"),
    [
        (1.9, 1e-6, 1.2, "ok"),
        (1.2, 1e-6, 1.2, "ok"),
        (1.19, 1e-6, 1.2, "LOWER"),
        (0.1, 1e-6, None, "no floor"),
        (9.0, 1e-2, 1.2, "WRONG"),
        (9.0, float("nan"), None, "WRONG"),
    ],
)
def test_a_layer_is_judged_by_its_floor_and_its_error(
    ratio: float, error: float, floor: float | None, expected: str
):
    assert result(ratio, error).verdict(floor) == expected


def test_one_bad_measurement_fails_nothing():
    again = iter([0.9, 1.5])
    floors = {LAYER.key: 1.2}
    (final,) = gate.settled([result(0.8)], floors, lambda layer: result(next(again)))
    assert final.verdict(1.2) == "ok"


def test_a_layer_that_stays_lower_fails_after_its_tries():
    asked: list[Layer] = []

    def measure(layer: Layer) -> gate.Result:
        asked.append(layer)
        return result(0.9)

    (final,) = gate.settled([result(0.8)], {LAYER.key: 1.2}, measure)
    assert (len(asked), final.ratio, final.verdict(1.2)) == (gate.TRIES - 1, 0.9, "LOWER")


def test_what_is_well_is_measured_once():
    def measure(layer: Layer) -> gate.Result:
        raise AssertionError

    assert gate.settled([result(2.0)], {LAYER.key: 1.2}, measure) == [result(2.0)]
    assert gate.settled([result(2.0)], {}, measure) == [result(2.0)]


class Fake:
    """An engine of which only the facts are asked."""

    isa, fast_bf16, fast_int8 = "avx512", False, False


@pytest.fixture
def machine(monkeypatch: Any) -> dict[str, float]:
    """Ratios that a measurement finds, by layer."""
    found = {layer.key: 2.0 for layer in LAYERS}
    monkeypatch.setattr(gate, "program", lambda: Fake)
    monkeypatch.setattr(gate, "_measured", lambda _, la: result(found[la.key], layer=la))
    return found


def test_recorded_floors_are_a_generous_part_of_what_was_measured(
    tmp_path: Path, machine: dict[str, float], capsys: Any
):
    path = tmp_path / "floors.json"
    path.write_text(json.dumps({"avx2": {"another": 1.0}}))
    assert gate.main(["--record", "--floors", str(path)]) == 0
    floors = json.loads(path.read_text())
    assert floors["avx2"] == {"another": 1.0}
    assert floors["avx512"] == {la.key: 1.2 for la in LAYERS if la.dtype == FP32}
    machine[LAYER.key] = 1.3
    assert gate.main(["--floors", str(path)]) == 0
    machine[LAYER.key] = 1.1
    capsys.readouterr()
    assert gate.main(["--floors", str(path)]) == 1
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]].count("LOWER") == 1
    assert len(table) == 1 + len(floors["avx512"])


def test_a_floor_whose_layer_is_not_timed_any_more_fails(
    tmp_path: Path, machine: dict[str, float], monkeypatch: Any, capsys: Any
):
    """Else an engine that forgot its int8 would pass, all its floors unread."""
    floors = ["--floors", str(tmp_path / "floors.json")]
    monkeypatch.setattr(Fake, "fast_int8", True)
    assert gate.main(["--record", *floors]) == 0
    assert gate.main(floors) == 0
    monkeypatch.setattr(Fake, "fast_int8", False)
    capsys.readouterr()
    assert gate.main(floors) == 1
    lost = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOST")]
    assert len(lost) == sum(la.dtype == INT8 for la in LAYERS)


def test_products_that_a_machine_emulates_are_not_timed(
    machine: dict[str, float], monkeypatch: Any
):
    assert all(la.dtype == FP32 for la in gate._here(Fake())[1])
    monkeypatch.setattr(Fake, "fast_bf16", True)
    assert {la.dtype for la in gate._here(Fake())[1]} == {FP32, BF16}
    monkeypatch.setattr(Fake, "fast_int8", True)
    assert gate._here(Fake())[1] == list(LAYERS)


def test_the_gate_looks_at_the_instruction_set_in_use():
    """Where KDGEN_ISA asks for another one, its floors count."""
    if native.module is None or len(native.module.supported_isas()) < 2:
        pytest.skip("needs the compiled part, and a choice")
    best, other = native.module.isa(), native.module.supported_isas()[-1]
    code = "from benchmarks.cpu_peers import layers; print(layers.program()().isa)"
    for isa in (best, other):
        env = {**os.environ, "KDGEN_ISA": isa}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True
        )
        assert ran.stdout.split() == [isa], ran.stderr


def test_without_the_engine_the_gate_says_so(monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(gate, "program", lambda: "the native engine is not compiled")
    assert gate.main([]) == 0
    assert "skipped: the native engine is not compiled" in capsys.readouterr().out


def test_committed_floors_are_of_layers_that_there_are():
    keys = {la.key for la in LAYERS}
    assert len(keys) == len(LAYERS)
    committed = gate.read(gate.FLOORS)
    assert committed
    for isa, floors in committed.items():
        assert floors, isa
        assert floors.keys() <= keys, isa


@pytest.mark.parametrize("layer", LAYERS, ids=lambda la: la.key)
def test_both_sides_do_the_same_work(layer: Layer):
    make = layers.program()
    if isinstance(make, str):
        pytest.skip(make)
    pair = Pair(make(), layer, threads=1)
    assert pair.error() <= layers.WORST[layer.dtype]
    assert pair.torchs().shape == pair.ours().shape


def test_where_the_time_goes_is_told_of_every_step(capsys: Any):
    make = layers.program()
    if isinstance(make, str):
        pytest.skip(make)
    assert by_layer.main(["tiny16", "--batches", "1", "2", "--repeats", "1"]) == 0
    head, _, *table = capsys.readouterr().out.splitlines()
    assert head.startswith("tiny16, fp32 on ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    plan = by_layer._plan("tiny16", "fp32")
    assert sum(int(row[1]) for row in rows[:-1]) == len(plan.layers)
    for column in (3, 5):  # rounded to 0.01 ms a row, and 0.1 in all
        spent = [float(row[column]) for row in rows]
        assert sum(spent[:-1]) == pytest.approx(spent[-1], abs=0.05 + 0.005 * len(rows))
    assert {len(row) for row in rows} == {8}


def test_a_doubled_layer_counts_the_products_of_its_output():
    plain, doubled = (Layer(16, 16, 8, form, BF16) for form in ("direct", "up_winograd"))
    assert doubled.flops == 4 * plain.flops
