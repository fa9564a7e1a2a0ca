"""The compiled part: every instruction set, and saying no politely."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdgen.kernels import native

pytestmark = pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")
ISAS = native.module.supported_isas() if native.module else []


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_is_as_accurate_as_the_reference(isa):
    """The suite over all ops again, in a process where KDGEN_ISA forces the set."""
    if isa not in ISAS:
        pytest.skip(f"this processor runs {', '.join(ISAS)}")
    if isa == ISAS[0]:
        assert native.module.isa() == isa or "KDGEN_ISA" in os.environ
        return  # the suite itself has run it
    here = Path(__file__).parent
    files = [str(here / f"test_{n}.py") for n in ("every_op", "group_norm_silu", "philox")]
    chosen = "native and (accurate or many_shapes or two_ulp or bit_equal or offset)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files, "-k", chosen],
        env={**os.environ, "KDGEN_ISA": isa, "OMP_NUM_THREADS": "1"},
        cwd=here.parent.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_environment_forces_a_lower_instruction_set():
    code = "from kdgen.kernels import native; print(native.module.isa())"
    done = python(code, KDGEN_ISA="baseline")
    assert done.stdout.strip() == "baseline", done.stderr


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"KDGEN_ISA: .* 'sse9'; expected one of .*baseline"):
        native.module.select_isa("sse9")


def test_a_wrong_number_is_refused_by_the_binding():
    call = native.module.group_norm_silu_forward
    good = dict.fromkeys(("x", "weight", "bias", "y", "mean", "rstd"), torch.ones(4).data_ptr())
    rest = (0, 0, 0)

    def forward(groups=1, dtype=0, threads=1, x=good["x"], n=1, own=2, last=False):
        a = good
        call(x, a["weight"], a["bias"], *rest, 0, a["y"], a["mean"], a["rstd"],
             n, 2, own, 1, groups, 1e-6, True, last, False, dtype, threads)  # fmt: skip

    with pytest.raises(ValueError, match="groups is 3; expected groups to divide"):
        forward(groups=3)
    with pytest.raises(ValueError, match="dtype is 9; expected 0"):
        forward(dtype=9)
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        forward(threads=0)
    with pytest.raises(ValueError, match="an address is 0"):
        forward(x=0)
    with pytest.raises(ValueError, match="a size is negative"):
        forward(n=-1)
    for own in (0, 1, 3):
        with pytest.raises(ValueError, match=f"x has {own} of 2 channels; expected all"):
            forward(own=own)
    with pytest.raises(ValueError, match="an address is 0"):  # more's
        forward(own=1, last=True)


def test_one_openmp_runtime_is_loaded():
    """Two would fight over the cores; torch brings one, and ours must be that one."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or not native.module.openmp:
        pytest.skip("no /proc/self/maps, or built without OpenMP")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    assert len(loaded) == 1
