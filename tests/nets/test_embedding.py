"""Time, class and augmentation, as each family of networks embeds them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.nets import UNetConfig
from kdgen.nets.embedding import Embedding, Fourier, Waves

Lively = Callable[..., nn.Module]
Small = Callable[..., UNetConfig]
TIME = torch.tensor([999.0, 3.0])


def test_index_999_is_embedded_as_a_float_sine_first():
    """[sin, cos] of t·exp(-ln(1e4)·j/(half - 1)), so column 0 is sin(999)."""
    waves = Waves(4, cos_first=False)(TIME)[0]
    expected = [math.sin(999), math.sin(999 / 1e4), math.cos(999), math.cos(999 / 1e4)]
    assert waves[[0, 3, 4, 7]].tolist() == pytest.approx(expected, abs=1e-6)


def test_adm_has_cosines_first_and_stops_before_its_last_frequency():
    waves = Waves(4, cos_first=True)(TIME)[0]
    slowest = 999 * 1e4 ** (-3 / 4)
    expected = [math.cos(999), math.cos(slowest), math.sin(999), math.sin(slowest)]
    assert waves[[0, 3, 4, 7]].tolist() == pytest.approx(expected, abs=1e-5)


def test_random_frequencies_have_their_scale_and_are_kept():
    waves = Fourier(4096, 16.0)
    assert waves.frequencies.std() == pytest.approx(16, rel=0.05)
    assert set(waves.state_dict()) == {"frequencies"}
    time = torch.tensor([0.25], dtype=torch.float64)
    angle = 2 * math.pi * 0.25 * waves.frequencies.double()
    expected = torch.cat([angle.sin(), angle.cos()])[None]
    torch.testing.assert_close(waves(time), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_random_frequencies_survive_a_narrow_dtype(dtype: torch.dtype):
    """8 bits of 16 cycles a unit would be another frequency."""
    net = nn.Sequential(Fourier(64, 16.0), nn.Linear(128, 1))
    before = net[0].frequencies.clone()
    net.to(dtype)
    assert net[1].weight.dtype == dtype
    assert torch.equal(net[0].frequencies, before)
    assert net.double()[0].frequencies.dtype == torch.float64
    assert net.to(dtype)[0].frequencies.dtype == torch.float32
    assert torch.equal(net[0].frequencies, before)


@pytest.mark.parametrize("name", ["ddpm32", "pd64", "edm32-cond", "adm64", "ncsnpp32"])
def test_the_network_sees_the_waves_of_its_family(small: Small, name: str):
    embedding = Embedding(small(name, classes=0))
    seen: list[Tensor] = []
    embedding.dense1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(TIME, None)
    if name == "ncsnpp32":
        assert isinstance(embedding.waves, Fourier)
        expected = embedding.waves(TIME)
    else:
        expected = Waves(8, cos_first=name == "adm64")(TIME)
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("name", ["pd64", "edm32-cond", "adm64"])
def test_a_class_is_a_one_hot_vector_through_a_linear_layer(
    lively: Lively, small: Small, name: str
):
    embedding = lively(Embedding(small(name))).double()
    layer, time = embedding.label, TIME.double()
    assert (layer.bias is None) == (name == "adm64")
    for label in ([0, 2], [-1, 1]):
        one_hot = (torch.tensor(label)[:, None] == torch.arange(3)).double()
        if name == "edm32-cond":
            one_hot *= math.sqrt(3)
        row = F.linear(one_hot, layer.weight.mT, layer.bias)
        emb = embedding.waves(time)
        if name == "edm32-cond":  # into the waves; the others behind the two layers
            emb = embedding.dense2(F.silu(embedding.dense1(emb + row)))
        else:
            emb = embedding.dense2(F.silu(embedding.dense1(emb))) + row
        said = embedding(time, torch.tensor(label))
        torch.testing.assert_close(said, F.silu(emb), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["ddpm32", "pd64", "edm32-cond", "adm64"])
def test_no_label_is_no_class(lively: Lively, small: Small, name: str):
    embedding = lively(Embedding(small(name, classes=2)))
    said = [embedding(TIME, torch.tensor([k, k])) for k in (-1, 0, 1)]
    assert torch.equal(said[0], embedding(TIME, None))
    assert not any(torch.equal(said[i], said[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_rows_of_adm_classes_begin_as_standard_normals(small: Small):
    weight = Embedding(small("adm64", classes=1000)).label.weight
    assert weight.std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", ["edm32", "ncsnpp32"])
def test_augmentation_labels_join_the_waves(lively: Lively, small: Small, name: str):
    embedding = lively(Embedding(small(name))).double()
    r = torch.Generator().manual_seed(0)
    augment = torch.randn(2, 9, generator=r, dtype=torch.float64)
    time = torch.tensor([0.5, -1.0], dtype=torch.float64)
    plain = embedding(time, None)
    assert torch.equal(embedding(time, None, torch.zeros(2, 9)), plain)
    emb = embedding.waves(time) + augment @ embedding.augment.weight.mT
    expected = F.silu(embedding.dense2(F.silu(embedding.dense1(emb))))
    said = embedding(time, None, augment)
    assert (said - plain).abs().max() > 1e-3
    torch.testing.assert_close(said, expected, rtol=1e-12, atol=1e-12)


def test_a_network_without_augmentations_ignores_their_labels(small: Small):
    embedding = Embedding(small("rf32"))
    assert embedding.augment is None
    assert torch.equal(embedding(TIME, None, torch.ones(2, 9)), embedding(TIME, None))
