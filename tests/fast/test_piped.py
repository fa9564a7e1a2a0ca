"""The fast generator as on a GPU: tiles through streams, chains as graphs, memory that runs out."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from kdgen import graph, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import MemoryLimitError
from kdgen.fast import FastGenerator, Generator, aligned, replay
from kdgen.fast.driver import Driver
from kdgen.schedules import EDM

plain = partial(FastGenerator, engine="torch")  # as a device runs the network, on the CPU


def piped(driver: Any, recorder: Any = None, room: int = 10**9) -> type[FastGenerator]:
    """A fast generator on a device that is not there; it has room for so many images at once."""

    class Piped(FastGenerator):
        log: ClassVar[list[int]] = []

        def __init__(self, denoiser: Denoiser, **options: Any) -> None:
            super().__init__(denoiser, engine="torch", **options)

        def _driver(self) -> Driver | None:
            return driver  # type: ignore[no-any-return]

        def _usual_tile(self) -> int:
            return 8

        def _unable(self) -> str:
            return "" if recorder is not None else "there is no recorder"

        def _recorder(self) -> replay.Capture:
            return partial(graph.capture, driver=recorder)

        def _compute(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
            if len(z) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
            self.log.append(len(z))
            return super()._compute(z, label, index)

    return Piped


def test_images_are_those_of_the_cpu_path(student: Denoiser, machine: Any):
    make = piped(machine(3))(student, seed=3)
    assert torch.equal(make(70), plain(student, seed=3)(70))
    assert torch.equal(make(5, first=33, label=2), plain(student, seed=3)(5, first=33, label=2))
    assert make(0).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("batch", [1, 7, 16, 40, 500])
def test_batches_are_as_asked_and_the_network_sees_whole_tiles(
    student: Denoiser, machine: Any, batch: int
):
    make = piped(machine())(student, seed=3, batch=batch)
    parts = list(make.batches(50))
    assert [len(p) for p in parts[:-1]] == [batch] * (len(parts) - 1)
    assert torch.equal(torch.cat(parts), plain(student, seed=3)(50))
    assert set(make.log) == {8}


def test_requests_may_take_turns(student: Denoiser, machine: Any):
    make = piped(machine(1))(student, seed=3, batch=8)
    one, two = make.batches(40), make.batches(40, first=100)
    found = [(next(one), next(two)) for _ in range(5)]
    assert torch.equal(torch.cat([a for a, _ in found]), make(40))
    assert torch.equal(torch.cat([b for _, b in found]), make(40, first=100))


def test_a_request_that_is_dropped_spoils_no_other(student: Denoiser, machine: Any):
    make = piped(machine(2))(student, seed=3, batch=8)
    dropped = make.batches(90)
    next(dropped)
    dropped.close()
    assert torch.equal(make(40), plain(student, seed=3)(40))


CHAINS = [
    Sampling("ddim", 1, clip=1.0),
    Sampling("ddim", 4, clip=1.0),
    Sampling("ddim", 3, clip=1.0, guidance=2.0),
    Sampling("ancestral", 3, clip=1.0),
    Sampling("heun", 3, "uniform"),
    Sampling("velocity_heun", 3, clip=1.0),
    Sampling("few_step", times=(1.0, 0.6, 0.3), clip=1.0),
    Sampling("dpm", 3, clip=1.0),
]


@pytest.mark.parametrize(
    ("how", "most"),
    [*((CHAINS[k], 10**6) for k in (0, 2, 4, 6, 7)), *((CHAINS[k], 1) for k in (1, 3, 5))],
    ids=str,
)
def test_a_graph_makes_the_images_that_the_kernels_made(  # type: ignore[no-untyped-def]
    student: Denoiser, machine: Any, recorder, monkeypatch, how: Sampling, most: int
):
    monkeypatch.setattr(replay, "MOST_NODES", most)
    model = student.copy(parameterisation="v", sampling=how)
    make = piped(machine(prompt=True), recorder)(model, seed=3)
    assert torch.equal(make(20), plain(model, seed=3)(20))
    assert make.captured is not None, make.ungraphed
    chain = getattr(make.program, "chain", None)
    long = most == 1 and chain is not None and len(chain.moves) > 2
    moves = len(chain.moves) if long else 1
    assert recorder.log.count("record") == 1 + long
    assert recorder.log.count("replay") == 2 * moves  # tiles but the first
    assert ("is replayed for" in make.explain()) == long


def test_one_tile_is_not_worth_a_graph(student: Denoiser, machine: Any, recorder: Any):
    make = piped(machine(), recorder)(student)
    make(8)
    assert recorder.log == []
    assert "from the second tile on" in make.explain()
    make(1)
    assert recorder.log.count("record") == 1


def test_warming_up_leaves_nothing_to_be_captured(student: Denoiser, machine: Any, recorder: Any):
    make = piped(machine(), recorder)(student)
    make.warm_up(40, make.labels(40))
    recorder.log.clear()
    make(40)
    assert set(recorder.log) == {"replay"}


def test_what_cannot_be_captured_runs_and_says_so(
    student: Denoiser, machine: Any, recorder: Any, caplog: pytest.LogCaptureFixture
):
    class Asking(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item() ** 0

    make = piped(machine(), recorder)(student, seed=3)
    make.denoiser.net.conv_in = torch.nn.Sequential(Asking(), make.denoiser.net.conv_in)
    make.denoiser.net.conv_in.weight = make.denoiser.net.conv_in[1].weight
    with caplog.at_level(logging.WARNING, "kdgen"):
        assert torch.equal(make(20), plain(student, seed=3)(20))
    assert caplog.text.count("no CUDA graph") == 1
    assert "the host waits for a value" in make.explain()


@pytest.mark.parametrize("room", [8, 9, 15])
def test_memory_that_runs_out_halves_the_tile_for_good(
    student: Denoiser, machine: Any, recorder: Any, caplog: pytest.LogCaptureFixture, room: int
):
    make = piped(machine(prompt=True), recorder, room)(student, seed=3, batch=20, tile=16)
    with caplog.at_level(logging.WARNING, "kdgen"):
        assert torch.equal(make(30), plain(student, seed=3)(30))
        make(30)
    assert caplog.text.count("out of memory") == 1
    assert "2.50 GiB wanted" in caplog.text
    assert (make.tile, make.batch) == (8, 20)


def test_memory_for_nothing_is_a_refusal_with_numbers(student: Denoiser, machine: Any):
    make = piped(machine(prompt=True), room=0)(student)
    with pytest.raises(
        MemoryLimitError, match=r"one image does not fit .* \(2.50 GiB wanted, .*free\)"
    ) as stop:
        make(70)
    assert stop.value.exit_code == 6


def test_memory_that_runs_out_later_goes_on_where_it_was(student: Denoiser, machine: Any):
    kind = piped(machine(prompt=True))

    class Fading(kind):  # type: ignore[misc, valid-type]
        def _compute(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
            if len(self.log) >= 3 and len(z) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB.")
            return super()._compute(z, label, index)  # type: ignore[no-any-return]

    make = Fading(student, seed=3, batch=4, tile=16)
    make.log.clear()
    assert torch.equal(make(70), plain(student, seed=3)(70))


def test_other_errors_come_through_and_the_generator_lives_on(student: Denoiser, machine: Any):
    kind = piped(machine(prompt=True))

    class Failing(kind):  # type: ignore[misc, valid-type]
        broken = True

        def _compute(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
            if self.broken and len(self.log) > 2:
                raise KeyboardInterrupt
            return super()._compute(z, label, index)  # type: ignore[no-any-return]

    make = Failing(student, seed=3)
    make.log.clear()
    with pytest.raises(KeyboardInterrupt):
        make(70)
    make.broken = False
    assert torch.equal(make(70), plain(student, seed=3)(70))


def test_explain_says_what_runs_and_what_does_not(student: Denoiser):
    text = plain(student, dtype=torch.bfloat16).explain()
    assert text.startswith("FastGenerator on cpu, network in bfloat16")
    for words in (
        r"sampler +ddim, 1 evaluations",
        r"folds +time \(\d+\)",
        r"steps +a table of coefficients",
        r"CUDA graph +none: the device is cpu",
        r"batch +at most 256 images, padded to a multiple of 8",
        r"kernels +group_norm_silu (native|reference)",
    ):
        assert re.search(words, text), words
    how = Sampling("rk45", 1)
    said = plain(student.copy(parameterisation="v", sampling=how)).explain()
    assert "none: rk45 reads its error on the host" in said
    assert "none: rk45 asks at times that nobody knows before" in said


def test_sizes_that_are_none_are_refused(student: Denoiser):
    with pytest.raises(ValueError, match="tile is 0; expected at least 1"):
        plain(student, tile=0)


@pytest.mark.parametrize("how", [CHAINS[0], CHAINS[2], CHAINS[4]], ids=lambda how: how.sampler)
def test_channels_of_zeros_change_nothing(
    student: Denoiser, monkeypatch: pytest.MonkeyPatch, how: Sampling
):
    model = student.copy(schedule=EDM(), parameterisation="edm", time=None, sampling=how)
    expected = plain(model, seed=3)(9).int()
    monkeypatch.setattr(aligned, "worthwhile", lambda *_: True)
    make = plain(model, seed=3)
    found = make(9).int()
    assert make.denoiser.net.conv_in.weight.shape[1] == 8
    assert make.denoiser.net.conv_out.weight.shape[0] == 8
    assert (found - expected).abs().max() <= 1
    assert found.float().std() > 20
    assert model.net.conv_in.weight.shape[1] == 3  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    "change", [{"outputs": 2}, {"pyramid": True, "resample": "block"}], ids=str
)
def test_a_network_that_sees_or_gives_more_images_keeps_its_channels(change: dict[str, Any]):
    assert aligned.align(nets.UNet(replace(nets.PRESETS["tiny8"], **change))) == 0


def test_settings_are_as_they_were(student: Denoiser, machine: Any):
    from torch.backends import cudnn

    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    piped(machine())(student)(3)
    assert (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32) == before


# ---- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu_bits_do_not_depend_on_the_batch(student: Denoiser, dtype: torch.dtype):
    model = student.cuda()
    whole = FastGenerator(model, seed=3, dtype=dtype, tile=32)(100)
    for batch in (1, 7, 32, 64, 500):
        assert torch.equal(
            FastGenerator(model, seed=3, dtype=dtype, batch=batch, tile=32)(100), whole
        )
    assert torch.equal(
        FastGenerator(model, seed=3, dtype=dtype, tile=32)(10, first=50), whole[50:60]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("how", CHAINS, ids=lambda how: how.sampler)
def test_on_a_gpu_a_graph_is_captured_and_is_the_plain_path(student: Denoiser, how: Sampling):
    model = student.copy(parameterisation="v", sampling=how)
    make = FastGenerator(model.cuda(), seed=3, tile=32)
    images = make(100)
    assert make.captured is not None, make.ungraphed
    plain = Generator(model, seed=3)(100)
    assert (images.int() - plain.int()).abs().max() <= 1
    eager = FastGenerator(model, seed=3, tile=32)
    eager.ungraphed = "not wanted"
    assert torch.equal(eager(100), images)


@pytest.mark.gpu
def test_on_a_gpu_images_are_those_of_the_cpu(student: Denoiser):
    how = Sampling("heun", 4, "karras")
    model = student.copy(schedule=EDM(), parameterisation="edm", time=None, sampling=how)
    expected = Generator(model, seed=3)(40).int()
    found = FastGenerator(model.cuda(), seed=3, tile=32)(40).int()
    assert (found - expected).abs().max() <= 1


@pytest.mark.gpu
def test_on_a_gpu_the_usual_tile_fills_its_processors(student: Denoiser):
    make = FastGenerator(student.cuda())
    count = torch.cuda.get_device_properties(0).multi_processor_count
    assert make.tile % count == 0
    assert make.batch == make.tile
    text = FastGenerator(replace_sampling(student.cuda())).explain()
    assert "cuDNN's by shape, deterministic" in text


def replace_sampling(model: Denoiser) -> Denoiser:
    return model.copy(sampling=replace(model.sampling, steps=2))
