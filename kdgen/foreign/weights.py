"""The tensors of a DDPM++, NCSN++ or ADM of Karras et al. 2022 under the names, and in the order,
of our U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kdgen.data.offenders import listing, quoted
from kdgen.data.pickles import RefusedPickle
from kdgen.nets import UNet, UNetConfig
from kdgen.nets.blocks import packed

_RESIDUAL = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "shortcut",
}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "out"}
_EMBEDDING = {
    "map_layer0": "embedding.dense1",
    "map_layer1": "embedding.dense2",
    "map_label": "embedding.label",
    "map_augment": "embedding.augment",
}
_FREQUENCIES = ("map_noise.freqs", "embedding.waves.frequencies")
_FILTER = "resample_filter"


def translated(config: UNetConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict, float32. RefusedPickle naming what has no place or is missing."""
    layers = dict(_layers(config))
    wanted = _wanted(config)
    found: dict[str, Tensor] = {}
    wrong = []
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == _FILTER and layer in layers and _is_filter(tensor, config):
            continue
        ours = _FREQUENCIES[1] if name == _FREQUENCIES[0] else f"{layers.get(layer)}.{kind}"
        if ours == "embedding.label.weight":
            tensor = tensor.mT if tensor.dim() == 2 else tensor
        if ours not in wanted:
            wrong.append(f"{quoted(name)} unexpected")
        elif wanted[ours] != tensor.shape:
            size, right = tuple(tensor.shape), tuple(wanted[ours])
            wrong.append(f"{quoted(name)} {size}, expected {right}")
        else:
            found[ours] = _ordered(ours, tensor.float(), config)
    back = {ours: theirs for theirs, ours in layers.items()}
    for ours in wanted.keys() - found.keys() if not wrong else ():
        layer, _, kind = ours.rpartition(".")
        wrong.append(f"{back[layer]}.{kind} missing" if layer in back else f"{ours} missing")
    if wrong:
        raise RefusedPickle(f"{len(wrong)} tensors do not fit: {listing(sorted(wrong))}")
    return found


def _wanted(config: UNetConfig) -> dict[str, torch.Size]:
    """Names and shapes of our state dict; nothing is allocated before it is known to fit."""
    try:
        with torch.device("meta"):
            return {name: t.shape for name, t in UNet(config).state_dict().items()}
    except RuntimeError as error:
        raise RefusedPickle(f"its network is too large ({error})") from None


def _ordered(ours: str, tensor: Tensor, config: UNetConfig) -> Tensor:
    if ".qkv." in ours:
        channels = len(tensor) // 3
        tensor = packed(tensor, channels // (config.head_width or channels))
    return tensor.contiguous()


def _is_filter(tensor: Tensor, config: UNetConfig) -> bool:
    row = torch.tensor(config.filter, dtype=torch.float32)
    kernel = row.outer(row) / row.sum().square()
    return tensor.numel() == kernel.numel() and torch.allclose(tensor.float().squeeze(), kernel)


def _layers(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """(their layer, ours)."""
    yield from _EMBEDDING.items()
    full = f"{config.resolution}x{config.resolution}"
    yield f"enc.{full}_conv", "conv_in"
    song = config.resample == "projected"
    yield (f"dec.{full}_aux_norm" if song else "out_norm"), "norm_out"
    yield (f"dec.{full}_aux_conv" if song else "out_conv"), "conv_out"
    for level in range(1, len(config.mult) if config.pyramid else 0):
        place = level * (config.blocks + 1) - 1
        yield f"enc.{_size(config, level)}_aux_residual", f"pyramid.{place}.conv"
    for theirs, block, attention in _blocks(config):
        yield from ((f"{theirs}.{k}", f"{block}.{v}") for k, v in _RESIDUAL.items())
        if attention:
            yield from ((f"{theirs}.{k}", f"{attention}.{v}") for k, v in _ATTENTION.items())


def _blocks(config: UNetConfig) -> Iterator[tuple[str, str, str]]:
    """(their block, our residual block, our attention or "")."""
    each, deepest = config.blocks + 1, len(config.mult) - 1
    for level in range(deepest + 1):
        size, attends = _size(config, level), config.has_attention(level)
        if level:
            yield f"enc.{size}_down", f"encoder.{level * each - 1}.0", ""
        for k in range(config.blocks):
            ours = f"encoder.{level * each + k}"
            yield f"enc.{size}_block{k}", f"{ours}.0", f"{ours}.1" if attends else ""
        first = (deepest - level) * each
        for k in range(each):
            ours = f"decoder.{first + k}"
            here = attends and (config.decoder_attention == "every" or k == config.blocks)
            yield f"dec.{size}_block{k}", f"{ours}.0", f"{ours}.1" if here else ""
        if level < deepest:
            step = 1 + config.has_attention(level + 1)
            yield f"dec.{size}_up", f"decoder.{first - 1}.{step}", ""
    size = _size(config, deepest)
    yield f"dec.{size}_in0", "middle.0", "middle.1"
    yield f"dec.{size}_in1", "middle.2", ""


def _size(config: UNetConfig, level: int) -> str:
    return f"{config.resolution >> level}x{config.resolution >> level}"
