"""Writing beside generating: in order, bounded, and nothing half-done whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdgen.background import Background
from kdgen.writers import writer


class Slow:
    """Holds every batch until it is let go."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.gate, self.error = threading.Event(), error
        self.taken: list[int] = []
        self.closed = self.aborted = False

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.taken.append(int(images[0, 0, 0, 0]))

    def close(self) -> str:
        self.closed = True
        return "there"

    def abort(self) -> None:
        self.aborted = True


def batch(k: int) -> Tensor:
    return torch.full((2, 4, 4, 1), k, dtype=torch.uint8)


SIZE = batch(0).nbytes


def eventually(true: Callable[[], bool]) -> bool:
    for _ in range(1000):
        if true():
            return True
        time.sleep(0.005)
    return False


def test_adding_does_not_wait_and_order_is_kept():
    slow = Slow()
    background = Background(slow)
    for k in range(20):
        background.add(batch(k), None)
    assert slow.taken == []
    slow.gate.set()
    assert background.close() == "there"
    assert slow.taken == list(range(20))
    assert slow.closed
    assert background.waited < 1


def test_no_more_than_its_room_is_ever_held():
    slow = Slow()
    background = Background(slow, room=3 * SIZE)
    added: list[int] = []

    def add() -> None:
        for k in range(6):
            background.add(batch(k), None)
            added.append(k)

    thread = threading.Thread(target=add)
    thread.start()
    assert eventually(lambda: len(added) == 3)
    time.sleep(0.05)
    assert added == [0, 1, 2]
    slow.gate.set()
    thread.join(10)
    assert added == list(range(6))
    background.close()
    assert background.waited > 0.04


def test_a_batch_larger_than_the_room_still_passes():
    slow = Slow()
    slow.gate.set()
    background = Background(slow, room=1)
    for k in range(3):
        background.add(batch(k), None)
    background.close()
    assert slow.taken == [0, 1, 2]


@pytest.mark.parametrize("when", ["add", "close"])
def test_an_error_of_the_disk_comes_out_of_the_next_call(when: str):
    slow = Slow(OSError(28, "No space left on device"))
    background = Background(slow)
    background.add(batch(0), None)
    slow.gate.set()
    if when == "add":
        assert eventually(lambda: background._error is not None)
        with pytest.raises(OSError, match="No space left"):
            background.add(batch(1), None)
    else:
        with pytest.raises(OSError, match="No space left"):
            background.close()
    background.abort()
    assert (slow.closed, slow.aborted) == (False, True)


def test_an_error_wakes_who_waits_for_room():
    slow = Slow(OSError(28, "No space left on device"))
    background = Background(slow, room=SIZE)
    background.add(batch(0), None)
    threading.Timer(0.05, slow.gate.set).start()
    with pytest.raises(OSError, match="No space left"):
        background.add(batch(1), None)
    background.abort()


def test_aborting_drops_what_waits_and_ends_the_thread():
    slow = Slow()
    background = Background(slow)
    for k in range(5):
        background.add(batch(k), None)
    slow.gate.set()
    background.abort()
    assert slow.aborted
    assert len(slow.taken) < 5
    assert not any(t.name == "kdgen-writer" for t in threading.enumerate())


def test_nothing_was_started_where_nothing_was_added():
    slow = Slow()
    Background(slow).abort()
    assert slow.aborted


@pytest.mark.parametrize("name", ["grid.png", "array.npz", "archive.zip"])
def test_files_are_the_same_as_without_a_thread(tmp_path: Path, name: str):
    r = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (20, 8, 8, 3), generator=r, dtype=torch.uint8)
    labels = torch.arange(20) % 3
    for folder, wrap in (("plain", lambda w: w), ("behind", Background)):
        target = wrap(writer(tmp_path / folder / name, 3, 20))
        for k in range(0, 20, 6):
            target.add(images[k : k + 6], labels[k : k + 6])
        target.close()
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "behind" / name).read_bytes()


def test_an_announced_array_is_numpys_and_holds_no_images_in_memory(tmp_path: Path):
    images = torch.arange(6 * 4 * 4 * 3).to(torch.uint8).view(6, 4, 4, 3)
    streamed, held = writer(tmp_path / "a.npz", n=6), writer(tmp_path / "b.npz")
    for k in range(0, 6, 2):
        streamed.add(images[k : k + 2], None)
        held.add(images[k : k + 2], None)
    assert streamed.held == []  # type: ignore[attr-defined]
    assert (tmp_path / ".tmp-a.npz").exists()
    streamed.close()
    held.close()
    np.savez(tmp_path / "c.npz", arr_0=images.numpy())
    written = [(tmp_path / f"{name}.npz").read_bytes() for name in "abc"]
    assert written[0] == written[1] == written[2]
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], images)


def test_an_array_of_another_length_than_announced_is_an_error(tmp_path: Path):
    target = writer(tmp_path / "a.npz", n=5)
    target.add(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), None)
    with pytest.raises(ValueError, match="4 images were added; expected 5"):
        target.close()
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_is_dropped_midway_leaves_nothing(tmp_path: Path):
    target = writer(tmp_path / "a.npz", n=5)
    target.add(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), None)
    target.abort()
    assert list(tmp_path.iterdir()) == []
