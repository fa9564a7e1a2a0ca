"""Checkpoints alone: what is written, what is refused, what survives."""

from __future__ import annotations

import ast
import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kdgen
from kdgen import checkpoint, durable, nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import CheckpointError
from kdgen.schedules import Cosine


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Denoiser(nets.preset("tiny8", classes=10), Cosine(), "v", sampling=Sampling(steps=7))


def test_a_saved_denoiser_loads_with_equal_weights_and_predictions(tiny, tmp_path):
    for p in tiny.parameters():
        torch.nn.init.normal_(p, std=0.1)
    checkpoint.save(tmp_path / "a", tiny, {"recipe": "tiny"})
    loaded = checkpoint.load(tmp_path / "a")
    assert loaded.config() == tiny.config()
    assert not loaded.training
    assert checkpoint.tensors_digest(loaded.state_dict()) == checkpoint.tensors_digest(
        tiny.state_dict()
    )
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([3, -1])
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.3, label).x0, tiny.eval()(x, 0.3, label).x0)
    assert checkpoint.find(tmp_path / "a").card == {"recipe": "tiny"}


def test_the_files_are_plain_safetensors_and_json_with_the_mode_of_the_umask(tiny, tmp_path):
    old = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "a", tiny)
    finally:
        os.umask(old)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["manifest.json", "model.safetensors"]
    assert {stat.S_IMODE((tmp_path / "a" / f).stat().st_mode) for f in files} == {0o640}
    assert load_file(tmp_path / "a" / "model.safetensors").keys() == tiny.state_dict().keys()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["kdgen"] == kdgen.__version__
    assert (
        manifest["files"]["model.safetensors"]["bytes"]
        == (tmp_path / "a/model.safetensors").stat().st_size
    )


def test_saving_twice_gives_the_same_bytes(tiny, tmp_path):
    checkpoint.save(tmp_path / "a", tiny)
    checkpoint.save(tmp_path / "b", tiny)
    for name in ("manifest.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_channels_last_weights_round_trip(tiny, tmp_path):
    checkpoint.save(tmp_path / "a", tiny.to(memory_format=torch.channels_last))
    checkpoint.load(tmp_path / "a")


def test_saving_replaces_a_checkpoint_and_nothing_else(tiny, tmp_path):
    checkpoint.save(tmp_path / "a", tiny, {"n": 1})
    checkpoint.save(tmp_path / "a", tiny, {"n": 2})
    assert checkpoint.find(tmp_path / "a").card == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"text")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("photos", "file", "fifo", "link"):
        with pytest.raises(CheckpointError, match=name):
            checkpoint.save(tmp_path / name, tiny)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    assert (tmp_path / "file").read_bytes() == b"text"


# Refusals


def test_a_mistyped_path_is_refused_with_what_is_there(tiny, tmp_path):
    for name in ("step-000100", "step-000500"):
        checkpoint.save(tmp_path / "checkpoints" / name, tiny)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint there.*step-000500, step-000100"
    ) as caught:
        checkpoint.load(tmp_path / "checkpoints" / "step-00500")
    assert caught.value.exit_code == 4
    checkpoint.save(tmp_path / "teacher", tiny)
    with pytest.raises(CheckpointError, match=r"Found beside it: teacher"):
        checkpoint.load(tmp_path / "teachr")


def test_an_empty_run_a_file_and_a_strange_folder_are_refused(tiny, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    checkpoint.save(tmp_path / "a", tiny)
    for name, text in (
        ("run", "a run without a checkpoint"),
        ("folder", "manifest.json: missing"),
        ("a/model.safetensors", "is a file; expected a checkpoint directory"),
    ):
        with pytest.raises(CheckpointError, match=text):
            checkpoint.load(tmp_path / name)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{}",
        b"[1]",
        b'"format"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"model_type": "unet", "format": "pt"}',
    ],
    ids=lambda b: repr(b[:20]),
)
def test_a_foreign_manifest_is_refused(tiny, tmp_path, manifest):
    checkpoint.save(tmp_path / "a", tiny)
    (tmp_path / "a" / "manifest.json").write_bytes(manifest)
    with pytest.raises(CheckpointError, match=r"manifest.json"):
        checkpoint.load(tmp_path / "a")


def signed(body):
    return checkpoint.canonical({**body, "digest": checkpoint.digest(body)})


@pytest.mark.parametrize(
    "files", [None, [], {"../evil": {"bytes": 1, "sha256": ""}}, {"a": 3}, {"a": {}}], ids=str
)
def test_a_well_signed_but_strange_manifest_is_refused(tmp_path, files):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_bytes(
        signed({"format": 1, "files": files, "facts": {}})
    )
    with pytest.raises(CheckpointError, match="not laid out as kdgen does"):
        checkpoint.load(tmp_path / "a")


def test_respelling_the_manifest_is_damage_too(tiny, tmp_path):
    """Equal content in other bytes: every byte is vouched for."""
    checkpoint.save(tmp_path / "a", tiny)
    file = tmp_path / "a" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    with pytest.raises(CheckpointError, match="digest differs"):
        checkpoint.load(tmp_path / "a")


def test_shapes_that_do_not_fit_the_config_are_listed_up_to_ten(tiny, tmp_path):
    weights = {n: t[..., None] for n, t in tiny.state_dict().items()}
    facts = {"config": tiny.config(), "weights": {"ema": "model.safetensors"}}
    checkpoint.write(tmp_path / "a", {"model.safetensors": weights}, facts)
    with pytest.raises(
        CheckpointError, match=rf"{len(weights)} tensors do not fit .* and {len(weights) - 10} more"
    ):
        checkpoint.load(tmp_path / "a")
    del weights["net.out.weight" if "net.out.weight" in weights else next(iter(weights))]
    weights["stray"] = torch.zeros(1)
    checkpoint.write(tmp_path / "a", {"model.safetensors": weights}, facts)
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    tiny, tmp_path, value, monkeypatch
):
    next(tiny.parameters()).data.view(-1)[0] = value
    with pytest.raises(CheckpointError, match="not finite: net"):
        checkpoint.save(tmp_path / "a", tiny)
    assert not (tmp_path / "a").exists()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "nonfinite", lambda tensors: [])
        checkpoint.save(tmp_path / "a", tiny)
    with pytest.raises(CheckpointError, match="not finite: net"):
        checkpoint.load(tmp_path / "a")


def test_a_config_that_builds_nothing_is_refused(tiny, tmp_path):
    config = tiny.config()
    for wrong in ({**config, "parameterisation": "w"}, {**config, "net": {"name": "vit"}}, {}):
        facts = {"config": wrong, "weights": {"ema": "model.safetensors"}}
        checkpoint.write(tmp_path / "a", {"model.safetensors": tiny.state_dict()}, facts)
        with pytest.raises(CheckpointError, match="builds no denoiser"):
            checkpoint.load(tmp_path / "a")


def test_a_checkpoint_without_a_denoiser_and_unknown_weights_are_refused(tiny, tmp_path):
    checkpoint.write(tmp_path / "a", {"x.safetensors": {"x": torch.zeros(1)}}, {})
    with pytest.raises(CheckpointError, match="holds no denoiser"):
        checkpoint.load(tmp_path / "a")
    checkpoint.save(tmp_path / "b", tiny)
    with pytest.raises(ValueError, match="expected ema, raw"):
        checkpoint.load(tmp_path / "b", "mean")


# Faults


class Faulty:
    def __init__(self, at, number):
        self.at, self.number, self.count = at, number, 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir"):
            return real

        def call(*args, **options):
            self.count += 1
            if self.count == self.at:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **options)

        return call


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT]
)
def test_an_error_at_any_disk_call_leaves_the_old_or_the_new_checkpoint(
    tmp_path, monkeypatch, number
):
    tensors = {"a.safetensors": {"x": torch.arange(4.0)}, "b.safetensors": {"y": torch.ones(3)}}
    monkeypatch.setattr(durable, "os", count := Faulty(-1, number))
    checkpoint.write(tmp_path / "count", tensors, {"n": 0})
    checkpoint.write(tmp_path / "count", tensors, {"n": 1})
    kept = 0
    for at in range(1, count.count // 2 + 8):
        monkeypatch.setattr(durable, "os", os)
        target = tmp_path / f"at{at}"
        checkpoint.write(target, tensors, {"n": 1})
        monkeypatch.setattr(durable, "os", Faulty(at, number))
        seen = None
        try:
            checkpoint.write(target, tensors, {"n": 2})
        except OSError as error:
            seen = error.errno
        assert seen in (None, number)
        assert checkpoint.find(target).facts["n"] in ((2,) if seen is None else (1, 2))
        kept += seen is not None
        monkeypatch.setattr(durable, "os", os)
        checkpoint.write(target, tensors, {"n": 3})
        assert checkpoint.find(target).facts["n"] == 3
        assert not [
            p for p in tmp_path.iterdir() if p.name.startswith(".") and p.name.endswith(target.name)
        ]
    assert kept > 12


def test_a_failed_save_says_how_much_room_there_was(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "os", Faulty(3, errno.ENOSPC))
    with pytest.raises(
        CheckpointError,
        match=r"could not save a: No space left on device \(needs .* MB, .* MB free",
    ):
        checkpoint.save(tmp_path / "a", tiny)


def test_a_replacement_that_died_between_two_renames_is_still_readable(tiny, tmp_path):
    checkpoint.save(tmp_path / "a", tiny, {"n": 1})
    (tmp_path / "a").rename(tmp_path / ".old-a")
    assert checkpoint.find(tmp_path / "a").card == {"n": 1}
    checkpoint.save(tmp_path / "a", tiny, {"n": 2})
    assert checkpoint.find(tmp_path / "a").card == {"n": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_no_code_from_files_can_run():
    """Nothing here unpickles, evaluates or imports what a file says."""
    for module in (checkpoint, durable):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names |= {
            a.name
            for n in ast.walk(tree)
            if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names
        }
        assert not names & {"pickle", "eval", "exec", "__import__", "import_module", "unpickle"}
        assert "torch.load" not in Path(module.__file__).read_text()
