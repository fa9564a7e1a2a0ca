"""The gate that reads compiled CUDA kernels: what it must see, and what it must not let through."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="its wheel brings the disassembler")

from kdgen import build
from tools import cuda_check

HALF = "_ZN5kdgen4cuda54_GLOBAL__N__28d17c2724attention_forward_kernelINS_4HalfELi64EEEvNS0_1AE"
NORM = "_ZN5kdgen4cuda59_GLOBAL__N__db0b49b130group_norm_silu_forward_kernelIfEEvNS0_1AENS_5SlabsE"
STEP = "_ZN5kdgen4cuda39_GLOBAL__N__32d4b8ed11step_kernelENS0_4StepENS0_6AnswerE"
# The digest of a path that ends in 34, as if a name of 34 letters began there.
UNLUCKY = "_ZN5kdgen4cuda40_GLOBAL__N__0986434e_8_steps_cu_32d4b8ed11step_kernelENS0_4StepE"
HEAD = "Fatbin elf code:\n================\narch = sm_90\n"
LINE = "        /*{:04x}*/                   {} R1, R2 ;                /* 0x0 */\n"


def usage(mangled, registers, stack=0):
    return f" Function {mangled}:\n  REG:{registers} STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:1\n"


def program(mangled, *instructions):
    body = "".join(LINE.format(16 * n, i) for n, i in enumerate(instructions))
    return f"\t\tFunction : {mangled}\n{body}"


@pytest.fixture
def judged(monkeypatch):
    """The verdicts over a made-up module, by kernel."""

    def run(resources, listing):
        texts = {"--dump-resource-usage": HEAD + resources, "--dump-sass": HEAD + listing}
        monkeypatch.setattr(cuda_check, "dumped", lambda module, what: texts[what])
        return {k.name: k.broken for k in cuda_check.kernels(Path("module.so"))}

    return run


def test_names_are_those_that_people_use():
    assert cuda_check.short(HALF) == "attention_forward fp16 64"
    assert cuda_check.short(NORM) == "group_norm_silu_forward fp32"
    assert cuda_check.short(STEP) == "step"


def test_a_digest_is_not_taken_for_a_length():
    assert cuda_check.short(UNLUCKY) == "step"


def test_a_good_kernel_passes(judged):
    good = ("LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "HMMA.16816.F32", "@!P0 STG.E.128")
    assert judged(usage(HALF, 128), program(HALF, *good)) == {"attention_forward fp16 64": []}


def test_what_is_missing_or_too_much_is_named(judged):
    broken = judged(usage(NORM, 81, 16), program(NORM, "LDG.E", "STG.E"))
    assert broken["group_norm_silu_forward fp32"] == [
        "81 registers, at most 80",
        "a stack of 16 bytes, 0 local",
        "no LDGSTS.E.BYPASS.128",
        "no STG.E.128",
    ]


def test_narrow_copies_are_not_taken_for_wide_ones(judged):
    broken = judged(usage(STEP, 40), program(STEP, "LDG.E.64", "STG.E.128.STRONG"))
    assert broken["step"] == ["no LDG.E.128"]


def test_without_cuda_kernels_the_gate_says_so_and_passes(monkeypatch, capsys):
    monkeypatch.setattr(cuda_check, "absent", lambda: "no CUDA compiler (nvcc)")
    monkeypatch.setattr(build, "nvcc", lambda: "")
    monkeypatch.setattr("sys.argv", ["cuda_check"])
    assert cuda_check.main() == 0
    assert "nothing to check, no CUDA compiler" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("strict", "nvcc", "asked", "code"),
    [
        (True, "/opt/cuda/bin/nvcc", "", 1),
        (True, "/opt/cuda/bin/nvcc", "OFF", 0),
        (True, "", "", 0),
        (False, "/opt/cuda/bin/nvcc", "", 0),
    ],
)
def test_strictly_a_compiler_without_its_kernels_fails(
    strict, nvcc, asked, code, monkeypatch, capsys
):
    monkeypatch.setattr(cuda_check, "absent", lambda: "they were not built")
    monkeypatch.setattr(cuda_check, "STRICT", strict)
    monkeypatch.setattr(build, "nvcc", lambda: nvcc)
    monkeypatch.setenv("KDGEN_CUDA", asked)
    monkeypatch.delenv("KDGEN_PURE", raising=False)
    monkeypatch.setattr("sys.argv", ["cuda_check"])
    assert cuda_check.main() == code
    assert capsys.readouterr().out == "CUDA kernels: nothing to check, they were not built\n"
