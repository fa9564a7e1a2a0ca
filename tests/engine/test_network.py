"""Networks in the compiled engine: as exact as their class says, the same bits for any batch."""

from __future__ import annotations

import copy
import gc
import math
import re
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdgen import engine, fold, nets
from kdgen.denoiser import Denoiser
from kdgen.engine import building
from kdgen.engine.choice import BOUNDS, CANDIDATES, DIRECT, Candidate, Plan, planned
from kdgen.engine.compiling import compiled as program
from kdgen.engine.measuring import Probe, probe
from kdgen.engine.tracing import trace
from kdgen.kernels import native
from kdgen.schedules import Cosine

pytestmark = pytest.mark.usefixtures("compiled")

MANY = (1.0, 0.25, 0.6)
ISAS = native.module.supported_isas() if native.module is not None else ["none"]
EVERY = list(dict.fromkeys(c for found in CANDIDATES.values() for c in found))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(made: Any, channels: int, x: Tensor, rows: Tensor | None) -> Tensor:
    x = x.float().contiguous(memory_format=torch.channels_last)
    size = (len(x), channels, *x.shape[2:])
    out = torch.empty(size, memory_format=torch.channels_last)
    numbers = None if rows is None else rows.to(torch.int32)
    at = 0 if numbers is None else numbers.data_ptr()
    made.run(x.data_ptr(), at, out.data_ptr(), len(x), torch.get_num_threads())
    return out


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def rows_of(made: fold.Folded, given: Any) -> Tensor | None:
    row = made.net.embedding(given.time, given.label)  # type: ignore[operator]
    return row if made.net.embedding.rows > 1 else None  # type: ignore[union-attr, operator]


def expected_error(candidate: Candidate) -> float:
    """float32: 1e-5, the class's own bound. Else what the roundings of some fifty layers add up to:
    2⁻⁹ of bfloat16, in F(4×4) three times that; 1/254 in int8 of a largest value that is three
    times the others."""
    layers = math.sqrt(50)
    if candidate.rounded:
        return 3 / 254 * layers
    if candidate.products is torch.bfloat16:
        return 2**-9 * layers * (3 if candidate.largest else 1)
    return 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("candidate", EVERY, ids=lambda c: c.name)
def test_on_every_machine_the_engine_says_what_the_steps_say(
    folded: Callable[..., fold.Folded],
    inputs: Any,
    reference: ModuleType,
    candidate: Candidate,
    isa: str,
):
    """With bands around every buffer."""
    for name in ("ddpm32", "ncsnpp32", "adm64", "cud28"):
        made = folded(name, MANY)
        found, given = trace(made), inputs(made)
        rows = rows_of(made, given)
        expected = reference.run(found, given.x.double(), rows)
        ready = program(planned(found, candidate), isa=isa, guarded=True)
        said = run(ready, found.output.channels, given.x, rows)
        assert error(said, expected) < expected_error(candidate), name


@pytest.mark.parametrize("times", [(1.0,), MANY], ids=str)
@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("name", nets.PRESETS)
def test_every_preset_is_within_the_bound_of_its_class(
    folded: Callable[..., fold.Folded],
    inputs: Any,
    name: str,
    accuracy: str,
    times: tuple[float, ...],
):
    made = folded(name, times)
    given = inputs(made)
    with torch.no_grad():
        expected = made.double().net(given.x.double(), *given.all[1:])
        net = engine.network(made.float(), accuracy)
        found = net(*given.all)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Measured on other images than these: as many again, for luck.
    bound = {"exact": 1e-5}.get(accuracy, BOUNDS[accuracy])
    assert error(found, expected) < 2 * bound
    assert net.report.error <= min(bound, BOUNDS[accuracy])


@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("name", ["ddpm32", "edm32-cond", "ncsnpp32"])
def test_bits_depend_neither_on_the_batch_nor_on_threads(
    folded: Callable[..., fold.Folded],
    inputs: Any,
    threads: Callable[[int], None],
    name: str,
    accuracy: str,
):
    made = folded(name, MANY)
    net = engine.network(made, accuracy)
    given = inputs(made, 37)
    with torch.no_grad():
        whole = net(*given.all)
        for count in (1, 2, 3):
            threads(count)
            for n in (1, 2, 5, 36):
                some = [None if v is None else v[1 : 1 + n] for v in given.all]
                assert torch.equal(net(*some), whole[1 : 1 + n]), (count, n)


def test_threads_that_share_every_step_say_what_one_says(
    lively: Callable[..., nn.Module], threads: Callable[[int], None]
):
    """As they do for fewer images than threads, where the work is worth it: 60M products here."""
    size = nets.UNetConfig(
        16, channels=3, width=64, mult=(1, 2), blocks=1, attention=(8,), groups=8
    )
    plain = Denoiser(lively(nets.UNet(size)), Cosine(), "v")
    net = engine.network(fold.fold(plain, (1.0,), folds=engine.FOLDS, check=False), "fp32")
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    time = torch.ones(3)
    threads(1)
    alone = net(x, time)
    for count in (2, 3, 4):
        threads(count)
        for n in (1, 3):
            assert torch.equal(net(x[:n], time[:n]), alone[:n]), (count, n)


def test_callers_at_once_get_what_each_gets_alone(
    lively: Callable[..., nn.Module], threads: Callable[[int], None]
):
    """One network has one workspace."""
    size = nets.UNetConfig(16, channels=3, width=32, mult=(1, 2), blocks=1, attention=(8,))
    plain = Denoiser(lively(nets.UNet(size)), Cosine(), "v")
    net = engine.network(fold.fold(plain, (1.0,), folds=engine.FOLDS, check=False), "fp32")
    x = torch.randn(4, 8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    threads(1)

    def said(k: int) -> Tensor:
        return net(x[k], torch.ones(8))  # type: ignore[no-any-return]

    expected = [said(k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for k, found in enumerate(pool.map(said, [0, 1, 2, 3] * 10)):
            assert torch.equal(found, expected[k % 4])


def test_no_images_are_no_work(folded: Callable[..., fold.Folded], inputs: Any):
    for name in ("ddpm32", "edm32-cond"):
        made = folded(name, MANY)
        given = inputs(made, 0)
        found = engine.network(made, "fp32")(*given.all)
        assert found.shape == (0, 3, 8, 8)
        assert found.dtype is torch.float32


def test_inputs_of_any_layout_and_dtype_are_taken(folded: Callable[..., fold.Folded], inputs: Any):
    made = folded("ddpm32")
    net, given = engine.network(made, "fp32"), inputs(made)
    expected = net(*given.all)
    x = given.x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(net(x, given.time), expected)
    assert torch.equal(net(given.x.double(), given.time), expected)


def test_every_image_has_its_own_time_and_class(folded: Callable[..., fold.Folded], inputs: Any):
    made = folded("edm32-cond", MANY)
    net, given = engine.network(made, "fp32"), inputs(made, 12)
    x = given.x[:1].expand(12, -1, -1, -1)
    found = net(x, given.time, given.label)
    assert len({tuple(image.flatten().tolist()) for image in found}) == 12
    none = net(x, given.time)
    assert torch.equal(none[0], found[given.label.tolist().index(-1)])


def test_a_network_tells_what_a_denoiser_asks_it(folded: Callable[..., fold.Folded]):
    made = folded("cud28", MANY)
    before = (made.shape, made.classes, made.heads, made.net.facts)
    made.net = engine.network(made, "fp32")
    assert (made.shape, made.classes, made.heads, made.net.facts) == before
    assert next(made.parameters()).device.type == "cpu"
    x = torch.randn(2, *made.shape)
    assert len(made.outputs(x, 0.25)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :2], r"x is \(2, 2, 8, 8\) float32; expected \(B, 3, 8, 8\)"),
        (lambda x: x.long(), "int64; expected"),
        (lambda x: x.to("meta"), "x is on meta, the network on cpu"),
        (lambda x: x.requires_grad_(), "x wants a gradient"),
    ],
    ids=["channels", "integers", "device", "gradient"],
)
def test_what_it_cannot_take_is_refused(
    folded: Callable[..., fold.Folded], change: Callable[[Tensor], Tensor], words: str
):
    net = engine.network(folded("ddpm32"), "exact")
    with pytest.raises(ValueError, match=words):
        net(change(torch.zeros(2, 3, 8, 8)), torch.ones(2))


@pytest.mark.parametrize("label", [[0, 3], [-2, 0]], ids=str)
def test_classes_that_are_none_are_refused(folded: Callable[..., fold.Folded], label: list[int]):
    net = engine.network(folded("edm32-cond"), "exact")
    with pytest.raises(ValueError, match="expected classes 0 … 2"):
        net(torch.zeros(2, 3, 8, 8), torch.ones(2), torch.tensor(label))


def test_a_network_that_was_moved_is_refused(folded: Callable[..., fold.Folded]):
    net = engine.network(folded("ddpm32"), "exact").to("meta")
    with pytest.raises(ValueError, match="the network on meta"):
        net(torch.zeros(2, 3, 8, 8), torch.ones(2))


def test_augmented_images_are_refused(folded: Callable[..., fold.Folded]):
    net = engine.network(folded("edm32"), "exact")
    with pytest.raises(ValueError, match="augmentation"):
        net(torch.zeros(2, 3, 8, 8), torch.ones(2), None, torch.zeros(2, 9))


def test_a_compiled_network_is_not_copied(folded: Callable[..., fold.Folded]):
    net = engine.network(folded("ddpm32"), "exact")
    with pytest.raises(ValueError, match="cannot be copied or kept"):
        copy.deepcopy(net)


def test_not_a_number_stays_where_it_was_in_a_direct_network(
    folded: Callable[..., fold.Folded], inputs: Any
):
    """One image of many: the others are untouched, whatever the class."""
    made = folded("ddpm32")
    given = inputs(made)
    x = given.x.clone()
    x[2, 0, 3, 3] = math.nan
    for accuracy in BOUNDS:
        net = engine.network(made, accuracy)
        found = net(x, given.time)
        clean = net(given.x, given.time)
        assert torch.equal(found[:2], clean[:2])
        assert torch.equal(found[3:], clean[3:])
        with torch.no_grad():
            expected = made.net(x, given.time)[2].isnan()
        assert torch.equal(found[2].isnan(), expected)  # group norm spreads it over the image


def test_the_probe_is_what_the_network_sees(folded: Callable[..., fold.Folded]):
    for name in ("edm32-cond", "ddpm32"):
        for times in ((1.0,), MANY):
            made = folded(name, times)
            found = probe(made)
            assert found.x.shape == (2, 3, 8, 8)
            size = found.x[0].std()
            levels = made.schedule.levels(1.0)
            expected = math.hypot(0.5 * levels[0], levels[1]) if made.takes_x_t else 1.0
            assert 0.7 * expected < size < 1.4 * expected
            assert (found.label is None) == (name == "ddpm32")


def test_an_error_is_relative_and_zeros_are_met_exactly():
    zero = torch.zeros(1, 1, 2, 2)
    one = torch.ones(1, 1, 2, 2)
    assert Probe(one, one, None, one).error(1.5 * one) == pytest.approx(0.5)
    assert Probe(one, one, None, zero).error(zero) == 0.0
    assert Probe(one, one, None, zero).error(one) == math.inf
    assert math.isnan(Probe(one, one, None, one).error(one * math.nan))


def test_a_network_that_answers_with_zeros_has_a_plan():
    config = nets.UNetConfig(8, width=16, mult=(1,), blocks=1, attention=(8,))
    from kdgen.denoiser import Denoiser
    from kdgen.schedules import Cosine

    made = fold.fold(Denoiser(nets.UNet(config), Cosine(), "v"), [1.0], folds=engine.FOLDS)
    net = engine.network(made, "fp32")
    assert (net.report.error, len(net.report.trials)) == (0.0, 1)


def test_a_class_that_misses_its_bound_steps_down_and_says_so(
    folded: Callable[..., fold.Folded], monkeypatch: pytest.MonkeyPatch
):
    honest = Probe.error

    def doubtful(self: Probe, said: Tensor) -> float:
        tried.append(honest(self, said))
        return 3e-5 if len(tried) == 1 else tried[-1]

    tried: list[float] = []
    monkeypatch.setattr(Probe, "error", doubtful)
    made = engine.network(folded("ddpm32"), "fp32")
    assert len(tried) == 2
    first, second = made.report.trials
    assert first.error == 3e-5
    assert made.report.candidate == second.candidate
    assert f"; {first.candidate.name} missed it: 3.0e-05" in made.report.heading()


def test_the_weights_of_torch_are_let_go(folded: Callable[..., fold.Folded]):
    made = folded("ddpm32")
    weight = weakref.ref(made.net.conv_in.weight)  # type: ignore[union-attr, arg-type]
    made.net = engine.network(made, "fp32")
    gc.collect()
    assert weight() is None


def test_a_report_is_for_people(folded: Callable[..., fold.Folded]):
    net = engine.network(folded("ddpm32"), "fp32")
    heading, sizes, *table = net.explain(4)
    assert re.match(
        r"native on \w+, class fp32: float32, .*; error \d\.\de-0\d, bound 1.0e-05", heading
    )
    assert re.match(r"[\d.]+ MiB of packed weights, [\d.]+ MiB of workspace for 4 images", sizes)
    assert any(re.match(r"3×3 32→32 at 4×4 +\w+ float32 +x\d+ +[\d.]+%  \w+", row) for row in table)
    assert table[-1].startswith("others ")
    shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in table]  # type: ignore[index]
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    assert min(shares[:-1]) >= 1
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert sum(int(re.search(r"x(\d+)", row)[1]) for row in table) == len(  # type: ignore[index]
        [
            layer
            for layer in planned(trace(folded("ddpm32")), net.report.candidate).layers
            if layer.seconds
        ]
    )


def test_plans_are_of_the_machine(
    folded: Callable[..., fold.Folded], monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[bool, bool]] = []
    honest = building.choice.plans

    def spied(*args: Any, fast_bf16: bool, fast_int8: bool) -> list[Plan]:
        seen.append((fast_bf16, fast_int8))
        return honest(*args, fast_bf16=fast_bf16, fast_int8=fast_int8)

    monkeypatch.setattr(building.choice, "plans", spied)
    net = engine.network(folded("ddpm32"), "bf16")
    assert native.module is not None
    program = native.module.Program()
    assert seen == [(program.fast_bf16, program.fast_int8)]
    kind = torch.bfloat16 if program.fast_bf16 else torch.float32
    assert net.report.candidate.activations is kind
    assert net.report.candidate != DIRECT
