"""What `load` takes its argument for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdgen.data import load
from kdgen.errors import DataError

Picture = Callable[..., bytes]
Folder = Callable[[dict[str, bytes]], Path]


def refusal(spec: str | Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(spec, **options)
    assert "; expected " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["digts", "digit", "Digits"])
def test_a_misspelt_name_gets_the_nearest_one(name: str):
    assert "Did you mean 'digits'?" in refusal(name)


@pytest.mark.parametrize("name", ["nowhere/at/all", "with\0nul", "x" * 5000, ""])
def test_a_path_that_does_not_exist_is_refused(name: str):
    text = refusal(name or "nothing")
    assert "'digits'" in text
    assert text.isprintable()
    assert len(text) < 400


def test_a_folder_named_like_a_built_in_set_is_reached_by_its_path(
    picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Path("digits/a.png").write_bytes(picture())
    assert len(load("./digits")) == 1
    assert len(load(Path("digits"))) == 1
    assert len(load("digits")) == 1797


def test_a_single_image_and_unknown_files_are_refused(picture: Picture, folder: Folder):
    path = folder({"a.png": picture(), "b.npz": b"PK"})
    assert "a folder of images" in refusal(path / "a.png")
    assert "a folder of images" in refusal(path / "b.npz")


def test_only_cifar10_has_a_test_split(picture: Picture, folder: Folder):
    assert "no test split" in refusal("digits", split="test")
    assert "no test split" in refusal(folder({"a.png": picture()}), split="test")


def test_an_unknown_split_is_an_argument_mistake():
    with pytest.raises(ValueError, match="'train' or 'test'"):
        load("digits", split="validation")


def test_importing_the_data_part_does_not_import_pillow():
    code = "import sys, kdgen.data; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
