"""Kernels are cut by a rule, or as a shipped file says; never by what happens to be fast today."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # the tools are not installed

from kdgen.kernels import configs
from tools import tune
from tools.tuning import Tunable

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
NAME = "NVIDIA H200"


class Cut(NamedTuple):
    places: int
    warps: int


RULE = Cut(64, 4)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where a GPU called NAME would have its file."""
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    monkeypatch.setattr(configs, "_name", lambda index: NAME)
    configs.measured.cache_clear()
    yield tmp_path / "nvidia-h200.json"
    configs.measured.cache_clear()


def content(**cuts):
    return json.dumps({"device": NAME, "cuts": cuts})


def test_without_a_file_the_rule_holds(file):
    assert configs.chosen("norm", "8x8", RULE, GPU) == RULE


def test_what_was_measured_replaces_the_rule_for_that_call_alone(file):
    file.write_text(content(norm={"8x8": {"warps": 8}}))
    assert configs.chosen("norm", "8x8", RULE, GPU) == Cut(64, 8)
    assert configs.chosen("norm", "9x9", RULE, GPU) == RULE
    assert configs.chosen("other", "8x8", RULE, GPU) == RULE
    assert configs.chosen("norm", "8x8", RULE, CPU) == RULE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'without an object "cuts"'),
        ('{"device": "NVIDIA H200"}', 'without an object "cuts"'),
        ('{"device": "NVIDIA H100", "cuts": {}}', "of device 'NVIDIA H100', not of 'NVIDIA H200'"),
        (content(norm=3), "wrong about norm"),
        (content(norm={"8x8": [1]}), "wrong about norm 8x8"),
        (content(norm={"8x8": {"warps": 0}}), "wrong about norm 8x8"),
        (content(norm={"8x8": {"warps": True}}), "wrong about norm 8x8"),
        (content(norm={"8x8": {"warps": "8"}}), "wrong about norm 8x8"),
        (content(norm={"8x8": {"wraps": 8}}), "norm has no wraps; expected places, warps"),
    ],
)
def test_a_broken_file_is_named_and_what_to_do(file, text, message):
    file.write_text(text)
    with pytest.raises(RuntimeError, match=message) as error:
        configs.chosen("norm", "8x8", RULE, GPU)
    assert str(file) in str(error.value)
    assert "tools/tune.py" in str(error.value)


def test_using_ends_with_its_block_and_nests():
    with configs.using("norm", warps=8):
        with configs.using("norm", warps=2):
            assert configs.chosen("norm", "8x8", RULE, CPU) == Cut(64, 2)
        assert configs.chosen("norm", "8x8", RULE, CPU) == Cut(64, 8)
    assert configs.chosen("norm", "8x8", RULE, CPU) == RULE


def test_every_file_that_ships_is_well_formed():
    for path in sorted(configs.FOLDER.glob("*.json")):
        device = json.loads(path.read_text(encoding="utf-8"))["device"]
        assert configs.file_of(device) == path
        configs.measured.cache_clear()
        assert configs.measured(device)


# ---- the tuner ------------------------------------------------------------------------------


def tunable(run=None):
    """A call whose answer is always the same, cut by Cut(64, 4), or (64, 2) or (64, 8)."""
    others = ({"places": 64, "warps": 2}, {"places": 64, "warps": 8})
    return Tunable("norm", "8x8", RULE._asdict(), others, run or (lambda: torch.ones(2)))


def clock(times):
    """Seconds by the number of warps in force."""

    def read(run):
        run()
        return times[configs.chosen("norm", "8x8", RULE, CPU).warps]

    return read


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({4: 1.0, 2: 2.0, 8: 0.5}, {"norm": {"8x8": {"places": 64, "warps": 8}}}),
        ({4: 1.0, 2: 0.4, 8: 0.5}, {"norm": {"8x8": {"places": 64, "warps": 2}}}),
        ({4: 1.0, 2: 2.0, 8: 2.0}, {}),
        ({4: 1.0, 2: 0.99, 8: 2.0}, {}),  # not worth an entry
    ],
)
def test_the_tuner_keeps_the_fastest_cut_that_beats_the_rule(times, expected):
    assert tune.tune([tunable()], clock(times), say=lambda _: None) == expected


def test_a_cut_that_fails_or_computes_something_else_is_passed_over():
    said = []

    def run():
        warps = configs.chosen("norm", "8x8", RULE, CPU).warps
        if warps == 2:
            raise RuntimeError("out of resources")
        return torch.full((2,), 1.0 if warps == 4 else 1.5)

    found = tune.tune([tunable(run)], clock({4: 1.0, 2: 0.1, 8: 0.1}), said.append)
    assert found == {}
    assert any("warps 2 fails (RuntimeError)" in line for line in said)
    assert any("warps 8 computes something else" in line for line in said)


def test_what_the_tuner_writes_is_what_kernels_read(file):
    cuts = tune.tune([tunable()], clock({4: 1.0, 2: 2.0, 8: 0.5}), say=lambda _: None)
    tune.write(file, NAME, cuts, {"triton": "3.6.0"})
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert configs.chosen("norm", "8x8", RULE, GPU) == Cut(64, 8)


def test_without_a_gpu_the_tuner_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "no CUDA GPU here" in capsys.readouterr().out


def test_the_group_norms_cuts_can_be_tuned(monkeypatch):
    """Every one of them computes the same, under the name that the kernel asks for."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("neither a GPU nor Triton's interpreter")
    from tools.tuning import group_norm_silu as norms

    monkeypatch.setattr(norms, "BATCH", 1)
    monkeypatch.setattr(norms, "CALLS", (norms.Call(64, 8, 8, 2),))
    monkeypatch.setattr(norms, "DTYPES", (torch.float32,))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = list(norms.tunables(device))
    assert [t.kernel for t in found] == ["group_norm_silu.forward", "group_norm_silu.backward"]
    said, asked = [], []
    chosen = configs.chosen

    def spy(kernel, call, rule, device):
        asked.append((kernel, call))
        return chosen(kernel, call, rule, device)

    monkeypatch.setattr(configs, "chosen", spy)
    tune.tune(found, lambda run: 1.0, said.append)
    assert {(t.kernel, t.call) for t in found} == set(asked)
    assert all(len(t.others) >= 2 for t in found)
    assert not [line for line in said if "passed over" in line]
