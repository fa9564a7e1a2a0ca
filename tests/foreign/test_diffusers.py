"""`UNet2DModel` of diffusers as our U-Net: the same function, or every reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdgen
from kdgen import checkpoint, convert
from kdgen.errors import CheckpointError
from kdgen.foreign import diffusers
from kdgen.foreign.diffusers import Unsupported
from kdgen.nets import PRESETS, UNet

Lively = Callable[..., nn.Module]
NAMES = ["small", "modern", "adm", "swapped", "shifted", "attention-above", "one-level"]
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def inputs(net: UNet) -> tuple[Tensor, Tensor, Tensor | None]:
    r = torch.Generator().manual_seed(2)
    x = torch.randn(3, *net.shape, generator=r, dtype=torch.float64)
    time = torch.tensor([0.0, 250.0, 999.0], dtype=torch.float64)
    label = torch.tensor([0, 2, 1]) if net.classes else None
    return x, time, label


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_an_imported_network_is_the_same_function(
    make: Any, lively: Lively, configs: Any, name: str
):
    model = lively(make(configs[name])).double().eval()
    net, foreign = diffusers.net(model)
    x, time, label = inputs(net)
    expected = model(x, time, label, return_dict=False)[0]
    seen = 2 * x - 1 if foreign.centred else x
    assert expected.std() > 0.05
    torch.testing.assert_close(net(seen, time, label), expected, rtol=1e-10, atol=1e-10)


def test_googles_configuration_is_ddpms_network(configs: Any):
    foreign = diffusers.read(configs["ddpm"])
    with torch.device("meta"):
        net, ours = UNet(foreign.config), UNet(PRESETS["ddpm32"])
    shapes, expected = ({n: p.shape for n, p in m.state_dict().items()} for m in (net, ours))
    assert shapes == expected
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    assert (foreign.swapped, foreign.centred) == (False, False)
    assert (foreign.config.waves, foreign.config.down_padding) == ("sin_cos", "after")
    assert foreign.config.norm_eps == PRESETS["ddpm32"].norm_eps


def test_names_from_before_0_17_are_understood(stand_in: Any, lively: Lively, configs: Any):
    model = lively(stand_in(**configs["small"])).double()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = model.state_dict()
    for now, before in old.items():
        tensors = {n.replace(f".{now}.", f".{before}."): t for n, t in tensors.items()}
    assert any(".proj_attn." in name for name in tensors)
    foreign = diffusers.read(configs["small"])
    net = diffusers.weights.network(foreign, tensors)
    expected = diffusers.net(model)[0].state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_network_is_what_was_imported(
    stand_in: Any, lively: Lively, configs: Any, name: str
):
    model = lively(stand_in(**configs[name]))
    net, foreign = diffusers.net(model)
    found = diffusers.exported(net, foreign, model.state_dict())
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("other", ["swapped", "one-level", "modern"])
def test_a_network_is_not_exported_to_another_model(stand_in: Any, configs: Any, other: str):
    model = stand_in(**configs[other])
    foreign = diffusers.read(configs[other])
    net = UNet(diffusers.read(configs["attention-above"]).config)
    with pytest.raises(Unsupported, match="tensors do not fit"):
        diffusers.exported(net, foreign, model.state_dict())


def test_no_class_adds_nothing(stand_in: Any, lively: Lively, configs: Any):
    model = lively(stand_in(**configs["modern"])).double().eval()
    net, _ = diffusers.net(model)
    x, time, _ = inputs(net)
    expected = model(x, time)[0]
    none = torch.full((3,), -1)
    torch.testing.assert_close(net(2 * x - 1, time, none), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu', not 'silu' or 'swish'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"add_attention": False}, "add_attention is False"),
        ({"mid_block_type": None}, "mid_block_type is None"),
        ({"mid_block_scale_factor": 2**0.5}, "mid_block_scale_factor"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attention in the middle has no norm"),
        ({"attn_norm_num_groups": 4}, "attn_norm_num_groups is 4"),
        ({"freq_shift": 0.5}, "freq_shift is 0.5"),
        ({"downsample_padding": 2}, "downsample_padding is 2"),
        ({"block_out_channels": [16, 24]}, "not multiples of the first"),
        ({"block_out_channels": [16, 32, 32]}, "2 blocks go down and 2 up"),
        ({"block_out_channels": []}, "3 of|unsupported"),
        ({"block_out_channels": [0, 0]}, "unsupported"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "not at the same levels"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}, "in 2 ways"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [8, 16]}, "sample_size"),
        ({"sample_size": 7}, "resolution 7 with 2 levels"),
        ({"norm_num_groups": None}, "norm_num_groups is None"),
        ({"attention_head_dim": 5}, "head_width is 5"),
        ({"a_new_option": 1}, "a_new_option is unknown"),
        ({"_class_name": "UNet2DConditionModel"}, "is a UNet2DConditionModel"),
        ({"act_fn": "gelu", "freq_shift": 3}, "2 of UNet2DModel's options"),
    ],
    ids=str,
)
def test_what_ours_cannot_be_is_named(configs: Any, change: dict[str, Any], words: str):
    with pytest.raises(Unsupported, match=words):
        diffusers.read(configs["small"] | change)


def test_tensors_that_do_not_fit_are_named(stand_in: Any, configs: Any):
    tensors = stand_in(**configs["small"]).state_dict()
    foreign = diffusers.read(configs["small"])
    tensors.pop("mid_block.attentions.0.to_k.bias")
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :1]
    tensors["surprise\n"] = torch.zeros(1)
    with pytest.raises(Unsupported) as stop:
        diffusers.weights.network(foreign, tensors)
    said = str(stop.value)
    assert "middle.1.qkv.bias missing" in said
    assert "conv_in.weight (16, 1, 3, 3), expected (16, 3, 3, 3)" in said
    assert r"surprise\n unexpected" in said
    assert "\n" not in said


@torch.no_grad()
@pytest.mark.parametrize("scheduler", [SCHEDULER, None], ids=["scheduler", "alone"])
def test_a_folder_becomes_a_checkpoint_that_predicts_the_same_noise(
    tmp_path: Path, make: Any, saved: Any, lively: Lively, configs: Any, scheduler: Any, capsys: Any
):
    model = lively(make(configs["small"])).eval()
    convert.main([str(saved(model, configs["small"], scheduler)), str(tmp_path / "out")])
    assert "(3, 8, 8), 0 classes" in capsys.readouterr().out
    teacher = kdgen.load(tmp_path / "out")
    x = torch.randn(2, 3, 8, 8)
    expected = model(x, torch.tensor([499.0]), return_dict=False)[0]
    found = teacher(x, 0.5).eps
    torch.testing.assert_close(found, expected.to(found), rtol=1e-4, atol=1e-4)
    assert teacher.sampling.clip == 1.0
    assert checkpoint.find(tmp_path / "out").card["format"] == "diffusers folder"
    images = kdgen.generator(teacher, steps=2)(3)
    assert images.shape == (3, 8, 8, 3)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_the_scheduler_says_what_the_network_predicts(
    stand_in: Any, saved: Any, configs: Any, prediction: str
):
    folder = saved(stand_in(**configs["small"]), configs["small"], None)
    (folder / "scheduler").mkdir()
    told = (
        f'{{"prediction_type": "{prediction}", "num_train_timesteps": 500, "clip_sample": false}}'
    )
    (folder / "scheduler" / "scheduler_config.json").write_text(told)
    teacher = diffusers.denoiser(folder)
    assert teacher.parameterisation == {"sample": "x0", "v_prediction": "v"}[prediction]
    assert teacher.schedule.config()["steps"] == 500
    assert teacher.sampling.clip is None


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "config.json: No such file"),
        ("config.json", "{", "damaged"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", '{"act_fn": "relu"}', "act_fn is 'relu'"),
        ("diffusion_pytorch_model.safetensors", None, "holds no diffusion_pytorch_model"),
        ("diffusion_pytorch_model.safetensors", "nonsense", "model: "),
        ("scheduler_config.json", '{"beta_schedule": "scaled_linear"}', "scaled_linear"),
        ("scheduler_config.json", '{"prediction_type": "flow"}', "prediction_type is 'flow'"),
        ("scheduler_config.json", '{"num_train_timesteps": "x"}', "'x' steps"),
        ("scheduler_config.json", '{"beta_start": -1}', "steps with beta"),
        ("scheduler_config.json", '{"rescale_betas_zero_snr": true}', "rescale_betas"),
    ],
    ids=str,
)
def test_folders_that_cannot_be_used_are_refused(
    stand_in: Any, saved: Any, configs: Any, file: str, content: str | None, words: str
):
    folder = saved(stand_in(**configs["small"]), configs["small"], SCHEDULER)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        diffusers.denoiser(folder)


def test_a_centred_network_is_left_to_accelerate(stand_in: Any, saved: Any, configs: Any):
    folder = saved(stand_in(**configs["modern"]), configs["modern"], None)
    with pytest.raises(CheckpointError, match=r"kdgen.accelerate, which can"):
        diffusers.denoiser(folder)


def test_a_folder_of_nothing_is_refused_by_the_command(tmp_path: Path, capsys: Any):
    with pytest.raises(SystemExit) as stop:
        convert.main([str(tmp_path), str(tmp_path / "out")])
    assert stop.value.code == 4
    assert "holds no diffusion_pytorch_model.safetensors" in capsys.readouterr().err
