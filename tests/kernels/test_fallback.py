"""A kernel that cannot be compiled: told once, counted, replaced, and an error where it must be;
a kernel that fails is never hidden."""

from __future__ import annotations

import subprocess
import warnings
from types import FunctionType

import pytest
import torch

from kdgen import kernels
from kdgen.kernels import Backend, Op, _triton, dispatch, fallback, native, to_uint8

X = torch.zeros(1, 3, 2, 2)
triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv(fallback.VARIABLE, raising=False)
    kernels.retry()
    yield
    monkeypatch.undo()
    kernels.retry()


class Failing:
    """Raises what it is given, and counts how often it is asked."""

    def __init__(self, error):
        self.error, self.asked = error, 0

    def __call__(self, *_):
        self.asked += 1
        raise self.error


@pytest.fixture
def make():
    """An op whose first choice is a Triton kernel that fails."""

    def op(error, *between):
        fails = Failing(error)
        first = Backend("triton", fails, lambda x: "", backward=fails)
        last = Backend("reference", lambda x: x + 1, lambda x: "", backward=lambda dy: dy)
        made = Op("stub", lambda x: made.pick((x,)).run(x), lambda x: x + 1,
                  (first, *between, last), lambda *_: [])  # fmt: skip
        return made, fails

    yield op
    dispatch._known.pop("stub", None)


def compile_error():
    return triton.runtime.errors.PTXASError("no such register")


def test_a_kernel_that_cannot_be_compiled_is_told_once_counted_and_not_tried_again(make):
    op, fails = make(compile_error())
    message = r"^stub: the triton kernel cannot run here: PTXASError: .*no such register.*reference"
    with pytest.warns(RuntimeWarning, match=message):
        assert torch.equal(op(X), X + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert torch.equal(op(X), X + 1)
    assert fails.asked == 1
    found = kernels.fallbacks()["stub", "triton"]
    assert (found.instead, found.calls) == ("reference", 4)
    assert "no such register" in found.why


def test_explain_tells_of_it_and_does_not_count(make):
    op, _ = make(compile_error())
    with pytest.warns(RuntimeWarning):
        op(X)
    text = kernels.explain(op, X)
    assert "runs reference (instead of triton: PTXASError: PTXAS error: no such register)" in text
    assert "triton     cannot: PTXASError" in text
    assert op.choose(X).name == "reference"
    assert kernels.fallbacks()["stub", "triton"].calls == 1


def test_the_next_fast_backend_goes_before_the_definition(make):
    """Also where fast kernels are required: one of them runs."""
    between = Backend("native", lambda x: x + 2, lambda x: "")
    op, _ = make(compile_error(), between)
    with kernels.require(), pytest.warns(RuntimeWarning, match=r"native runs instead"):
        assert torch.equal(op(X), X + 2)
    assert kernels.fallbacks()["stub", "triton"].instead == "native"


def test_a_gradient_that_cannot_be_compiled_comes_from_the_definition(make):
    op, _ = make(compile_error())
    with pytest.warns(RuntimeWarning, match="^stub"):
        assert torch.equal(op.pick((X,)).backward(X), X)
    assert op.choose(X).name == "reference"  # the way there follows


def test_required_kernels_must_run(make, monkeypatch):
    op, _ = make(compile_error())
    message = r"^stub: triton kernels are required .*no such register; expected them to\. Install"
    with kernels.require(), pytest.raises(kernels.Unavailable, match=message):
        op(X)
    with kernels.require(), pytest.raises(kernels.Unavailable):
        op(X)  # the second time without trying
    with pytest.warns(RuntimeWarning):
        op(X)
    monkeypatch.setenv(fallback.VARIABLE, "1")
    with pytest.raises(kernels.Unavailable):
        op(X)
    with pytest.raises(kernels.Unavailable):
        op.pick((X,))
    monkeypatch.setenv(fallback.VARIABLE, "off")
    assert torch.equal(op(X), X + 1)


def test_an_order_is_not_replaced(make):
    op, fails = make(compile_error())
    with pytest.raises(triton.runtime.errors.PTXASError):
        op.pick((X,), "triton").run(X)
    assert op.by_name["triton"].run is fails


REAL = [
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)"),
    TypeError("missing a required argument"),
    FileNotFoundError("ours"),
    AssertionError("ours"),
]


@pytest.mark.parametrize("error", REAL, ids=lambda e: str(e)[:20])
def test_a_real_error_is_never_hidden(make, error):
    op, _ = make(error)
    with pytest.raises(type(error)) as caught:
        op(X)
    assert caught.value is error
    assert not kernels.fallbacks()
    assert op.choose(X).name == "triton"


def from_triton(error):
    """As if it were raised inside triton: a frame of a module of that name."""

    def fail(what):
        raise what

    try:
        FunctionType(fail.__code__, {"__name__": "triton.runtime.build"})(error)
    except Exception as raised:
        return raised


UNUSABLE = [
    triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory"),
    triton.compiler.errors.CompilationError("x", None, "no"),
    RuntimeError("PassManager::run failed"),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    RuntimeError("Cannot find ptxas"),
    RuntimeError("0 active drivers ([]). There should only be one."),
    RuntimeError("Triton Error [CUDA]: no kernel image is available for execution on the device"),
    from_triton(subprocess.CalledProcessError(1, ["gcc"])),
    from_triton(FileNotFoundError(2, "No such file or directory", "gcc")),
    from_triton(AssertionError("libcuda.so cannot found!")),
    from_triton(ImportError("libtriton.so: undefined symbol")),
]


@pytest.mark.parametrize("error", UNUSABLE, ids=lambda e: type(e).__name__)
def test_what_cannot_be_compiled_loaded_or_fitted_is_known(error):
    assert _triton.unusable(error).startswith(type(error).__name__)


def test_a_kernel_that_does_not_compile_is_recognised_for_real(monkeypatch):
    """Triton's own words on a machine without a driver."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError) as caught:
        triton.runtime.driver.active.get_current_device()
    assert "active drivers" in _triton.unusable(caught.value)


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")


def test_the_compiled_part_may_be_left_out_without_a_word(without_native):
    """A pure Python installation is one of those that are meant; it is counted all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_uint8(X)
    found = kernels.fallbacks()["to_uint8", "native"]
    assert (found.instead, found.calls) == ("reference", 1)


def test_the_compiled_part_may_be_required(without_native):
    message = r"^to_uint8: native kernels are required .*no such file\).*C\+\+ compiler"
    with kernels.require(), pytest.raises(kernels.Unavailable, match=message):
        to_uint8(X)
    with kernels.require(False):
        to_uint8(X)


def test_what_no_fast_kernel_takes_is_no_fallback():
    """float64 is for tests: a wish for speed has nothing to say about it."""
    with kernels.require():
        assert to_uint8(X.double()).dtype == torch.uint8
    assert not kernels.fallbacks()
