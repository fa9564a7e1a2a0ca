"""Which of our networks is meant by the arguments that a DDPM++, NCSN++ or ADM of Karras et al.
2022 (arXiv:2206.00364) was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdgen.data.pickles import RefusedPickle
from kdgen.nets import PRESETS, UNetConfig

_FIELDS = {
    "img_resolution": "resolution",
    "in_channels": "channels",
    "out_channels": "out_channels",
    "label_dim": "classes",
    "augment_dim": "augments",
    "model_channels": "width",
    "channel_mult": "mult",
    "channel_mult_emb": "emb_mult",
    "num_blocks": "blocks",
    "attn_resolutions": "attention",
    "dropout": "dropout",
}
_TRAINING = {"label_dropout"}  # says nothing about the network
_SONG_ONLY = {
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": (1, 1),
}
_NEEDED = ("img_resolution", "in_channels", "out_channels")
# What their constructors take where nothing is said, and what no argument changes.
_FAMILIES = {
    "SongUNet": replace(PRESETS["rf32"], dropout=0.1),
    "DhariwalUNet": replace(PRESETS["adm64"], classes=0, dropout=0.1),
}


def config(name: str, arguments: Mapping[str, Any]) -> UNetConfig:
    """Of the class `name`. Raises RefusedPickle for what our network has not."""
    if name not in _FAMILIES:
        raise RefusedPickle(f"network {name!r} is unknown; it is not {' or '.join(_FAMILIES)}")
    known = {*_FIELDS, *_TRAINING, *(_SONG_ONLY if name == "SongUNet" else ())}
    if wrong := sorted(set(map(str, arguments)) - known):
        raise RefusedPickle(f"{name} has unknown arguments: {', '.join(wrong)}")
    if missing := [key for key in _NEEDED if key not in arguments]:
        raise RefusedPickle(f"{name} lacks arguments: {', '.join(missing)}")
    changes = {ours: arguments[theirs] for theirs, ours in _FIELDS.items() if theirs in arguments}
    if name == "SongUNet":
        changes |= _song(arguments)
    try:
        return replace(_FAMILIES[name], **changes)
    except (TypeError, ValueError, OverflowError) as error:
        raise RefusedPickle(f"{name} has arguments that fit no network ({error})") from None


def _song(arguments: Mapping[str, Any]) -> dict[str, Any]:
    said = {key: arguments.get(key, usual) for key, usual in _SONG_ONLY.items()}
    kinds = (said["embedding_type"], said["channel_mult_noise"])
    if kinds not in (("positional", 1), ("fourier", 2)):
        raise RefusedPickle(f"SongUNet has embedding {kinds}; not positional 1 or fourier 2")
    if said["encoder_type"] not in ("standard", "residual") or said["decoder_type"] != "standard":
        raise RefusedPickle(
            f"SongUNet has encoder {said['encoder_type']!r} and decoder {said['decoder_type']!r}; "
            "not standard or residual, and standard"
        )
    return {
        "waves": "fourier" if said["embedding_type"] == "fourier" else "sin_cos",
        "pyramid": said["encoder_type"] == "residual",
        "filter": tuple(said["resample_filter"]),
    }
