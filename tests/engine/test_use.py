"""The engine behind the fast generator and `kdgen.accelerate`: asked for, left out, insisted on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdgen
from kdgen import engine, kernels, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.engine import Network, Wish, building
from kdgen.errors import MemoryLimitError, MissingError
from kdgen.fast import FastGenerator, Generator, generator
from kdgen.fold import times
from kdgen.kernels import native
from kdgen.schedules import Cosine

CONFIG = nets.UNetConfig(8, channels=3, width=16, mult=(1, 2), blocks=1, attention=(4,), classes=4)
HOWS = [
    Sampling("ddim", 1, clip=1.0),
    Sampling("ddim", 3, clip=1.0, guidance=2.0),
    Sampling("ancestral", 3, clip=1.0),
    Sampling("heun", 3),
    Sampling("few_step", times=(1.0, 0.4)),
    Sampling("dpm", 3),
]

PAGE = (Path(__file__).parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")

with_engine = pytest.mark.usefixtures("compiled")


@pytest.fixture
def student(lively: Callable[..., nn.Module]) -> Denoiser:
    net = lively(nets.UNet(CONFIG))
    return Denoiser(net, Cosine(), "v", sampling=HOWS[0])


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")


def native_net(make: FastGenerator) -> bool:
    return isinstance(make.denoiser.net, Network)


@with_engine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_torchs_default_dtype_and_device_mean_nothing_to_it(
    student: Denoiser, dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
):
    """Memory for an answer must not be half as large as what is written there."""
    expected = FastGenerator(student, engine="native")
    default_dtype(dtype)
    found = FastGenerator(student, engine="native")
    assert torch.equal(found(12), expected(12))
    default_dtype(torch.float32)
    x, time = torch.ones(2, *student.shape), torch.ones(2)
    with torch.device("meta"):
        made = building.taken(student, (1.0,), Wish("native"), torch.float32, torch.device("cpu"))
        said = made.denoiser.net(x, time)  # type: ignore[union-attr]
    assert torch.equal(said, expected.denoiser.net(x, time))


@with_engine
def test_autocast_around_its_making_means_nothing_to_it(student: Denoiser):
    expected = FastGenerator(student, engine="native")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = FastGenerator(student, engine="native")
    assert found.explain() == expected.explain()
    assert torch.equal(found(12), expected(12))


@with_engine
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.sampler}-{how.guidance:g}")
def test_images_are_torchs_within_one_grey_level(student: Denoiser, how: Sampling):
    model = student.copy(sampling=how)
    ours, theirs = (FastGenerator(model, seed=5, engine=e) for e in ("native", "torch"))
    assert native_net(ours)
    assert not native_net(theirs)
    found, expected = ours(12).int(), theirs(12).int()
    assert (found - expected).abs().max() <= 1
    assert found.float().std() > 20


@with_engine
@pytest.mark.parametrize("how", HOWS, ids=lambda how: f"{how.sampler}-{how.guidance:g}")
def test_images_do_not_depend_on_the_batch_and_none_is_made_in_vain(
    student: Denoiser, how: Sampling, monkeypatch: pytest.MonkeyPatch
):
    counts: list[int] = []
    honest = Network.forward

    def counted(self: Network, x: Tensor, *args: Any) -> Tensor:
        counts.append(len(x))
        return honest(self, x, *args)

    make = FastGenerator(student.copy(sampling=how), seed=3, batch=64, engine="native")
    whole = make(11)
    monkeypatch.setattr(Network, "forward", counted)
    for make.batch in (1, 2, 3, 7, 8):
        assert torch.equal(make(11), whole), make.batch
    most = 2 if how.guidance != 1.0 else 1
    assert min(counts) == most
    assert max(counts) == 8 * most
    assert torch.equal(make(2, first=9), whole[9:])


@with_engine
@pytest.mark.parametrize(
    ("dtype", "accuracy", "named"),
    [
        (torch.float32, None, "fp32"),
        (torch.bfloat16, None, "bf16"),
        (torch.bfloat16, "exact", "exact"),
        (torch.float32, "fastest", "fastest"),
    ],
    ids=str,
)
def test_the_class_is_the_dtypes_unless_it_is_said(
    student: Denoiser, dtype: torch.dtype, accuracy: str | None, named: str
):
    make = FastGenerator(student, dtype=dtype, accuracy=accuracy)
    net = make.denoiser.net
    assert isinstance(net, Network)
    assert net.report.accuracy == named
    assert make(2).shape == (2, 8, 8, 3)


@with_engine
def test_labels_reach_the_network(student: Denoiser):
    make = FastGenerator(student, seed=1, engine="native")
    drawn = make.labels(6)
    assert torch.equal(make(6), make(6, label=drawn))
    assert not torch.equal(make(6, label=0), make(6, label=1))


@with_engine
def test_the_model_given_is_left_alone(student: Denoiser):
    before = {n: p.clone() for n, p in student.state_dict().items()}
    FastGenerator(student.train(), engine="native")(2)
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    assert all(torch.equal(p, before[n]) for n, p in student.state_dict().items())


@with_engine
def test_memory_that_runs_out_in_the_engine_halves_the_batch(
    student: Denoiser, monkeypatch: pytest.MonkeyPatch
):
    make = FastGenerator(student, seed=3, batch=64, engine="native")
    whole, room = make(20), 3
    honest = Network.forward

    def cramped(self: Network, x: Tensor, *args: Any) -> Tensor:
        if len(x) > room:
            raise MemoryError("std::bad_alloc")
        return honest(self, x, *args)

    monkeypatch.setattr(Network, "forward", cramped)
    assert torch.equal(make(20), whole)
    assert make.batch == 2
    room = 0
    with pytest.raises(MemoryLimitError, match="one image does not fit on cpu"):
        make(20)


NO_ROOM = [
    MemoryError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
]


@with_engine
@pytest.mark.parametrize("error", NO_ROOM, ids=lambda e: type(e).__name__)
def test_no_memory_for_the_weights_leaves_it_to_torch_or_is_said(
    student: Denoiser,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
):
    def cramped(*_: Any) -> Network:
        raise error

    monkeypatch.setattr(building, "network", cramped)
    make = FastGenerator(student)
    assert not native_net(make)
    assert "memory ran out while it was made" in caplog.text
    assert "memory ran out while it was made" in make.explain()
    with pytest.raises(MemoryLimitError, match="native was asked for, and memory ran out"):
        FastGenerator(student, engine="native")


@with_engine
def test_explain_shows_the_plan(student: Denoiser):
    said = FastGenerator(student, batch=16).explain()
    assert said.startswith("FastGenerator on cpu, network in float32")
    for words in (
        r"network +native on \w+, class fp32: float32, .*; error \d\.\de-\d\d, bound 1.0e-05",
        r"steps +a table of coefficients",
        r"batch +at most 16 images\n",
        r"[\d.]+ MiB of packed weights, [\d.]+ MiB of workspace for 16 images",
        r"3×3 16→16 at 8×8 +\w+ float32 +x\d+ +[\d.]+%",
        r"attention 32 at 4×4 +x\d+",
        r"kernels +philox_normal native",
    ):
        assert re.search(words, said), words


CASES = [
    ({"dtype": torch.float16}, "float16; the engine knows float32 and bfloat16"),
    ({"dtype": torch.float64}, "float64; the engine knows float32 and bfloat16"),
    ({"how": Sampling("rk45", 1)}, "rk45 asks at times that nobody knows before"),
]


@pytest.mark.parametrize(("options", "why"), CASES, ids=lambda v: str(v)[:24])
def test_what_it_cannot_take_goes_to_torch_and_is_named(
    student: Denoiser, options: dict[str, Any], why: str
):
    make = FastGenerator(student, **options)
    assert not native_net(make)
    assert re.search(rf"network +torch: .*{why}", make.explain())
    with pytest.raises(MissingError, match=rf"native was asked for and cannot run here: .*{why}"):
        FastGenerator(student, **options, engine="native")


def test_too_many_rows_go_to_torch(student: Denoiser, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(times, "MOST_ROWS", 4)
    make = FastGenerator(student)
    assert not native_net(make)
    assert "torch: 5 times and classes are more than 4" in make.explain()


@with_engine
def test_a_network_that_folds_refuse_goes_to_torch(student: Denoiser):
    student.net.middle[0].register_forward_hook(lambda *_: None)  # type: ignore[index, operator]
    make = FastGenerator(student)
    assert not native_net(make)
    assert "torch: fold: middle.0 has a hook" in make.explain()
    with pytest.raises(MissingError, match="Let torch run it"):
        FastGenerator(student, engine="native")


@with_engine
def test_a_network_beyond_a_limit_of_the_engine_goes_to_torch():
    small = {"width": 8, "mult": (1, 1), "attention": (), "resample": "block"}
    net = nets.UNet(nets.UNetConfig(8, filter=(1,) * 18, **small)).eval()
    model = Denoiser(net, Cosine(), "v")
    assert "torch: resample: 18 taps; expected 1 … 16" in FastGenerator(model).explain()
    with pytest.raises(MissingError, match="18 taps"):
        FastGenerator(model, engine="native")


def test_an_accuracy_that_torch_cannot_promise_is_a_warning(
    student: Denoiser, without_native: None, caplog: pytest.LogCaptureFixture
):
    FastGenerator(student, accuracy="exact", dtype=torch.bfloat16)
    assert "accuracy 'exact' was asked for, but torch runs the network, in bfloat16" in caplog.text


@pytest.mark.parametrize("how", [Sampling("rk45", 1), Sampling("ddim", 3)], ids=str)
def test_so_it_is_whatever_the_reason(
    student: Denoiser, how: Sampling, caplog: pytest.LogCaptureFixture, monkeypatch: Any
):
    """Also where the sampler alone is it, and nobody looked at the network."""
    monkeypatch.setattr(times, "MOST_ROWS", 4)
    why = FastGenerator(student, how=how, accuracy="exact").unengined
    assert why
    warning = f"accuracy 'exact' was asked for, but torch runs the network, in float32: {why}."
    assert caplog.text.count(warning) == 1


def test_without_the_compiled_part_torch_steps_in(student: Denoiser, without_native: None):
    make = FastGenerator(student)
    assert not native_net(make)
    assert "torch: the compiled part did not load" in make.explain()
    with pytest.raises(MissingError, match=r"did not load .*Install a C\+\+ compiler") as stop:
        FastGenerator(student, engine="native")
    assert stop.value.exit_code == 8


def test_an_older_compiled_part_has_no_engine(student: Denoiser, monkeypatch: pytest.MonkeyPatch):
    class Older:
        pass

    monkeypatch.setattr(native, "module", Older())
    assert "older than this kdgen" in engine.missing()
    with pytest.raises(MissingError, match=r"older .*Install a C\+\+ compiler and kdgen again"):
        Wish("native").leave(engine.missing(), torch.float32)


@with_engine
def test_torch_can_be_asked_for(student: Denoiser):
    make = FastGenerator(student, engine="torch")
    assert not native_net(make)
    assert "network     torch: torch was asked for" in make.explain()
    assert "padded to a multiple of 8" in make.explain()


@with_engine
def test_who_chooses_the_parts_gets_a_network_of_them(student: Denoiser):
    with kernels.use("reference"):
        make = FastGenerator(student)
        assert "torch: group_norm_silu is asked for by reference" in make.explain()
    with kernels.use("native"):
        assert native_net(FastGenerator(student))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "openvino"}, "engine is 'openvino'; expected auto, native, torch"),
        ({"accuracy": "int8"}, "accuracy is 'int8'; expected exact, fp32, bf16, fastest"),
        ({"engine": "torch", "accuracy": "fp32"}, "but torch was asked for"),
    ],
    ids=str,
)
def test_wishes_that_make_no_sense_are_refused(
    student: Denoiser, options: dict[str, str], words: str
):
    for make in (FastGenerator, generator, lambda *a, **o: kdgen.accelerate(*a, t=1.0, **o)):
        with pytest.raises(ValueError, match=words):
            make(student, **options)


def test_every_class_and_its_bound_is_documented():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.e-]+|–) \|", PAGE, re.MULTILINE))
    assert list(rows) == list(engine.BOUNDS)
    assert {n: float(b.replace("–", "inf")) for n, b in rows.items()} == engine.BOUNDS


@pytest.mark.parametrize("asked", [{"engine": "native"}, {"accuracy": "fp32"}], ids=str)
def test_the_plain_generator_has_no_engine_to_ask_for(student: Denoiser, asked: dict[str, str]):
    assert type(generator(student, fast=False)) is Generator
    with pytest.raises(ValueError, match="expected them for the fast generator only"):
        generator(student, fast=False, **asked)


# ---- kdgen.accelerate -----------------------------------------------------------------------


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(4))


@with_engine
@torch.no_grad()
@pytest.mark.parametrize("t", [1.0, (1.0, 0.5, 0.25)], ids=str)
def test_an_accelerated_denoiser_is_itself(student: Denoiser, t: Any):
    fast = kdgen.accelerate(student, t, engine="native")
    assert isinstance(fast.denoiser.net, Network)
    label = torch.tensor([0, 3, -1, 2, 1])
    student.eval()
    for time in t if isinstance(t, tuple) else (t,):
        expected = student(images(5), time, label).x0
        found = fast(images(5), label, t=time)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(fast(images(5)[2:3], label[2:3], t=time), found[2:3])
    assert fast(images(0), label[:0], t=1.0).shape == (0, 3, 8, 8)
    assert fast.report is not None
    assert fast.report.accelerated.l2 < 1e-5


@with_engine
@torch.no_grad()
def test_answers_are_in_the_dtype_of_the_question(student: Denoiser):
    fast = kdgen.accelerate(student, 1.0, dtype=torch.bfloat16, images=0)
    label = torch.zeros(5, dtype=torch.int64)
    assert isinstance(fast.denoiser.net, Network)
    assert fast(images(5).bfloat16(), label).dtype is torch.bfloat16
    assert fast(images(5), label).dtype is torch.float32


@with_engine
def test_the_explanation_of_accelerate_has_folds_and_plan(student: Denoiser):
    said = kdgen.accelerate(student, 1.0, images=0).explain()
    assert re.search(r"time +\d+ blocks without their embedding", said)
    assert re.search(r"FLOPs +[\d.]+ G -> [\d.]+ G \(-", said)
    assert re.search(r"network +native on \w+, class fp32", said)
    assert re.search(r"3×3 16→16 at 8×8 +\w+ float32", said)
    assert not re.search(r"^ *up +\d", said, re.MULTILINE)
    said = kdgen.accelerate(student, 1.0, images=0, engine="torch").explain()
    assert "network    torch: torch was asked for" in said


@with_engine
def test_folds_that_are_chosen_are_kept(student: Denoiser):
    fast = kdgen.accelerate(student, 1.0, images=0, folds=("time",))
    assert isinstance(fast.denoiser.net, Network)
    fast = kdgen.accelerate(student, 1.0, images=0, folds=("time", "up"))
    assert not isinstance(fast.denoiser.net, Network)
    assert "torch: engine: " in fast.explain()
    with pytest.raises(MissingError, match="Enlarge"):
        kdgen.accelerate(student, 1.0, images=0, folds=("time", "up"), engine="native")


def test_float64_goes_to_torch(student: Denoiser):
    fast = kdgen.accelerate(student.double(), 1.0, images=0)
    assert "torch: the network is asked for in float64" in fast.explain()
