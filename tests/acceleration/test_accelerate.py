"""`kdgen.accelerate`: the answers of the original, from less work, and an honest report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdgen
from kdgen import acceleration, fold, graph, nets
from kdgen.acceleration import accelerated, parity
from kdgen.denoiser import Denoiser
from kdgen.engine import Wish
from kdgen.schedules import EDM, Cosine

Lively = Callable[..., nn.Module]
SMALL = nets.UNetConfig(8, channels=3, width=16, mult=(1, 2), blocks=1, attention=(4,), classes=3)


class UNet2DModel(nn.Module):
    """Known by its name alone."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = {
            "sample_size": 8,
            "block_out_channels": [16],
            "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            **config,
        }


@pytest.fixture
def net(lively: Lively) -> nets.UNet:
    made = lively(nets.UNet(SMALL))
    assert isinstance(made, nets.UNet)
    return made.eval()


def images(n: int = 5, seed: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


LABEL = torch.tensor([0, 2, 1, 1, -1])


@torch.no_grad()
@pytest.mark.parametrize("t", [999.0, 0.0, 12.5])
def test_a_network_answers_as_before(net: nets.UNet, t: float):
    fast = kdgen.accelerate(net, t)
    expected = net(images(), torch.full((5,), t), LABEL)
    torch.testing.assert_close(fast(images(), LABEL), expected, rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in net.parameters())


@torch.no_grad()
def test_in_float64_it_is_the_same_function(net: nets.UNet):
    net = net.double()
    fast = kdgen.accelerate(net, 700.0)
    expected = net(images().double(), torch.full((5,), 700.0).double(), LABEL)
    torch.testing.assert_close(fast(images().double(), LABEL), expected, rtol=1e-9, atol=1e-9)
    assert fast.report is not None
    assert max(fast.report.difference.l2, fast.report.accelerated.largest) < 1e-9


@torch.no_grad()
def test_several_times_share_a_network(net: nets.UNet):
    fast = kdgen.accelerate(net, (900.0, 20.0, 450.0))
    for t in (20.0, 450.0, 900.0):
        expected = net(images(), torch.full((5,), t), LABEL)
        torch.testing.assert_close(fast(images(), LABEL, t=t), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="t is 21; expected one of 900, 20, 450"):
        fast(images(), LABEL, t=21)
    with pytest.raises(ValueError, match="t is None"):
        fast(images(), LABEL)


@torch.no_grad()
@pytest.mark.parametrize(("schedule", "kind"), [(Cosine(), "v"), (EDM(), "edm")], ids=str)
def test_a_denoiser_answers_with_x0(net: nets.UNet, schedule: Any, kind: str):
    model = Denoiser(net, schedule, kind)
    fast = kdgen.accelerate(model, t=1.0)
    x = images() * schedule.levels(1.0)[1]
    expected = model(x, 1.0, LABEL).x0
    torch.testing.assert_close(fast(x, LABEL), expected, rtol=1e-4, atol=1e-4)
    assert "input" in fast.explain() or kind == "v"


@torch.no_grad()
def test_a_batch_of_its_own_changes_no_answer(net: nets.UNet):
    fast = kdgen.accelerate(net, 999, batch=2)
    expected = net(images(), torch.full((5,), 999.0), LABEL)
    torch.testing.assert_close(fast(images(), LABEL), expected, rtol=1e-4, atol=1e-4)
    assert fast(images(0), LABEL[:0]).shape == (0, 3, 8, 8)


@torch.no_grad()
def test_low_precision_is_reported_as_what_it_is(net: nets.UNet):
    fast = kdgen.accelerate(net, 999, dtype=torch.bfloat16, engine="torch")
    assert fast(images(), LABEL).dtype == torch.float32
    assert fast.report is not None
    assert 1e-3 < fast.report.accelerated.l2 < 0.1
    assert fast.report.original.l2 < 1e-5
    assert "from the original" in str(fast.report)


def test_the_report_sees_a_wrong_network(net: nets.UNet):
    source = acceleration.source(net, (999.0,))
    fast = accelerated.Accelerated(source, wish=Wish("torch"))
    with torch.no_grad():
        next(p for n, p in fast.denoiser.named_parameters() if "conv_out.weight" in n).mul_(1.01)
    assert parity.compare(source, fast, 2).difference.l2 > 1e-3


def test_folds_can_be_chosen_and_are_named(net: nets.UNet):
    fast = kdgen.accelerate(net, 999, folds=("time",), images=0)
    assert fast.report is None
    said = fast.explain()
    assert said.startswith("UNet at t = 999 on cpu, float32")
    assert "time" in said
    assert "queries" not in said
    assert "none: the device is cpu" in said
    with pytest.raises(ValueError, match="expected a collection of"):
        kdgen.accelerate(net, 999, folds=("tiem",))


@torch.no_grad()
def test_a_fold_that_fails_its_check_is_left_out_and_said(
    net: nets.UNet, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any, **__: Any) -> None:
        raise fold.FoldError("fold.check: the folded network is 1e-3 away")

    monkeypatch.setattr(fold, "fold", fails)
    fast = kdgen.accelerate(net, 999)
    expected = net(images(), torch.full((5,), 999.0), LABEL)
    torch.testing.assert_close(fast(images(), LABEL), expected, rtol=1e-4, atol=1e-4)
    assert "refused    fold.check: the folded network is 1e-3 away" in fast.explain()


@torch.no_grad()
def test_a_graph_gives_the_same_answers_and_keeps_them(
    net: nets.UNet, recorder: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(graph, "available", lambda device: "")
    monkeypatch.setattr(graph, "capture", partial(graph.capture, driver=recorder))
    fast = kdgen.accelerate(net, (999.0, 3.0), batch=3, images=0, engine="torch")
    first = fast(images(), LABEL, t=999.0)
    kept = first.clone()
    second = fast(images(5, seed=6), LABEL, t=3.0)
    assert torch.equal(first, kept)
    for x, t, found in ((images(), 999.0, first), (images(5, seed=6), 3.0, second)):
        expected = net(x, torch.full((5,), t), LABEL)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert recorder.log.count("record") == 1
    assert recorder.log.count("replay") == 4


@pytest.mark.parametrize(
    ("x", "label", "words"),
    [
        (torch.zeros(2, 3, 8), LABEL[:2], r"x is \(2, 3, 8\)"),
        (torch.zeros(2, 1, 8, 8), LABEL[:2], r"expected \(B, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), LABEL[:2], "of floats"),
        (torch.zeros(2, 3, 8, 8), None, "label is None; expected"),
        (torch.zeros(2, 3, 8, 8), LABEL, r"label is \(5,\)"),
        (torch.zeros(2, 3, 8, 8, device="meta"), LABEL[:2], "x is on meta"),
    ],
    ids=str,
)
def test_calls_that_do_not_fit_are_refused(net: nets.UNet, x: Tensor, label: Any, words: str):
    with pytest.raises(ValueError, match=words):
        kdgen.accelerate(net, 999, images=0)(x, label)


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (nn.Linear(1, 1), {}, "is a Linear; expected a UNet2DModel of diffusers"),
        (None, {"t": ()}, "t is empty"),
        (None, {"t": -1.5}, "expected timesteps above -1"),
        (None, {"batch": 0}, "batch is 0"),
        ("foreign", {}, "act_fn is 'gelu'"),
    ],
    ids=str,
)
def test_what_cannot_be_accelerated_is_refused(
    net: nets.UNet, module: Any, options: dict[str, Any], words: str
):
    given = UNet2DModel(act_fn="gelu") if module == "foreign" else module or net
    with pytest.raises(ValueError, match=words):
        kdgen.accelerate(given, **{"t": 999, **options})


def test_the_name_stays_the_functions():
    assert callable(kdgen.accelerate)
    assert callable(kdgen.accelerate)  # also after its package was imported


@torch.no_grad()
@pytest.mark.parametrize("centred", [False, True])
def test_diffusers_own_model_is_accelerated(lively: Lively, centred: bool):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        center_input_sample=centred,
    )
    model = lively(model).eval()
    fast = kdgen.accelerate(model, t=999)
    expected = model(images(), 999).sample
    torch.testing.assert_close(fast(images()), expected, rtol=1e-3, atol=1e-3)
    assert fast.report is not None
    assert fast.report.difference.l2 < 1e-4


@torch.no_grad()
def test_what_cannot_be_recorded_runs_without_a_graph_and_says_why(
    net: nets.UNet, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise graph.CaptureError("accelerate: the host waits")

    monkeypatch.setattr(graph, "available", lambda device: "")
    monkeypatch.setattr(graph, "capture", refuse)
    fast = kdgen.accelerate(net, 999, images=0, engine="torch")
    expected = net(images(), torch.full((5,), 999.0), LABEL)
    torch.testing.assert_close(fast(images(), LABEL), expected, rtol=1e-4, atol=1e-4)
    assert "none: accelerate: the host waits" in fast.explain()


@torch.no_grad()
def test_only_so_many_graphs_are_kept(
    net: nets.UNet, recorder: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(accelerated, "MOST_GRAPHS", 1)
    monkeypatch.setattr(graph, "available", lambda device: "")
    monkeypatch.setattr(graph, "capture", partial(graph.capture, driver=recorder))
    fast = kdgen.accelerate(net, 999, images=0, engine="torch")
    for n in (2, 3, 2):
        expected = net(images(n), torch.full((n,), 999.0), LABEL[:n])
        torch.testing.assert_close(fast(images(n), LABEL[:n]), expected, rtol=1e-4, atol=1e-4)
    assert recorder.log.count("record") == 1
    assert recorder.log.count("replay") == 2


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_it_is_one_graph(net: nets.UNet, dtype: torch.dtype):
    net = net.cuda()
    fast = kdgen.accelerate(net, 999, dtype=dtype, batch=4)
    x, label = images().cuda(), LABEL.cuda()
    found = fast(x, label)
    assert torch.equal(found, fast(x, label))
    expected = net(x, torch.full((5,), 999.0, device="cuda"), label)
    error = (found - expected).norm() / expected.norm()
    assert error < (1e-2 if dtype is torch.float32 else 5e-2)
    assert "one for each number of images" in fast.explain()
