"""Stores of teacher pairs: made once, whatever happens meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kdgen import checkpoint, nets, noise, pairs, samplers, solvers
from kdgen.denoiser import Denoiser, Sampling
from kdgen.engine import Network
from kdgen.engine.asking import missing
from kdgen.errors import BusyError, CheckpointError, DataError, NonFiniteError
from kdgen.pairs import PairStore, Plan
from kdgen.pairs.store import FILE, PLAN
from kdgen.schedules import Cosine

Lively = Callable[..., nn.Module]
COUNT, SHARD = 50, 20  # three shards, the last one smaller


@pytest.fixture
def teacher(lively: Lively) -> Denoiser:
    size = nets.UNetConfig(4, channels=1, width=8, mult=(1,), blocks=1, attention=(4,), classes=3)
    model = Denoiser(lively(nets.UNet(size)), Cosine(), "v", sampling=Sampling("ddim", 3))
    return model.eval().requires_grad_(False)


@pytest.fixture
def wanted(teacher: Denoiser) -> Plan:
    return pairs.plan(teacher, COUNT, seed=7, shard=SHARD)


def fill(path: Path, teacher: Denoiser, wanted: Plan, batch: int = 16) -> list[int]:
    return list(pairs.generate(path, teacher, wanted, batch=batch))


def files(path: Path) -> dict[str, bytes]:
    """All of a store but its lock."""
    found = sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in found}


def test_a_store_holds_what_the_teacher_makes_of_its_noise(
    tmp_path: Path, teacher: Denoiser, wanted: Plan
):
    fill(tmp_path, teacher, replace(wanted, dtype="float32"))
    store = PairStore(tmp_path)
    assert (len(store), store.shape, store.classes, store.kind) == (COUNT, (1, 4, 4), 3, "pairs")
    index = torch.tensor([49, 0, 20, 19, 7])
    z, x0, label = store.take(index)
    assert torch.equal(z, noise.normal(7, noise.Stream.PAIR_Z, index, (1, 4, 4)))
    assert label is not None
    assert torch.equal(label, noise.classes(7, noise.Stream.PAIR_LABEL, index, 3))
    expected = samplers.sample(teacher, z, label).clamp(-1, 1)
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)
    assert x0.std() > 0.2
    assert repr(store).endswith("50 pairs, 1×4×4, float32")


def test_a_store_can_hold_what_is_predicted_on_the_way(
    tmp_path: Path, teacher: Denoiser, wanted: Plan
):
    """The clean image that evaluation `at` of the chain predicts; the last one is the image."""
    index = wanted.indices(0)
    for at in range(3):
        early = pairs.plan(teacher, COUNT, seed=7, shard=SHARD, at=at)
        path = tmp_path / str(at)
        fill(path, teacher, replace(early, dtype="float32"))
        z, x0, label = PairStore(path).take(index)
        with torch.no_grad():
            expected = solvers.prediction_along(teacher, z, 3, at, label).clamp(-1, 1)
        torch.testing.assert_close(x0, expected, rtol=0, atol=1e-5)
        finished = samplers.sample(teacher, z, label).clamp(-1, 1)
        assert torch.allclose(x0, finished, atol=1e-5) == (at == 2)


def test_a_place_beyond_the_chain_is_refused(teacher: Denoiser):
    with pytest.raises(ValueError, match="at is 3 on 3 steps"):
        pairs.plan(teacher, COUNT, at=3)
    with pytest.raises(ValueError, match="of 'heun'"):
        pairs.plan(teacher, COUNT, sampling=Sampling("heun", 3), at=1)


def test_pairs_can_be_made_again_one_by_one(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    """`take` gives, to the bit, what the teacher gives to this pair alone."""
    fill(tmp_path, teacher, replace(wanted, dtype="float32"))
    store = PairStore(tmp_path)
    for k in (0, 21, 49):
        _, x0, _ = store.take(torch.tensor([k]))
        assert torch.equal(x0, pairs.Tutor(teacher, wanted)(torch.tensor([k])))


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_pairs_do_not_depend_on_the_batch(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, batch: int
):
    short = replace(wanted, count=21, dtype="float32")
    fill(tmp_path / "one", teacher, short, batch=16)
    fill(tmp_path / "other", teacher, short, batch=batch)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_progress_rises_to_the_count(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    done = fill(tmp_path, teacher, wanted, batch=8)
    assert done == [8, 16, 20, 28, 36, 40, 48, 50]
    assert fill(tmp_path, teacher, wanted) == [20, 40, 50]


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_store_that_was_interrupted_becomes_the_same_store(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, stop: int
):
    fill(tmp_path / "whole", teacher, wanted)
    broken = tmp_path / "broken"
    begun = pairs.generate(broken, teacher, wanted, batch=8)
    for _ in range(stop):
        next(begun)
    begun.close()
    for leftover in (".tmp-shard-00001", ".tmp-gone-shard-00002"):  # as kill -9 leaves them
        (broken / leftover).mkdir()
        (broken / leftover / FILE).write_bytes(b"half")
    fill(broken, teacher, wanted)
    assert files(broken) == files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["flip", "cut", "file", "manifest", "all"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, damage: str
):
    fill(tmp_path, teacher, wanted)
    whole, shard = files(tmp_path), tmp_path / "shard-00001"
    untouched = (tmp_path / "shard-00000" / FILE).stat().st_mtime_ns
    data = shard / FILE
    if damage == "flip":
        content = bytearray(data.read_bytes())
        content[-5] ^= 1
        data.write_bytes(content)
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    else:
        for path in shard.iterdir():
            if damage in ("all", "file" if path == data else "manifest"):
                path.unlink()
    with pytest.raises(CheckpointError, match="shard-00001"):
        PairStore(tmp_path)
    fill(tmp_path, teacher, wanted)
    assert files(tmp_path) == whole
    assert (tmp_path / "shard-00000" / FILE).stat().st_mtime_ns == untouched


def test_a_missing_shard_is_named(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    begun = pairs.generate(tmp_path, teacher, wanted)
    next(begun)
    begun.close()
    with pytest.raises(DataError, match="shard 1 of 3 is missing"):
        PairStore(tmp_path)


def test_a_shard_of_another_plan_is_not_taken(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    for name, plan in (("one", wanted), ("other", replace(wanted, seed=8))):
        fill(tmp_path / name, teacher, plan)
    mine, theirs = (tmp_path / n / "shard-00001" for n in ("one", "other"))
    for path in theirs.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="holds pairs of another plan"):
        PairStore(tmp_path / "one")
    fill(tmp_path / "one", teacher, wanted)
    assert len(PairStore(tmp_path / "one")) == COUNT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "seed 7 -> 8"),
        ({"count": 51}, "count 50 -> 51"),
        ({"dtype": "uint8"}, "dtype float16 -> uint8"),
        ({"teacher": "another"}, "-> another"),
        ({"sampling": Sampling("ddim", 9).config()}, "'steps': 9"),
    ],
    ids=str,
)
def test_another_plan_is_refused(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, change: dict, message: str
):
    fill(tmp_path, teacher, wanted)
    before = files(tmp_path)
    with pytest.raises(DataError, match=message):
        fill(tmp_path, teacher, replace(wanted, **change))
    assert files(tmp_path) == before


def test_a_plan_knows_its_teacher(teacher: Denoiser, wanted: Plan):
    assert pairs.plan(teacher.copy(), COUNT, seed=7, shard=SHARD) == wanted
    other = teacher.copy()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    assert pairs.plan(other, COUNT).teacher != wanted.teacher
    assert pairs.plan(teacher.copy(parameterisation="x0"), COUNT).teacher != wanted.teacher
    assert pairs.plan(teacher, COUNT, sampling=Sampling(steps=2)).sampling["steps"] == 2


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float32", 0.0), ("float16", 2**-12), ("uint8", 1 / 255 + 1e-7)]
)
def test_stored_images_are_rounded_by_no_more_than_they_say(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, dtype: str, bound: float
):
    fill(tmp_path, teacher, replace(wanted, dtype=dtype))
    index = noise.addresses(0, COUNT)
    _, x0, _ = PairStore(tmp_path).take(index)
    error = (x0 - pairs.Tutor(teacher, wanted)(index)).abs()
    assert x0.dtype == torch.float32
    assert x0.abs().max() <= 1
    assert error.max() <= bound
    assert error.mean() >= 0.1 * bound  # and it is not float32 in disguise


def test_a_busy_store_is_refused(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    begun = pairs.generate(tmp_path, teacher, wanted)
    next(begun)
    with pytest.raises(BusyError, match="in use"):
        fill(tmp_path, teacher, wanted)
    begun.close()
    assert fill(tmp_path, teacher, wanted)[-1] == COUNT


def test_a_teacher_that_gives_no_numbers_is_refused(
    tmp_path: Path, teacher: Denoiser, wanted: Plan
):
    with torch.no_grad():
        teacher.net.conv_out.bias[0] = float("nan")
    for dtype in ("uint8", "float16"):
        with pytest.raises(NonFiniteError, match=r"images 0 … 15 are not finite"):
            fill(tmp_path / dtype, teacher, replace(wanted, dtype=dtype))


def test_the_teacher_is_left_in_its_mode(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    fill(tmp_path, teacher.train(), wanted)
    assert teacher.training


@pytest.mark.parametrize("content", [None, "{", '{"count": 1}', "[]"], ids=str)
def test_what_is_not_a_store_is_refused(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / PLAN).write_text(content)
    with pytest.raises(DataError, match=r"expected a (plan|store of pairs)"):
        PairStore(tmp_path)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected a folder that can be written"):
        fill(tmp_path / "file", teacher, wanted)


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
    tmp_path: Path, teacher: Denoiser, wanted: Plan, monkeypatch: pytest.MonkeyPatch
):
    real, calls = checkpoint.durable.write_file, []

    def write(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint.durable, "write_file", write)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fill(tmp_path, teacher, wanted)
    monkeypatch.undo()
    assert fill(tmp_path, teacher, wanted)[0] == SHARD
    assert len(PairStore(tmp_path)) == COUNT


@pytest.mark.parametrize(
    ("change", "message"),
    [({"count": 0}, "count is 0"), ({"shard": 0}, "shard 0"), ({"dtype": "int8"}, "'int8'")],
    ids=str,
)
def test_impossible_plans_are_refused(wanted: Plan, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(wanted, **change)


def test_a_batch_of_none_is_refused(tmp_path: Path, teacher: Denoiser, wanted: Plan):
    with pytest.raises(ValueError, match="batch is 0"):
        fill(tmp_path, teacher, wanted, batch=0)


def test_a_plan_survives_json(wanted: Plan):
    assert Plan(**json.loads(json.dumps(wanted.__dict__))) == wanted


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_engine_makes_them_where_it_can(teacher: Denoiser, wanted: Plan):
    """Within 1e-5 of torch, which a network that cannot be compiled is left to."""
    compiled, plain = pairs.Tutor(teacher, wanted), pairs.Tutor(teacher.double(), wanted)
    assert isinstance(compiled.runs.net, Network)
    assert plain.runs is teacher
    teacher.float()
    index = noise.addresses(0, 20)
    z, label = wanted.z(index), wanted.label(index)
    expected = samplers.sample(teacher, z, label).clamp(-1, 1)
    found = compiled(index)
    assert not torch.equal(found, expected)  # else torch made both
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_table_of_more_rows_than_it_is_worth_is_left_to_torch(
    teacher: Denoiser, wanted: Plan, monkeypatch: pytest.MonkeyPatch
):
    """3 times of 3 classes and none."""
    monkeypatch.setattr("kdgen.fold.times.MOST_ROWS", 11)
    assert pairs.Tutor(teacher, wanted).runs is teacher
    monkeypatch.setattr("kdgen.fold.times.MOST_ROWS", 12)
    assert pairs.Tutor(teacher, wanted).runs is not teacher or missing()


def test_steps_at_unknown_times_are_left_to_torch(teacher: Denoiser):
    heun = pairs.plan(teacher, COUNT, sampling=Sampling("heun", 3))
    assert pairs.Tutor(teacher, heun).runs is teacher
