"""`kdgen sample`: the same images whatever the batch, in every format, or a clear refusal."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdgen import checkpoint, data, engine, sample
from kdgen.background import Background
from kdgen.kernels import native


def pixels(path: Path, student: Path, *options: str) -> np.ndarray:
    sample.main(["--checkpoint", str(student), "--n", "20", "--out", str(path), *options])
    return np.load(path)["arr_0"]


def test_the_bundled_student_writes_a_grid_with_no_other_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sample.main(["--fast"])
    assert Image.open("samples.png").size[0] > 64
    said = capsys.readouterr().out
    assert re.search(r"64 images 8x8x1 · NFE 1 · .* images/s · .* · fp32 · batch \d+ · fast", said)


def test_the_bundled_student_is_small_and_has_a_card() -> None:
    size = sum(f.stat().st_size for f in sample.BUNDLED.iterdir())
    assert size <= 2 * 2**20
    card = checkpoint.find(sample.BUNDLED).card
    assert {"recipe", "measures", "data"} <= card.keys()


@pytest.mark.parametrize("fast", [(), ("--fast",)], ids=["plain", "fast"])
def test_batch_changes_no_bit(tmp_path: Path, student: Path, fast: tuple[str, ...]) -> None:
    made = [pixels(tmp_path / f"{b}.npz", student, "--batch", b, *fast) for b in ("20", "7", "1")]
    assert (made[0] == made[1]).all()
    assert (made[0] == made[2]).all()


def test_another_seed_makes_other_images(tmp_path: Path, student: Path) -> None:
    first = pixels(tmp_path / "a.npz", student, "--seed", "0")
    assert (first != pixels(tmp_path / "b.npz", student, "--seed", "1")).mean() > 0.3


def test_fast_and_plain_agree_within_one_grey_level(tmp_path: Path, student: Path) -> None:
    plain = pixels(tmp_path / "plain.npz", student).astype(int)
    fast = pixels(tmp_path / "fast.npz", student, "--fast").astype(int)
    assert abs(plain - fast).max() <= 1


def test_a_zip_can_be_read_back_as_data(tmp_path: Path, student: Path) -> None:
    out = tmp_path / "made.zip"
    sample.main(["--checkpoint", str(student), "--n", "12", "--label", "3", "--out", str(out)])
    images = data.load(out)
    assert len(images) == 12
    assert images.shape == (1, 8, 8)


def test_a_folder_holds_one_png_an_image(tmp_path: Path, student: Path) -> None:
    out = tmp_path / "folder"
    sample.main(["--checkpoint", str(student), "--n", "5", "--label", "3", "--out", str(out)])
    assert sorted(p.name for p in out.glob("*.png")) == [f"{k:06d}.png" for k in range(5)]
    assert data.load(out).labels.tolist() == [3] * 5


def test_bfloat16_stays_close(tmp_path: Path, student: Path) -> None:
    exact = pixels(tmp_path / "a.npz", student, "--fast").astype(float)
    torchs = ("--fast", "--dtype", "bf16", "--engine", "torch")  # the engine may take float32
    rough = pixels(tmp_path / "b.npz", student, *torchs).astype(float)
    assert 0 < abs(exact - rough).mean() < 8


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--n", "0"], 2, "--n is 0"),
        (["--label", "10"], 2, "0 … 9"),
        (["--batch", "0"], 2, "batch is 0"),
        (["--out", "a.jpg"], 2, ".png, .npz, .zip"),
        (["--checkpoint", "nowhere"], 4, "nowhere"),
        (["--stepz", "1"], 2, "--steps"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else None,
)
def test_bad_options_are_refused(  # type: ignore[no-untyped-def]
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, options, code, words
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(sample.main, options, code)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(refused) -> None:  # type: ignore[no-untyped-def]
    assert "sees no GPU" in refused(sample.main, ["--device", "cuda"], 8)


def test_a_damaged_checkpoint_is_named(tmp_path: Path, student: Path, refused) -> None:  # type: ignore[no-untyped-def]
    model = tmp_path / "model"
    checkpoint.save(model, checkpoint.load(student))
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = refused(sample.main, ["--checkpoint", str(model), "--out", str(tmp_path / "x.png")], 4)
    assert "model.safetensors" in said
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why", "the compiled part did not load (no such file)")


def test_required_kernels_that_are_missing_end_it_with_what_to_install(
    tmp_path: Path, student: Path, without_native: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        pixels(tmp_path / "a.npz", student, "--require-kernels")
    assert stopped.value.code == 8
    said = capsys.readouterr().err
    assert re.search(r"kdgen: error: \w+: native kernels are required .*C\+\+ compiler", said)
    assert list(tmp_path.glob("*.npz")) == []


def test_without_the_demand_the_definitions_run(
    tmp_path: Path, student: Path, without_native: None
) -> None:
    pixels(tmp_path / "a.npz", student)


def test_a_mistake_is_not_taken_for_a_missing_kernel(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(sample, "load", broken)
    with pytest.raises(RuntimeError, match="of ours"):
        pixels(tmp_path / "a.npz", student, "--require-kernels")


def test_explain_says_what_runs_and_makes_nothing(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.npz"
    options = ["--checkpoint", str(student), "--out", str(out), "--device", "cpu"]
    sample.main([*options, "--fast", "--explain"])
    assert "CUDA graph  none: the device is cpu" in capsys.readouterr().out
    assert not out.exists()


def test_explain_is_of_the_fast_path(student: Path, refused) -> None:  # type: ignore[no-untyped-def]
    said = refused(sample.main, ["--checkpoint", str(student), "--explain"], 2)
    assert "expected --fast too" in said


def test_the_time_of_writing_is_told_apart(
    tmp_path: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels(tmp_path / "a.npz", student)
    assert re.search(r"images/s · .* · I/O \d+\.\d\d s -> .*a\.npz", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["a.npz", "a.zip", "folder"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_leaves_nothing_half_written(  # type: ignore[no-untyped-def]
    tmp_path: Path, student: Path, monkeypatch, refused, name: str, number: int
) -> None:
    real = Background.add

    def add(self: Background, images, labels) -> None:  # type: ignore[no-untyped-def]
        real(self, images, labels)
        assert any(p.name.startswith(".tmp-") for p in tmp_path.iterdir()) or name == "a.npz"
        signal.raise_signal(number)

    monkeypatch.setattr(Background, "add", add)
    # A shell's background job is started deaf to it.
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    options = ["--n", "20", "--batch", "8", "--out", str(tmp_path / name)]
    try:
        said = refused(sample.main, ["--checkpoint", str(student), *options], 128 + number)
    finally:
        signal.signal(signal.SIGINT, deaf)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert number == signal.SIGINT or "SIGTERM, stopped; nothing is kept" in said


@pytest.mark.parametrize("option", [("--engine", "native"), ("--accuracy", "bf16")], ids=str)
def test_only_the_fast_path_has_an_engine(  # type: ignore[no-untyped-def]
    student: Path, refused, option: tuple[str, str]
) -> None:
    assert "only --fast has an engine" in refused(
        sample.main, ["--checkpoint", str(student), *option], 2
    )


def test_an_engine_that_is_not_there_ends_it_with_what_to_install(  # type: ignore[no-untyped-def]
    student: Path, without_native: None, refused
) -> None:
    options = ["--checkpoint", str(student), "--fast", "--engine", "native", "--explain"]
    said = refused(sample.main, options, 8)
    assert re.search(r"engine: native was asked for .* did not load .*C\+\+ compiler", said)


def test_an_accuracy_can_be_chosen(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if why := engine.missing():
        pytest.skip(why)
    sample.main(["--checkpoint", str(student), "--fast", "--accuracy", "exact", "--explain"])
    assert "class exact: float32, direct; error" in capsys.readouterr().out
