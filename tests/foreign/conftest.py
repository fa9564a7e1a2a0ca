"""A second implementation of diffusers' `UNet2DModel`, by its names and its options."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# google/ddpm-cifar10-32's configuration, then others at a size for tests.
DDPM: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.1",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = DDPM | {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
}
MODERN = {
    "block_out_channels": [16, 16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 2,
    "center_input_sample": True,
    "num_class_embeds": 5,
    "time_embedding_dim": 48,
}
ADM = {
    "block_out_channels": [16, 32],
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "sample_size": 8,
    "num_class_embeds": 3,
}
CONFIGS = {
    "small": SMALL,
    "modern": MODERN,
    "adm": ADM,
    "swapped": SMALL | {"flip_sin_to_cos": True},
    "shifted": SMALL | {"freq_shift": 0, "downsample_padding": 1},
    "attention-above": MODERN
    | {
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"],
        "attention_head_dim": 4,
    },
    "one-level": SMALL
    | {
        "block_out_channels": [16],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
    },
}
USUAL: dict[str, Any] = {
    "attention_head_dim": 8,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "norm_eps": 1e-5,
    "center_input_sample": False,
    "num_class_embeds": None,
    "time_embedding_dim": None,
    "resnet_time_scale_shift": "default",
}


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb: int, facts: Any, resize: str = "") -> None:
        super().__init__()
        groups, eps = facts["norm_num_groups"], facts["norm_eps"]
        self.scaled = facts["resnet_time_scale_shift"] == "scale_shift"
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, c_out * (1 + self.scaled))
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)
        self.resize = {
            "": lambda x: x,
            "down": lambda x: F.avg_pool2d(x, 2),
            "up": lambda x: F.interpolate(x, scale_factor=2.0),
        }[resize]

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(self.resize(F.silu(self.norm1(x))))
        time = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        if self.scaled:
            scale, shift = time.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        x = self.resize(x)
        if hasattr(self, "conv_shortcut"):
            x = self.conv_shortcut(x)
        return x + self.conv2(F.silu(h))


class Attention(nn.Module):
    def __init__(self, c: int, facts: Any) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(facts["norm_num_groups"], c, facts["norm_eps"])
        self.to_q, self.to_k, self.to_v = (nn.Linear(c, c) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(c, c)])
        self.heads = c // (facts["attention_head_dim"] or c)

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).mT
        q, k, v = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        h = (weights @ v).transpose(1, 2).flatten(2)
        return x + self.to_out[0](h).mT.reshape(x.shape)


class Resized(nn.Module):
    def __init__(self, c: int, way: str, padding: int = 0) -> None:
        super().__init__()
        self.way, self.padding = way, padding
        down = way == "down"
        self.conv = nn.Conv2d(c, c, 3, 2 if down else 1, padding if down else 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.way == "up":
            return self.conv(F.interpolate(x, scale_factor=2.0))
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Block(nn.Module):
    def __init__(self, kind: str, widths: list[int], out: int, emb: int, facts: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(w, out, emb, facts) for w in widths)
        if kind.startswith("Attn"):
            self.attentions = nn.ModuleList(Attention(out, facts) for _ in widths)

    def layers(self, x: Tensor, emb: Tensor, k: int) -> Tensor:
        x = self.resnets[k](x, emb)
        return self.attentions[k](x) if hasattr(self, "attentions") else x


class UNet2DModel(nn.Module):
    """The class is known by its name alone."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config
        facts = self.facts = USUAL | config
        widths = list(facts["block_out_channels"])
        emb = facts["time_embedding_dim"] or 4 * widths[0]
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], emb), "linear_2": nn.Linear(emb, emb)}
        )
        if facts["num_class_embeds"]:
            self.class_embedding = nn.Embedding(facts["num_class_embeds"], emb)
        self.conv_in = nn.Conv2d(facts["in_channels"], widths[0], 3, padding=1)
        self._down(widths, emb)
        self.mid_block = nn.Module()
        self.mid_block.resnets = nn.ModuleList(
            Residual(widths[-1], widths[-1], emb, facts) for _ in range(2)
        )
        self.mid_block.attentions = nn.ModuleList([Attention(widths[-1], facts)])
        self._up(widths, emb)
        self.conv_norm_out = nn.GroupNorm(facts["norm_num_groups"], widths[0], facts["norm_eps"])
        self.conv_out = nn.Conv2d(widths[0], facts["out_channels"], 3, padding=1)

    def _down(self, widths: list[int], emb: int) -> None:
        facts, n = self.facts, self.facts["layers_per_block"]
        self.down_blocks = nn.ModuleList()
        for k, (kind, w) in enumerate(zip(facts["down_block_types"], widths, strict=True)):
            before = widths[max(k - 1, 0)]
            block = Block(kind, [before, *[w] * (n - 1)], w, emb, facts)
            if k + 1 < len(widths):
                block.downsamplers = nn.ModuleList([self._resized(w, emb, "down")])
            self.down_blocks.append(block)

    def _up(self, widths: list[int], emb: int) -> None:
        facts, n = self.facts, self.facts["layers_per_block"] + 1
        self.up_blocks = nn.ModuleList()
        back = widths[::-1]
        for k, (kind, w) in enumerate(zip(facts["up_block_types"], back, strict=True)):
            skips = [w] * (n - 1) + [back[min(k + 1, len(back) - 1)]]
            inputs = [back[max(k - 1, 0)], *[w] * (n - 1)]
            block = Block(kind, [a + b for a, b in zip(inputs, skips, strict=True)], w, emb, facts)
            if k + 1 < len(back):
                block.upsamplers = nn.ModuleList([self._resized(w, emb, "up")])
            self.up_blocks.append(block)

    def _resized(self, w: int, emb: int, way: str) -> nn.Module:
        if self.facts.get(f"{way}sample_type") == "resnet":
            return Residual(w, w, emb, self.facts, way)
        return Resized(w, way, self.facts["downsample_padding"])

    def waves(self, time: Tensor) -> Tensor:
        half = self.facts["block_out_channels"][0] // 2
        j = torch.arange(half, dtype=time.dtype)
        angle = time[:, None] * torch.exp(-math.log(1e4) * j / (half - self.facts["freq_shift"]))
        pair = angle.sin(), angle.cos()
        return torch.cat(pair[::-1] if self.facts["flip_sin_to_cos"] else pair, 1)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Any = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        x = 2 * sample - 1 if self.facts["center_input_sample"] else sample
        layers = self.time_embedding
        waves = self.waves(timestep.to(x.dtype).expand(len(x)))
        emb = layers["linear_2"](F.silu(layers["linear_1"](waves)))
        if class_labels is not None:
            emb = emb + self.class_embedding(class_labels)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for k in range(len(block.resnets)):
                skips.append(x := block.layers(x, emb, k))
            if hasattr(block, "downsamplers"):
                skips.append(x := block.downsamplers[0](x, emb))
        x = self.mid_block.resnets[0](x, emb)
        x = self.mid_block.resnets[1](self.mid_block.attentions[0](x), emb)
        for block in self.up_blocks:
            for k in range(len(block.resnets)):
                x = block.layers(torch.cat([x, skips.pop()], 1), emb, k)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x, emb)
        return (self.conv_out(F.silu(self.conv_norm_out(x))),)


def real(config: dict[str, Any]) -> nn.Module:
    """The package's own, whose waves are in float32 unless they are made again."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    options = {k: v for k, v in config.items() if not k.startswith("_")}
    model: nn.Module = diffusers.UNet2DModel(**options)
    twin = UNet2DModel(**config)

    class Waves(nn.Module):
        def forward(self, time: Tensor) -> Tensor:
            return twin.waves(time.double())

    model.time_proj = Waves()
    return model


@pytest.fixture(params=["stand-in", "diffusers"])
def make(request: pytest.FixtureRequest) -> Any:
    """A UNet2DModel of a configuration: ours, and the real one where it is installed."""
    if request.param == "stand-in":
        return lambda config: UNet2DModel(**config)
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    return real


@pytest.fixture
def configs() -> dict[str, dict[str, Any]]:
    return {"ddpm": DDPM, **CONFIGS}


@pytest.fixture
def stand_in() -> type[UNet2DModel]:
    return UNet2DModel


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    """A folder as diffusers saves it."""
    import json

    from safetensors.torch import save_file

    def save(model: nn.Module, config: dict[str, Any], scheduler: dict[str, Any] | None) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        if scheduler is not None:
            (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
        return folder

    return save
