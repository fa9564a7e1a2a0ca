"""The tensors of a `UNet2DModel` under the names, and in the order, of our U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kdgen.data.offenders import listing, quoted
from kdgen.foreign.diffusers.architecture import Foreign, Unsupported
from kdgen.nets import UNet, UNetConfig

_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "time_emb_proj": "time",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "shortcut",
}
_ATTENTION = {"group_norm": "norm", "to_out.0": "out"}
_QKV = ("to_q", "to_k", "to_v")
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before 0.17
_ENDS = {
    "time_embedding.linear_1": "embedding.dense1",
    "time_embedding.linear_2": "embedding.dense2",
    "class_embedding": "embedding.label",
    "conv_in": "conv_in",
    "conv_norm_out": "norm_out",
    "conv_out": "conv_out",
}
_KINDS = ("weight", "bias")

Layers = Iterator[tuple[str, tuple[str, ...]]]


def network(foreign: Foreign, tensors: Mapping[str, Tensor]) -> UNet:
    """Our network with these tensors, in their dtype, eval mode. Raises Unsupported naming those
    without a place, those missing and those of another shape."""
    given = {_renamed(name): tensor for name, tensor in tensors.items()}
    with torch.device("meta"):
        wanted = {name: t.shape for name, t in UNet(foreign.config).state_dict().items()}
    found, used = _translated(foreign, given, wanted)
    wrong = [f"{quoted(name)} unexpected" for name in given.keys() - used]
    wrong += [f"{name} missing" for name in wanted.keys() - found.keys()]
    wrong += [
        f"{name} {tuple(t.shape)}, expected {tuple(wanted[name])}"
        for name, t in found.items()
        if t.shape != wanted[name]
    ]
    if wrong:
        raise Unsupported(
            f"diffusers: {len(wrong)} tensors do not fit: {listing(sorted(wrong))}; expected those "
            "of the configuration. Check that both are of one model."
        )
    net = UNet(foreign.config).to(found["conv_in.weight"].dtype)
    net.load_state_dict(found)
    return net.eval()


def exported(net: UNet, foreign: Foreign, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round: our network's tensors under the names, and in the shapes, of `wanted`,
    the tensors of a `UNet2DModel`. Raises Unsupported where one side has what the other has not."""
    given, found = net.state_dict(), dict[str, Tensor]()
    if foreign.swapped:
        first = given["embedding.dense1.weight"]
        given["embedding.dense1.weight"] = torch.cat([*reversed(first.chunk(2, dim=1))], dim=1)
    if (rows := given.get("embedding.label.weight")) is not None:
        given["embedding.label.weight"] = rows[:-1]  # theirs know no "no class"
    for ours, theirs in _layers(foreign.config):
        for kind in _KINDS:
            if (joined := given.pop(f"{ours}.{kind}", None)) is not None:
                names = [f"{layer}.{kind}" for layer in theirs]
                found |= zip(names, joined.chunk(len(names)), strict=True)
    found = {n: _shaped(t, wanted[n].shape if n in wanted else None) for n, t in found.items()}
    wrong = [f"{name} unexpected" for name in (*given, *(found.keys() - wanted.keys()))]
    wrong += [f"{quoted(name)} missing" for name in wanted.keys() - found.keys()]
    wrong += [
        f"{name} {tuple(t.shape)}, expected {tuple(wanted[name].shape)}"
        for name, t in found.items()
        if name in wanted and t.shape != wanted[name].shape
    ]
    if wrong:
        raise Unsupported(
            f"diffusers: {len(wrong)} tensors do not fit: {listing(sorted(wrong))}; expected those "
            "of the configuration. Export to a model of the same one."
        )
    return found


def _translated(
    foreign: Foreign, given: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]
) -> tuple[dict[str, Tensor], set[str]]:
    """Our tensors, and the names of theirs that they are made of."""
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, theirs in _layers(foreign.config):
        for kind in _KINDS:
            names = [f"{layer}.{kind}" for layer in theirs]
            if all(name in given for name in names):
                joined = torch.cat([given[name] for name in names])
                found[f"{ours}.{kind}"] = _shaped(joined, wanted.get(f"{ours}.{kind}"))
                used.update(names)
    if foreign.swapped and (first := found.get("embedding.dense1.weight")) is not None:
        found["embedding.dense1.weight"] = torch.cat([*reversed(first.chunk(2, dim=1))], dim=1)
    if (rows := found.get("embedding.label.weight")) is not None:
        # Their networks know no "no class": it adds nothing.
        found["embedding.label.weight"] = torch.cat([rows, torch.zeros_like(rows[:1])])
    return found, used


def _shaped(tensor: Tensor, shape: torch.Size | None) -> Tensor:
    """A dense layer over pixels as the 1×1 convolution that it is, or the other way round."""
    if shape is not None and tensor.shape[:2] == shape[:2] and tensor.numel() == shape.numel():
        return tensor.reshape(shape)
    return tensor


def _renamed(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 1 and parts[-2] in _OLD:
        parts[-2] = _OLD[parts[-2]]
    return ".".join(parts)


def _layers(config: UNetConfig) -> Layers:
    """(our layer, theirs: several are joined)."""
    yield from ((ours, (theirs,)) for theirs, ours in _ENDS.items())
    each, deepest = config.blocks + 1, len(config.mult) - 1
    inside = config.resample == "block"
    for level in range(deepest + 1):
        down, attends = f"down_blocks.{level}", config.has_attention(level)
        for k in range(config.blocks):
            yield from _block(f"encoder.{level * each + k}", down, k, attends)
        if level < deepest:
            ours = f"encoder.{level * each + config.blocks}.0"
            yield from _resizing(ours, f"{down}.downsamplers.0", inside)
        up = f"up_blocks.{deepest - level}"
        first = (deepest - level) * each
        for k in range(each):
            yield from _block(f"decoder.{first + k}", up, k, attends)
        if level:
            ours = f"decoder.{first + each - 1}.{1 + attends}"
            yield from _resizing(ours, f"{up}.upsamplers.0", inside)
    yield from _residual("middle.0", "mid_block.resnets.0")
    yield from _attention("middle.1", "mid_block.attentions.0")
    yield from _residual("middle.2", "mid_block.resnets.1")


def _block(ours: str, theirs: str, k: int, attends: bool) -> Layers:
    yield from _residual(f"{ours}.0", f"{theirs}.resnets.{k}")
    if attends:
        yield from _attention(f"{ours}.1", f"{theirs}.attentions.{k}")


def _residual(ours: str, theirs: str) -> Layers:
    yield from ((f"{ours}.{v}", (f"{theirs}.{k}",)) for k, v in _RESIDUAL.items())


def _attention(ours: str, theirs: str) -> Layers:
    yield from ((f"{ours}.{v}", (f"{theirs}.{k}",)) for k, v in _ATTENTION.items())
    yield f"{ours}.qkv", tuple(f"{theirs}.{part}" for part in _QKV)


def _resizing(ours: str, theirs: str, inside: bool) -> Layers:
    if inside:
        yield from _residual(ours, theirs)
    else:
        yield f"{ours}.conv", (f"{theirs}.conv",)
