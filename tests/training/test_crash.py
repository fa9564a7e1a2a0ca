"""What a run leaves behind when it is killed, interrupted or starved of disk, and what the same
command makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).with_name("crash.py")


@pytest.fixture
def folder(tmp_path):
    """In memory where possible: killing a process does not test the disk, and waiting for it
    takes minutes."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def scenario(folder):
    def play(name):
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", str(SCENARIOS), name, str(folder)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return play


@pytest.mark.parametrize("name", ["kills", "kills_of_a_duel", "kills_between_rounds"])
def test_killed_runs_end_with_the_same_weights_and_log(scenario, name):
    report = scenario(name)
    assert report["kills"] == (30 if name == "kills" else 10)
    assert report["equal"] == report["runs"]
    assert report["progress"] >= 0.8 * report["kills"]


def test_death_or_failure_at_any_disk_call_loses_nothing(scenario):
    report = scenario("fault_points")
    assert report["points"] > 60
    assert report["equal"] == report["verified"] == 2 * report["points"]
    assert report["leftovers"] == 0
    assert report["codes"].keys() <= {"-9", "0", "2", "4"}
    assert report["codes"]["-9"] == report["points"]


def test_signals_save_and_exit_and_the_same_command_resumes(scenario):
    report = scenario("signals")
    assert report["codes"] == [130, 143] * 12
    assert report["equal"] == report["saved"] == 24
    assert report["late"] == 0


def test_a_second_interrupt_exits_at_once_and_a_polling_caller_saves(scenario):
    report = scenario("second_interrupt")
    twice, polled = report["twice"], report["polled"]
    assert twice["code"] == 130
    assert twice["step"] == 4  # the last periodic one
    assert twice["seconds"] < 10
    assert polled["code"] == 143
    assert polled["step"] == 5
    assert "SIGTERM: saved step-000005" in polled["said"]
    assert "The same command resumes." in polled["said"]


def test_one_directory_has_one_owner(scenario):
    report = scenario("contention")
    assert report["one_owner"] == report["codes_right"] == 50
    assert "in use by pid" in report["said"]
    assert report["after_kill"] is True


def test_readers_need_no_lock(scenario):
    report = scenario("readers")
    assert report.get("error") is None
    assert report["loads"] >= 10
    assert report["steps"] >= 5


def test_a_full_disk_costs_no_checkpoint(scenario):
    report = scenario("disk_full")
    assert report["long"]["code"] == 4
    assert report["long"]["step"] == 8
    assert report["long"]["said"].count("could not save") == 3
    assert "File too large" in report["long"]["said"]
    assert "MB free" in report["long"]["said"]
    assert report["last"]["code"] == 4
    assert report["last"]["step"] == 8
    assert report["brief"]["code"] == 0
    assert report["equal"] == [True, True]


def test_a_directory_that_cannot_be_written_is_refused_before_training(scenario):
    for name, (code, said) in scenario("unwritable").items():
        assert code == 2, (name, said)
        assert "Permission denied; expected a directory that can be written" in said
