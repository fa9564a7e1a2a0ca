"""Which of our networks a `UNet2DModel`'s configuration means, or all the reasons why none does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdgen.data.offenders import listing, quoted
from kdgen.nets import UNetConfig

# What the constructor takes where a configuration says nothing (diffusers 0.42).
_USUAL: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,  # of the "learned" embedding only
}
_NAME = "UNet2DModel"
# Our word for how a level ends: a strided or plain convolution, or inside a residual block.
_DOWN = {"DownBlock2D": "conv", "AttnDownBlock2D": "", "ResnetDownsampleBlock2D": "block"}
_UP = {"UpBlock2D": "conv", "AttnUpBlock2D": "", "ResnetUpsampleBlock2D": "block"}
_TYPES = {"conv": "conv", "resnet": "block"}  # of a block that leaves it open
_ONLY = {
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": tuple(_TYPES),
    "upsample_type": tuple(_TYPES),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}


class Unsupported(ValueError):
    """A network that ours cannot be."""


@dataclass(frozen=True)
class Foreign:
    """Our description of a `UNet2DModel`, and what no field of it can say."""

    config: UNetConfig
    swapped: bool  # sines and cosines stand the other way round: a matter of weights
    centred: bool  # the network sees 2x − 1


def read(config: Mapping[str, Any]) -> Foreign:
    """Raises Unsupported, naming everything that has no place in our network."""
    said = {key: value for key, value in config.items() if not key.startswith("_")}
    if (name := config.get("_class_name", _NAME)) != _NAME:
        raise Unsupported(
            f"diffusers: the network is a {quoted(str(name))}; expected {_NAME}. Import another "
            "network."
        )
    wrong = [f"{quoted(str(key))} is unknown" for key in sorted(said.keys() - _USUAL.keys())]
    facts = _USUAL | said
    wrong += [
        f"{key} is {quoted(repr(facts[key]))}, not {' or '.join(map(repr, known))}"
        for key, known in _ONLY.items()
        if facts[key] not in known
    ]
    try:
        wrong += _shape_problems(facts)
        found = None if wrong else _foreign(facts)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        wrong.append(str(error))
    if wrong or found is None:
        raise Unsupported(
            f"diffusers: {len(wrong)} of {_NAME}'s options are unsupported: {listing(wrong)}; "
            "expected those that DDPM, improved DDPM and consistency models use. Sample it with "
            "diffusers."
        )
    return found


def _shape_problems(facts: Mapping[str, Any]) -> list[str]:
    """What cannot be said with one list of widths and one of resolutions."""
    wrong = []
    size, widths = facts["sample_size"], tuple(facts["block_out_channels"])
    if isinstance(size, list | tuple):
        size = size[0] if len(set(size)) == 1 else None
    if not isinstance(size, int):
        wrong.append(f"sample_size is {quoted(repr(facts['sample_size']))}, not one number")
    if any(width % widths[0] for width in widths):
        wrong.append(f"block_out_channels are {widths}, not multiples of the first")
    if (wide := facts["time_embedding_dim"]) is not None and wide % widths[0]:
        wrong.append(f"time_embedding_dim is {wide}, not a multiple of {widths[0]}")
    if not isinstance(groups := facts["norm_num_groups"], int):
        wrong.append(f"norm_num_groups is {quoted(repr(groups))}, not a number")
    middle = facts["attn_norm_num_groups"]
    if middle is None and facts["resnet_time_scale_shift"] == "scale_shift":
        wrong.append("the attention in the middle has no norm (attn_norm_num_groups is None)")
    elif middle not in (None, groups):
        wrong.append(f"attn_norm_num_groups is {middle}, not norm_num_groups")
    return wrong + _block_problems(facts)


def _block_problems(facts: Mapping[str, Any]) -> list[str]:
    down, up = tuple(facts["down_block_types"]), tuple(facts["up_block_types"])
    wrong = [f"block {quoted(str(b))} is unknown" for b in down if b not in _DOWN]
    wrong += [f"block {quoted(str(b))} is unknown" for b in up if b not in _UP]
    if not len(down) == len(up) == len(facts["block_out_channels"]):
        wrong.append(f"{len(down)} blocks go down and {len(up)} up")
    if wrong:
        return wrong
    if [_attends(b) for b in down] != [_attends(b) for b in reversed(up)]:
        wrong.append("attention is not at the same levels on the way down and up")
    if len(ways := _ways(facts)) > 1:
        wrong.append(f"levels change size in {len(ways)} ways")
    return wrong


def _attends(block: str) -> bool:
    return block.startswith("Attn")


def _ways(facts: Mapping[str, Any]) -> set[str]:
    """How levels change size; the last of either list changes none."""
    down = {_DOWN[b] or _TYPES[facts["downsample_type"]] for b in facts["down_block_types"][:-1]}
    up = {_UP[b] or _TYPES[facts["upsample_type"]] for b in facts["up_block_types"][:-1]}
    return down | up


def _foreign(facts: Mapping[str, Any]) -> Foreign:
    widths, size = tuple(facts["block_out_channels"]), facts["sample_size"]
    resolution = size if isinstance(size, int) else size[0]
    attention = [resolution >> k for k, b in enumerate(facts["down_block_types"]) if _attends(b)]
    cos_first = facts["freq_shift"] == 0  # which frequencies; our two kinds have their own order
    config = UNetConfig(
        resolution,
        channels=facts["in_channels"],
        out_channels=facts["out_channels"],
        width=widths[0],
        mult=tuple(width // widths[0] for width in widths),
        blocks=facts["layers_per_block"],
        attention=tuple(attention),
        dropout=facts["dropout"],
        classes=facts["num_class_embeds"] or 0,
        groups=facts["norm_num_groups"],
        norm_eps=facts["norm_eps"],
        group_width=1,
        head_width=facts["attention_head_dim"],
        emb_mult=(facts["time_embedding_dim"] or 4 * widths[0]) // widths[0],
        scale_shift=facts["resnet_time_scale_shift"] == "scale_shift",
        resample=next(iter(_ways(facts)), "conv"),
        down_padding="around" if facts["downsample_padding"] else "after",
        waves="cos_sin" if cos_first else "sin_cos",
        init="kaiming",
    )
    return Foreign(config, facts["flip_sin_to_cos"] != cos_first, facts["center_input_sample"])
