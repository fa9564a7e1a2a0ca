"""The gates read what compilers write; what they cannot read would pass them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.append(str(Path(__file__).parents[2]))  # the tools are not installed

from tools.aot import assembly
from tools.aot.case import Case


@pytest.mark.parametrize(
    ("line", "way", "bits"),
    [
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", "ld", 128),
        ("ld.global.L1::evict_last.L2::cache_hint.v2.b64 { %rd2, %rd3 }, [ %rd1 ];", "ld", 128),
        ("ld.global.nc.b16 { %rs1 }, [ %rd1 + 0 ];", "ld", 16),
        ("@%p2 st.global.v2.f32 [ %rd1 + 0 ], { %f1, %f2 };", "st", 64),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", "ld", 128),
        ("cp.async.ca.shared.global.L2::128B [ %r1 ], [ %rd1 ], 4, 4;", "ld", 32),
    ],
)  # fmt: skip
def test_an_access_to_global_memory_is_read_with_its_width(line, way, bits):
    found = assembly.accesses(line)
    assert found[way] == {bits: 1}
    assert sum(map(len, found.values())) == 1


def test_shared_memory_and_parameters_are_not_counted():
    ptx = "ld.shared.v4.b32 {%r1}, [%r2];\nld.param.u64 %rd1, [k_param_0];\nst.shared.b16 [%r1];"
    assert assembly.accesses(ptx) == {"ld": {}, "st": {}}


def test_the_wide_share_is_one_of_bits_not_of_instructions():
    assert assembly.wide_share(assembly.Counter({128: 1, 32: 4})) == 0.5
    assert assembly.wide_share(assembly.Counter()) == 1.0


def test_types_of_a_case_follow_from_names_unless_they_are_given():
    class Kernel:
        arg_names = ("x_ptr", "y_ptr", "S", "n", "eps", "BLOCK")

    case = Case("k", Kernel, {"x_ptr": "*bf16", "eps": "fp32"}, {"BLOCK": 64})
    assert list(case.kinds().values()) == ["*bf16", "*fp32", "i32", "i32", "fp32", "constexpr"]
    assert case.aligned() == ["x_ptr", "y_ptr", "S"]
