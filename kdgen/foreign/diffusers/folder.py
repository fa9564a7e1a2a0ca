"""A model's folder as diffusers saves it: `config.json` and `diffusion_pytorch_model.safetensors`,
alone or as `unet/` of a pipeline, whose scheduler says what the output means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from kdgen.data.offenders import quoted
from kdgen.denoiser import Denoiser, Sampling
from kdgen.errors import CheckpointError
from kdgen.foreign.diffusers.architecture import Unsupported, read
from kdgen.foreign.diffusers.weights import network
from kdgen.schedules import LinearVP

CONFIG, WEIGHTS, SCHEDULER = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "scheduler_config.json",
)
_PARAMETERISATIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# DDPM's (Ho et al. 2020), where a scheduler's file leaves it out.
_USUAL = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "clip_sample": True,
}
_LARGEST = 2**20  # bytes of a JSON file


def model_in(folder: Path) -> Path:
    """The folder that holds the network: itself, or a pipeline's `unet`."""
    for place in (folder, folder / "unet"):
        if (place / WEIGHTS).is_file():
            return place
    raise CheckpointError(
        f"{folder}: holds no {WEIGHTS}; expected a model that diffusers has saved, as safetensors. "
        "Check the path."
    )


def denoiser(folder: Path) -> Denoiser:
    """The U-Net in the folder, eval mode, on the CPU, sampled by 50 steps of DDIM.

    Without a scheduler beside it, it is taken to predict the noise on DDPM's schedule. Raises
    CheckpointError for what is damaged, and for networks and schedules that ours cannot be.
    """
    place = model_in(folder)
    try:
        foreign = read(_json(place / CONFIG))
        if foreign.centred:
            raise Unsupported(
                "diffusers: the network centres its input (center_input_sample); expected one that "
                "takes it as it is. Use kdgen.accelerate, which can."
            )
        net = network(foreign, load((place / WEIGHTS).read_bytes()))
    except (Unsupported, SafetensorError) as error:
        raise CheckpointError(f"{place}: {error}") from None
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: {error.strerror}; expected a readable file. Check it."
        ) from error
    schedule, parameterisation, sampling = _meaning(_scheduler(folder, place))
    return Denoiser(net.float(), schedule, parameterisation, sampling=sampling).eval()


def _scheduler(folder: Path, place: Path) -> dict[str, Any]:
    """The first scheduler's file that is there; {} without one."""
    for beside in (folder, folder / "scheduler", place, place.parent / "scheduler"):
        if (beside / SCHEDULER).is_file():
            return _json(beside / SCHEDULER)
    return {}


def _meaning(said: Mapping[str, Any]) -> tuple[LinearVP, str, Sampling]:
    facts = {key: said.get(key, usual) for key, usual in _USUAL.items()}
    wrong = [
        f"{key} is {quoted(repr(facts[key]))}"
        for key, known in (
            ("beta_schedule", ("linear",)),
            ("trained_betas", (None,)),
            ("rescale_betas_zero_snr", (False, None)),
            ("prediction_type", tuple(_PARAMETERISATIONS)),
        )
        if facts[key] not in known
    ]
    steps, beta = facts["num_train_timesteps"], (facts["beta_start"], facts["beta_end"])
    numbers = all(isinstance(b, int | float) and 0 < b < 1 for b in beta)
    if not (isinstance(steps, int) and 1 < steps <= 10**6 and numbers):
        wrong.append(f"{quoted(repr(steps))} steps with beta {quoted(repr(beta))}")
    if wrong:
        raise CheckpointError(
            f"{SCHEDULER}: {', '.join(wrong)}; expected a linear schedule, and a network that "
            f"predicts {', '.join(_PARAMETERISATIONS)}. Sample it with diffusers."
        )
    clip = 1.0 if facts["clip_sample"] else None
    sampling = Sampling("ddim", min(50, steps), "stride", clip)
    return LinearVP(steps, beta), _PARAMETERISATIONS[facts["prediction_type"]], sampling


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror}; expected a readable file. Check it."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); expected JSON. Download it again."
        ) from None
    return found
