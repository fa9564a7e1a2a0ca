"""`pip install` with and without a compiler."""

from __future__ import annotations

import json

import pytest

NO_COMPILER = {"CXX": "false", "CC": "false"}
INSTALL = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--force-reinstall")


def diagnosis(run, python, **environment):
    """What the doctor finds there, by topic."""
    done = run(python, "-m", "kdgen.doctor", "--json", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {f["topic"]: f for f in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize("editable", [(), ("-e",)], ids=["plain", "editable"])
def test_without_a_compiler_kdgen_runs_on_torch_alone_and_says_so(
    run, sources, environment, editable
):
    done = run(environment, *INSTALL, *editable, sources, **NO_COMPILER)
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = diagnosis(run, environment, CXX="no-such-compiler")["compiled"]
    assert compiled["state"] == "note"
    assert "no C++ compiler (no-such-compiler)" in compiled["text"]
    assert "g++" in compiled["fix"]
    code = (
        "from kdgen import kernels; import torch; print(kernels.to_uint8(torch.zeros(1, 1, 1, 1)))"
    )
    assert "128" in run(environment, "-c", code).stdout


def test_strict_refuses_to_do_without_the_compiled_part(run, sources, environment):
    done = run(environment, *INSTALL, sources, KDGEN_STRICT="1", **NO_COMPILER)
    assert done.returncode != 0


def test_cuda_kernels_that_are_demanded_are_not_left_out(run, sources, environment):
    asked = {"KDGEN_CUDA": "ON", "KDGEN_STRICT": "1"}
    done = run(environment, *INSTALL, sources, CUDACXX="false", **asked)
    assert done.returncode != 0
    assert "KDGEN_CUDA=ON, but nvcc is here" in done.stdout + done.stderr


def test_pure_python_can_be_asked_for(run, sources, environment):
    done = run(environment, *INSTALL, sources, KDGEN_PURE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (sources / "build").exists()
    found = diagnosis(run, environment, KDGEN_PURE="1")
    assert "KDGEN_PURE" in found["compiled"]["text"]
    assert found["digits"]["state"] == "ok"
