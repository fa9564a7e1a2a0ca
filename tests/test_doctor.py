from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdgen import build, kernels
from kdgen.diagnosis import findings, machine, shipped, software
from kdgen.diagnosis.choices import choices

ROOT = Path(__file__).parents[1]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "kdgen.doctor", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_its_last_line_says_ready_and_its_exit_code_agrees():
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("ready: torch ")
    for op in kernels.OPS:
        assert op.name in done.stdout


def test_programs_get_one_json_object():
    done = doctor("--json")
    found = json.loads(done.stdout)
    assert found["ready"] is True
    assert found["verdict"].startswith("ready: ")
    assert {f["topic"] for f in found["findings"]} >= {"python", "torch", "compiled", "digits"}
    assert found["kernels"].keys() == {op.name for op in kernels.OPS}


def test_a_missing_torch_is_named_with_exit_code_8(tmp_path):
    """An interpreter without site-packages: neither torch nor tyro is there."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-S", "-m", "kdgen.doctor"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 8, done.stderr
    assert last.startswith("not ready: torch: not installed; libraries: no numpy")


def test_an_instruction_set_that_does_not_exist_is_refused_in_words():
    if build.compiled().why:
        pytest.skip("needs the compiled part")
    done = doctor(KDGEN_ISA="mmx")
    assert done.returncode == 8
    assert "mmx" in done.stdout.splitlines()[-1]
    assert "Unset KDGEN_ISA" in done.stdout


def test_every_remedy_belongs_to_something_that_is_not_well():
    for finding in findings():
        assert (finding.state != "ok") or not finding.fix
        assert finding.text


def test_the_choices_are_those_that_calls_would_take():
    import torch

    told = choices()
    for op in kernels.OPS:
        args = op.examples(torch.float32, torch.device("cpu"))[0].args
        assert told[op.name]["cpu"]["backend"] == op.choose(*args).name
        assert told[op.name]["cuda"]["why"].startswith(f"{op.name} on cuda")


def test_a_choice_that_cannot_serve_is_told_as_refused(monkeypatch):
    monkeypatch.setenv("KDGEN_KERNELS", "to_uint8=native")
    told = choices()["to_uint8"]["cuda"]
    assert told["backend"] == "refused"
    assert "native" in told["why"]


def test_damaged_digits_are_found(tmp_path):
    original = shipped.ASSETS / "digits.npz"
    file = tmp_path / "digits.npz"
    (tmp_path / "digits.md").write_text(original.with_suffix(".md").read_text())
    with np.load(original) as arrays:
        images, labels = arrays["images"].copy(), arrays["labels"]
    np.savez_compressed(file, images=images, labels=labels)
    assert shipped.digits(file).state == "ok"
    images[0, 0, 0] ^= 1
    np.savez_compressed(file, images=images, labels=labels)
    assert shipped.digits(file).state == "missing"
    file.write_bytes(file.read_bytes()[:-100])
    assert shipped.digits(file).state == "missing"
    file.unlink()
    assert shipped.digits(file).state == "missing"


def test_a_damaged_student_is_found_and_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    finding = shipped.student(tmp_path)
    assert finding.state == "note"
    assert str(tmp_path) in finding.text


def test_a_compiled_part_of_another_version_is_not_trusted(monkeypatch):
    if build.compiled().why:
        pytest.skip("needs the compiled part")
    monkeypatch.setattr("kdgen.__version__", "9.9.9")
    assert "9.9.9" in build.compiled().why


def test_why_the_compiled_part_is_absent_is_told_in_order(monkeypatch, tmp_path):
    """Here without one: asked for, no compiler, another Python's file."""
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    monkeypatch.setattr(build, "_installed_elsewhere", lambda suffix: None)
    monkeypatch.delenv("KDGEN_PURE", raising=False)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    why, fix = build._absent()
    assert why == f"no C++ compiler ({tmp_path / 'c++'})"
    assert "apt install g++" in fix
    monkeypatch.setenv("CXX", sys.executable)  # a program, at least
    assert "the build failed or was skipped" in build._absent()[0]
    monkeypatch.setenv("KDGEN_PURE", "1")
    assert "KDGEN_PURE" in build._absent()[0]
    (tmp_path / "_native.cpython-39-x86_64-linux-gnu.so").touch()
    assert "another Python" in build._absent()[0]


def test_why_there_are_no_cuda_kernels_is_told_with_a_remedy_where_there_is_a_gpu(monkeypatch):
    compiled = build.Compiled(isa="avx2")
    monkeypatch.setattr(build, "compiled", lambda: compiled)
    monkeypatch.setenv("KDGEN_CUDA", "OFF")
    assert "KDGEN_CUDA=OFF" in build._absent_cuda()[0]
    monkeypatch.delenv("KDGEN_CUDA")
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    why, fix = build._absent_cuda()
    assert why == "no CUDA compiler (nvcc)"
    assert "CUDA toolkit" in fix
    monkeypatch.setattr(build, "cuda", lambda: build.Cuda(why=why, fix=fix))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (software.cuda().state, software.cuda().fix) == ("note", "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert software.cuda().fix == fix


def test_the_architectures_of_the_cuda_kernels_are_told_in_words(monkeypatch):
    monkeypatch.setattr(build, "cuda", lambda: build.Cuda(("80-real", "90-real", "90-virtual")))
    assert software.cuda().text == "kernels for sm_80, sm_90, newer GPUs than sm_90"


def test_a_gpu_that_torch_cannot_use_comes_with_a_remedy(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    finding = machine._driver("580.0", 1)
    assert finding.state == "note"
    assert "torch for CUDA" in finding.fix


def test_an_old_torch_will_not_do(monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.9.1")
    assert software.torch().state == "missing"


def test_the_engine_of_cpus_is_described(monkeypatch):
    from kdgen.kernels import native

    if native.module is None:
        pytest.skip("needs the compiled part")
    found = software.engine()
    assert (found.topic, found.state) == ("engine", "ok")
    assert found.text.startswith(native.module.isa())
    program = native.module.Program()
    assert ("so bf16 runs in float32" in found.text) != program.fast_bf16
    assert ("so none is used" in found.text) != program.fast_int8
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")
    found = software.engine()
    assert found.state == "note"
    assert "did not load (no such file); torch runs networks" in found.text


@pytest.mark.gpu
def test_the_gpu_is_described():
    assert "sm_" in machine.gpu().text


def test_kernels_that_cannot_run_are_told_with_what_takes_over(monkeypatch):
    from kdgen.kernels import native

    kernels.retry()
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")
    finding = software.backends()
    assert finding.state == "note"
    assert "native: the compiled part did not load" in finding.text
    assert "plain torch runs group_norm_silu, bias_residual" in finding.text
    monkeypatch.setenv("KDGEN_REQUIRE", "1")
    assert software.backends().state == "missing"
    monkeypatch.undo()
    kernels.retry()
    if not native.why:
        assert software.backends().state == "ok"
