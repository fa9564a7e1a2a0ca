"""Who runs, who says so, and what happens when an order cannot be carried out."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import Backend, Op, dispatch, native, to_uint8

X = torch.zeros(1, 3, 2, 2)
needs_native = pytest.mark.skipif(bool(native.why), reason=native.why or "loaded")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


@needs_native
def test_the_compiled_kernels_are_the_automatic_choice_on_a_cpu():
    compiled = [op for op in kernels.OPS if "native" in op.by_name]
    assert all(op.choose(*cpu(op)).name == "native" for op in compiled)


def test_attention_is_torchs_until_something_is_measured_faster():
    assert kernels.attention.choose(*cpu(kernels.attention)).name == "sdpa"


def test_a_backend_named_for_all_is_one_for_the_ops_that_have_it():
    with kernels.use("native"):
        assert kernels.attention.choose(*cpu(kernels.attention)).name == "sdpa"
    with kernels.use("sdpa"):
        assert kernels.attention.choose(*cpu(kernels.attention)).name == "sdpa"
        assert dispatch.requested("to_uint8") == ""
    with kernels.use("attention=native"), pytest.raises(ValueError, match="expected one of sdpa"):
        kernels.attention.choose(*cpu(kernels.attention))


def cpu(op):
    return op.examples(torch.float32, torch.device("cpu"))[0].args


def test_float64_falls_back_to_the_reference_without_a_word():
    assert to_uint8.choose(X.double()).name == "reference"


def test_triton_never_volunteers_on_a_cpu():
    assert all(op.choose(*cpu(op)).name != "triton" for op in kernels.OPS)


def test_use_insists_and_ends_with_its_block():
    with kernels.use("reference"):
        assert to_uint8.choose(X).name == "reference"
        with kernels.use("to_uint8=triton"):
            assert to_uint8.choose(X).name == "triton"
            assert kernels.group_norm_silu.choose(*cpu(kernels.group_norm_silu)).name != "triton"
        assert to_uint8.choose(X).name == "reference"
    assert dispatch.requested("to_uint8") == ""


def test_use_ends_with_its_block_on_an_error_too():
    with pytest.raises(KeyError), kernels.use("reference"):
        raise KeyError
    assert dispatch.requested("to_uint8") == ""


def test_use_stays_in_its_thread():
    seen = []
    with kernels.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.requested("to_uint8")))
        thread.start()
        thread.join()
    assert seen == [""]


@needs_native
@pytest.mark.parametrize("wanted", ["native", "triton"])
def test_a_gradient_runs_on_the_backend_of_its_forward(wanted):
    """Also when the choice has ended by then: autograd has threads of its own."""
    op, ran = kernels.group_norm_silu, []
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    with kernels.use(wanted):
        y = op(x, torch.ones(4), torch.ones(4), 2)
    spied = y.grad_fn.backend
    y.grad_fn.backend = replace(spied, backward=lambda *a: ran.append(wanted) or spied.backward(*a))
    assert spied.backward is op.by_name[wanted].backward
    with kernels.use("reference"):
        y.sum().backward()
    assert ran == [wanted]


def test_the_environment_chooses_for_all_or_for_some(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert all(op.choose(*cpu(op)).name == "reference" for op in kernels.OPS)
    monkeypatch.setenv(dispatch.VARIABLE, "to_uint8=reference, ddim_update=triton")
    assert dispatch.requested("to_uint8") == "reference"
    assert dispatch.requested("ddim_update") == "triton"
    assert dispatch.requested("philox_normal") == ""


def test_use_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with kernels.use("to_uint8=reference"):
        assert dispatch.requested("to_uint8") == "reference"
        assert dispatch.requested("ddim_update") == "triton"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("natve", "backend is 'natve'; expected one of native, sdpa, triton, cuda, reference"),
        ("to_unit8=native", "op is 'to_unit8'; expected one of attention, .*to_uint8"),
        ("to_uint8=", "backend is ''; expected one of"),
    ],
)
def test_unknown_names_list_the_known_ones(choice, message, monkeypatch):
    with pytest.raises(ValueError, match="kernels.use: " + message), kernels.use(choice):
        pass
    monkeypatch.setenv(dispatch.VARIABLE, choice)
    with pytest.raises(ValueError, match="KDGEN_KERNELS: " + message):
        to_uint8(X)


@needs_native
def test_an_order_that_cannot_be_carried_out_says_why():
    with kernels.use("native"), pytest.raises(ValueError, match=r"native.*x is float64; expected"):
        to_uint8(X.double())
    with kernels.use("triton"), pytest.raises(ValueError, match=r"triton.*x is float64; expected"):
        to_uint8(X.double())


def test_an_order_without_the_interpreter_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with kernels.use("triton"), pytest.raises(ValueError, match="is on cpu; expected cuda"):
        to_uint8(X)


def test_a_module_that_did_not_load_is_passed_over_and_named(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")
    assert all(op.choose(*cpu(op)).name in ("sdpa", "reference") for op in kernels.OPS)
    assert "did not load (no such file)" in kernels.explain(to_uint8, X)
    with kernels.use("native"), pytest.raises(ValueError, match="no such file"):
        to_uint8(X)


@needs_native
def test_explain_tells_who_runs_and_what_the_others_say():
    text = kernels.explain(to_uint8, X)
    assert text.splitlines()[0] == (
        "to_uint8 on cpu float32 (1, 3, 2, 2): runs native (first in order of preference that can)"
    )
    rows = {line.split()[0]: line.split(None, 1)[1] for line in text.splitlines()[1:]}
    assert rows.pop("cuda")  # depends on what was built
    assert rows == {
        "native": "runs",
        "triton": "only when asked for: not automatic on cpu",
        "reference": "could serve",
    }


@needs_native
def test_explain_tells_of_a_choice_and_of_one_that_fails():
    with kernels.use("native"):
        assert "runs native (asked for)" in kernels.explain(to_uint8, X)
        text = kernels.explain(to_uint8, X.double())
    assert "refuses: to_uint8: backend native was asked for but cannot serve" in text
    assert "native     cannot: x is float64" in text


def test_explain_takes_keywords_and_shows_strides():
    x = X.contiguous(memory_format=torch.channels_last)
    assert "strides (12, 1, 6, 3)" in kernels.explain(to_uint8, x=x)


def test_an_op_nobody_serves_shows_all_reasons():
    """Taken out of the table again: ops are known by name to `use`."""
    never = Backend("native", lambda x: x, lambda _: "too late")
    op = Op("nothing", lambda x: x, lambda x: x, (never,), lambda *_: [])
    try:
        with pytest.raises(ValueError, match=r"nothing: no backend serves(.|\n)*cannot: too late"):
            op.choose(X)
    finally:
        del dispatch._known["nothing"]


def test_choosing_reads_no_value():
    """Meta tensors have none."""
    assert to_uint8.choose(X.to("meta")).name == "reference"


def test_names_are_unique_and_every_op_has_a_kernel_beside_its_reference():
    assert len({op.name for op in kernels.OPS}) == len(kernels.OPS)
    for op in kernels.OPS:
        assert {"triton", "reference"} < set(op.by_name) <= set(dispatch.BACKENDS)
