"""Tiles come back right and in order, however late a device does its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from kdgen.fast.ring import Ring, regrouped

TILE = 4
SHAPE = (1, 2, 3)


def draw(index: Tensor) -> Tensor:
    return index.view(-1, 1, 1, 1).expand(-1, *SHAPE).float()


class Net:
    """Adds label to noise, into memory that it uses again for every call, as a graph does."""

    def __init__(self) -> None:
        self.images = torch.zeros(TILE, 2, 3, 1, dtype=torch.uint8)
        self.sizes: list[int] = []

    def __call__(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
        assert torch.equal(z[:, 0, 0, 0].long(), index)
        self.sizes.append(len(z))
        value = z if label is None else z + label.view(-1, 1, 1, 1)
        return self.images.copy_(value.permute(0, 2, 3, 1).to(torch.uint8))


def ring(driver: Any, net: Callable[..., Tensor] | None = None) -> Ring:
    return Ring(driver, draw, net or Net(), TILE, SHAPE, torch.device("cpu"))


def values(images: Iterator[Tensor]) -> list[int]:
    parts = list(images)
    return torch.cat([p[:, 0, 0, 0] for p in parts]).tolist() if parts else []


@pytest.mark.parametrize("n", [0, 1, 4, 5, 8, 23])
def test_images_come_in_order_whatever_the_streams_do_first(machine: Any, n: int):
    for seed in range(30):
        assert values(ring(machine(seed)).tiles(n, 10, None)) == list(range(10, 10 + n))


def test_every_image_gets_its_own_label(machine: Any):
    labels = torch.arange(11) * 2
    for seed in range(30):
        found = values(ring(machine(seed)).tiles(11, 0, labels))
        assert found == [3 * k for k in range(11)]


def test_a_machine_that_hears_no_waits_is_found_out(machine: Any):
    """Or the tests above would pass on anything."""
    wrong = 0
    for seed in range(30):
        try:
            found = values(ring(machine(seed, deaf=True)).tiles(23, 0, None))
        except AssertionError:
            found = []
        wrong += found != list(range(23))
    assert wrong > 10


def test_every_tile_is_whole_even_the_last(machine: Any):
    net = Net()
    assert values(ring(machine(), net).tiles(9, 0, None)) == list(range(9))
    assert net.sizes == [TILE] * 3


def test_the_device_has_its_next_tile_before_the_last_one_is_looked_at(machine: Any):
    net = Net()
    tiles = ring(machine(prompt=True), net).tiles(40, 0, None)
    next(tiles)
    assert len(net.sizes) == 2
    next(tiles)
    assert len(net.sizes) == 3


def test_stopping_early_leaves_nothing_on_its_way(machine: Any):
    for seed in range(10):
        driver = machine(seed)
        running = ring(driver)
        tiles = running.tiles(40, 0, None)
        first = next(tiles)
        tiles.close()
        assert not driver.streams[1].queue
        assert running.places == ()
        assert first[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_ends_it_and_nothing_is_on_its_way(machine: Any, error: BaseException):
    class Failing(Net):
        def __call__(self, z: Tensor, label: Tensor | None, index: Tensor) -> Tensor:
            if len(self.sizes) == 3:
                raise error
            return super().__call__(z, label, index)

    driver = machine(prompt=True)
    tiles = ring(driver, Failing()).tiles(40, 0, None)
    assert values(islice(tiles, 2)) == list(range(8))
    with pytest.raises(type(error)):
        next(tiles)
    assert not driver.streams[1].queue


def test_what_was_given_away_is_not_written_again(machine: Any):
    kept = list(ring(machine()).tiles(20, 0, None))
    assert torch.cat(kept)[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize("sizes", [[7, 7, 6], [1] * 20, [20], [3, 9, 8], []], ids=str)
def test_regrouping_keeps_rows_and_asks_late(sizes: list[int]):
    asked = []

    def parts() -> Iterator[Tensor]:
        for k in range(0, 20, 4):
            asked.append(k)
            yield torch.arange(k, k + 4)

    given = 0
    for size, rows in zip(sizes, regrouped(parts(), iter(sizes)), strict=True):
        assert rows.tolist() == list(range(given, given + size))
        given += size
        assert len(asked) == -(-given // 4)
