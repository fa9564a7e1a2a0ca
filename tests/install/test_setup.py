"""`tools/setup`: what `make` runs first."""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from pathlib import Path

import pytest


def setup(run, sources: Path, venv: Path, *extras: str, **environment: str):
    chosen = {"VENV": str(venv), "PYTHON": "", "KDGEN_PURE": "1"} | environment
    return run("bash", sources / "tools" / "setup", *extras, **chosen)


def interpreter(folder: Path, version: str) -> Path:
    """Something that says it is Python `version`, and is too old."""
    path = folder / f"python-{version}"
    path.write_text(
        f'#!/bin/sh\ncase "$2" in *sys.exit*) exit 1;; *print*) echo {version};; esac\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def silence():
    """An index of packages that lets pip in and never answers, as a variable for `run`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        yield {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": address, "PIP_CONFIG_FILE": os.devnull}


def test_an_old_python_is_refused_in_one_line(run, sources, tmp_path):
    old = interpreter(tmp_path, "3.8.2")
    done = setup(run, sources, tmp_path / "v", PYTHON=str(old))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"setup: error: {old} is 3.8.2; expected Python 3.11 or newer.")


def test_no_python_is_refused_in_one_line(run, sources, tmp_path):
    done = setup(run, sources, tmp_path / "v", PYTHON="no-such-python")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "no no-such-python here; expected Python 3.11" in line


def test_a_folder_that_is_no_environment_is_left_alone(run, sources, tmp_path):
    kept = tmp_path / "v" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("x")
    done = setup(run, sources, kept.parent, PYTHON=sys.executable)
    assert done.returncode == 1
    assert "no virtual environment" in done.stderr
    assert kept.exists()


def test_another_python_than_the_environments_is_refused(run, sources, environment, tmp_path):
    other = interpreter(tmp_path, "3.99.0")
    done = setup(run, sources, environment.parents[1], PYTHON=str(other))
    assert done.returncode == 1
    assert "3.99.0" in done.stderr


def test_without_a_network_what_is_missing_is_named_with_the_log(run, sources, environment):
    project = sources / "pyproject.toml"
    project.write_text(project.read_text().replace('"tyro>=1.0"', '"tyro>=1.0", "kdgen-nowhere"'))
    done = setup(run, sources, environment.parents[1])
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert line.startswith("setup: error: could not install kdgen-nowhere: ")
    assert line.endswith("Log: build/setup.log")
    assert "kdgen-nowhere" in (sources / "build" / "setup.log").read_text()


def test_what_can_be_done_without_is_done_without(run, sources, environment):
    project = sources / "pyproject.toml"
    project.write_text(project.read_text().replace('"triton>=3.6"', '"kdgen-nowhere"'))
    done = setup(run, sources, environment.parents[1], "triton")
    assert done.returncode == 0, done.stderr
    assert "going on: could not install kdgen-nowhere" in done.stderr
    assert setup(run, sources, environment.parents[1], "triton", KDGEN_STRICT="1").returncode == 1


def test_a_gpu_machine_without_a_network_soon_goes_on_without_the_command_line(
    run, sources, environment, silence
):
    project = sources / "pyproject.toml"
    project.write_text(project.read_text().replace('"tyro>=1.0"', '"tyro>=1.0", "kdgen-nowhere"'))
    begun = time.monotonic()
    done = setup(run, sources, environment.parents[1], "test", "--spare", **silence)
    assert done.returncode == 0, done.stderr
    assert "going on: could not install kdgen-nowhere: there is no network" in done.stderr
    assert "--retries 1 --timeout 3" in (sources / "build" / "setup.log").read_text()
    assert time.monotonic() - begun < 60


def test_it_keeps_the_torch_it_finds_and_the_second_call_is_silent(run, sources, tmp_path):
    """The whole of it, from an interpreter that lives in an environment and has torch."""
    venv = tmp_path / "v"
    first = setup(run, sources, venv, PYTHON=sys.executable)
    assert first.returncode == 0, first.stderr
    assert "keeping its torch" in first.stderr
    assert "installing torch" not in first.stderr
    assert first.stderr.splitlines()[-1].startswith("setup: ready in ")
    second = setup(run, sources, venv)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    os.utime(sources / "csrc" / "to_uint8.cpp")
    assert "building" in setup(run, sources, venv).stderr
    assert setup(run, sources, venv).stderr == ""


FAKE_VENV = """
import sys
if "--without-pip" not in sys.argv:
    sys.exit("The virtual environment was not created: ensurepip is not available.")
sys.path = [p for p in sys.path if p != {folder!r}]
import venv
venv.main(sys.argv[1:])
"""


def test_without_ensurepip_the_pip_of_the_python_that_has_torch_serves(run, sources, tmp_path):
    """As Debian's Python is without python3-venv."""
    fake, venv = tmp_path / "fake", tmp_path / "v"
    fake.mkdir()
    (fake / "venv.py").write_text(FAKE_VENV.format(folder=str(fake)))
    done = setup(run, sources, venv, PYTHON=sys.executable, PYTHONPATH=str(fake))
    assert done.returncode == 0, done.stderr
    assert "it cannot put pip into the environment" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("setup: ready in ")
    assert not list(venv.glob("lib/*/site-packages/pip"))


def unoptimised(sources: Path) -> None:
    """Compile them quickly: nobody measures how fast the result is."""
    recipe = sources / "CMakeLists.txt"
    before = recipe.read_text()
    assert "set(optimisation -O3)" in before
    recipe.write_text(before.replace("set(optimisation -O3)", "set(optimisation -O0)"))


@pytest.mark.slow
def test_the_compiled_part_arrives_and_when_its_source_breaks_nobody_can_miss_it(
    run, sources, environment
):
    """A plain installation first, with no CUDA toolkit; then `tools/setup` in the same place."""
    unoptimised(sources)
    pip = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", sources)
    assert run(environment, *pip, CUDACXX="false", KDGEN_CUDA="AUTO").returncode == 0
    done = run(environment, "-c", "from kdgen import build; print(build.line())")
    assert "compiled part using" in done.stdout, done.stderr
    assert "CUDA kernels" not in done.stdout

    venv = environment.parents[1]
    good = setup(run, sources, venv, KDGEN_PURE="")
    assert good.returncode == 0, good.stderr
    assert "compiled part using" in good.stderr

    source = sources / "csrc" / "to_uint8.cpp"
    source.write_text(source.read_text() + "\nint x = ;\n")
    for _ in range(2):
        bad = setup(run, sources, venv, KDGEN_PURE="")
        assert bad.returncode == 1
        assert "to_uint8.cpp" in bad.stderr.splitlines()[-1]
        assert "error:" in bad.stderr.splitlines()[-1]
