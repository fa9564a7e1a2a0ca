"""`kdgen convert`: networks of EDM's family, checked against a second implementation of them."""

from __future__ import annotations

import hashlib
import math
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import kdgen
from kdgen import checkpoint, cli, convert, foreign
from kdgen.errors import CheckpointError

SOURCE = "raise RuntimeError('the source in the pickle was run')"
SONG = {
    "img_resolution": 8,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 5,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 2,
    "attn_resolutions": [4],
    "dropout": 0.13,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
NCSN = SONG | {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
SHARED = tuple(SONG)[:10]
ADM = {key: SONG[key] for key in SHARED} | {"model_channels": 64, "attn_resolutions": [8, 4]}
ADM |= {"num_blocks": 1, "channel_mult": [1, 2]}
FAMILIES = {
    "ddpmpp": ("SongUNet", SONG),
    "ncsnpp": ("SongUNet", NCSN),
    "adm": ("DhariwalUNet", ADM),
}


# The second implementation: it makes the tensors it needs when it first asks for them.
class Weights(dict):
    def get_(self, name: str, *shape: int) -> Tensor:
        if name not in self:
            r = torch.Generator().manual_seed(len(self))
            w = torch.randn(shape, generator=r) * max(1, math.prod(shape[1:])) ** -0.5
            self[name] = 1 + 0.1 * w if len(shape) == 1 and ".norm" in name else w
        return self[name]


def linear(p: Weights, name: str, x: Tensor, n: int, bias: bool = True) -> Tensor:
    y = x @ p.get_(f"{name}.weight", n, x.shape[1]).T
    return y + p.get_(f"{name}.bias", n) if bias else y


def conv(p: Weights, name: str, x: Tensor, n: int, k: int = 3) -> Tensor:
    w = p.get_(f"{name}.weight", n, x.shape[1], k, k)
    return F.conv2d(x, w, p.get_(f"{name}.bias", n), padding=k // 2)


def norm(p: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    c = x.shape[1]
    g = x.reshape(len(x), min(32, c // 4), -1)
    g = (g - g.mean(2, keepdim=True)) / (g.var(2, keepdim=True, correction=0) + eps).sqrt()
    g = g.reshape(x.shape) * p.get_(f"{name}.weight", c).view(-1, 1, 1)
    return g + p.get_(f"{name}.bias", c).view(-1, 1, 1)


def resized(p: Weights, name: str, x: Tensor, way: str, taps: list[int], pad: int = 1) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    kernel = (row.outer(row) / row.sum() ** 2)[None, None]
    p[f"{name}.resample_filter"] = kernel
    c, pad = x.shape[1], pad * (len(taps) - 1) // 2
    kernel = kernel.repeat(c, 1, 1, 1)
    if way == "down":
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=c)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=c)


class Reference:
    """F(x, noise, label, augment) of Karras et al. 2022, appendix F.7 and their table 7."""

    def __init__(self, kind: str, arguments: dict[str, Any]) -> None:
        self.song, self.a, self.p = kind == "SongUNet", arguments, Weights()
        self.eps, self.gain = (1e-6, 0.5**0.5) if self.song else (1e-5, 1.0)
        self.taps = arguments.get("resample_filter", [1, 1])

    def embedding(self, noise: Tensor, onehot: Tensor, augment: Tensor) -> Tensor:
        p, c = self.p, self.a["model_channels"]
        if self.a.get("embedding_type") == "fourier":
            angle = noise.outer(2 * math.pi * p.get_("map_noise.freqs", c))
        else:
            j = torch.arange(c // 2)
            angle = noise.outer(1e-4 ** (j / (c // 2 - self.song)))
        both = (angle.sin(), angle.cos()) if self.song else (angle.cos(), angle.sin())
        e = torch.cat(both, 1)
        width = e.shape[1]
        e = e + linear(p, "map_augment", augment, width, bias=False)
        if self.song:
            e = e + linear(p, "map_label", onehot * onehot.shape[1] ** 0.5, width)
            return F.silu(linear(p, "map_layer1", F.silu(linear(p, "map_layer0", e, 4 * c)), 4 * c))
        e = linear(p, "map_layer1", F.silu(linear(p, "map_layer0", e, 4 * c)), 4 * c)
        return F.silu(e + linear(p, "map_label", onehot, 4 * c, bias=False))

    def block(
        self, name: str, x: Tensor, emb: Tensor, n: int, way: str = "", attention: bool = False
    ) -> Tensor:
        p, before = self.p, x
        h = F.silu(norm(p, f"{name}.norm0", x, self.eps))
        h = conv(
            p, f"{name}.conv0", resized(p, f"{name}.conv0", h, way, self.taps) if way else h, n
        )
        e = linear(p, f"{name}.affine", emb, n if self.song else 2 * n)[:, :, None, None]
        if self.song:
            h = norm(p, f"{name}.norm1", h + e, self.eps)
        else:
            h = norm(p, f"{name}.norm1", h, self.eps) * (1 + e[:, :n]) + e[:, n:]
        h = conv(p, f"{name}.conv1", F.silu(h), n)
        if way:
            before = resized(p, f"{name}.skip", before, way, self.taps)
        if x.shape[1] != n or (way and self.song):
            before = conv(p, f"{name}.skip", before, n, 1)
        h = (before + h) * self.gain
        return self.attention(name, h) if attention else h

    def attention(self, name: str, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        heads = 1 if self.song else c // 64
        rows = conv(self.p, f"{name}.qkv", norm(self.p, f"{name}.norm2", x, self.eps), 3 * c, 1)
        q, k, v = rows.reshape(b, heads, c // heads, 3, height * width).unbind(3)
        share = torch.einsum("bhcq,bhck->bhqk", q, k / (c // heads) ** 0.5).softmax(3)
        y = torch.einsum("bhqk,bhck->bhcq", share, v).reshape(x.shape)
        return (x + conv(self.p, f"{name}.proj", y, c, 1)) * self.gain

    def shrunk(self, name: str, x: Tensor, n: int) -> Tensor:
        """3×3 and then the filter, which sees what the convolution makes of the zeros around."""
        pad = (len(self.taps) - 1) // 2
        wide = conv(self.p, name, F.pad(x, (pad,) * 4), n)
        return resized(self.p, name, wide, "down", self.taps, pad=0)

    def __call__(self, x: Tensor, noise: Tensor, onehot: Tensor, augment: Tensor) -> Tensor:
        a, p, last = self.a, self.p, len(self.a["channel_mult"]) - 1
        emb, image = self.embedding(noise, onehot, augment), x
        r, c = a["img_resolution"], a["model_channels"]
        x = conv(p, f"enc.{r}x{r}_conv", x, c)
        skips = [x]
        for level, mult in enumerate(a["channel_mult"]):
            size = f"enc.{r >> level}x{r >> level}"
            if level:
                x = self.block(f"{size}_down", x, emb, x.shape[1], "down")
                if a.get("encoder_type") == "residual":
                    image = self.shrunk(f"{size}_aux_residual", image, x.shape[1])
                    x = image = (x + image) * 0.5**0.5
                skips.append(x)
            for k in range(a["num_blocks"]):
                here = r >> level in a["attn_resolutions"]
                x = self.block(f"{size}_block{k}", x, emb, mult * c, attention=here)
                skips.append(x)
        for level in range(last, -1, -1):
            size, n = f"dec.{r >> level}x{r >> level}", a["channel_mult"][level] * c
            if level == last:
                x = self.block(f"{size}_in0", x, emb, n, attention=True)
                x = self.block(f"{size}_in1", x, emb, n)
            else:
                x = self.block(f"{size}_up", x, emb, x.shape[1], "up")
            for k in range(a["num_blocks"] + 1):
                here = r >> level in a["attn_resolutions"]
                here = here and (not self.song or k == a["num_blocks"])
                x = torch.cat([x, skips.pop()], 1)
                x = self.block(f"{size}_block{k}", x, emb, n, attention=here)
        prefix = (f"dec.{r}x{r}_aux_norm", f"dec.{r}x{r}_aux_conv")
        prefix = prefix if self.song else ("out_norm", "out_conv")
        return conv(p, prefix[1], F.silu(norm(p, prefix[0], x, self.eps)), a["out_channels"])


# The pickle: what their classes leave in a file, without their classes.
class Persistent:
    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": name}
        self.meta["state"] = state

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(autouse=True)
def their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that exist while a pickle is written, and that no reader may use."""

    def _reconstruct_persistent_obj(meta):
        raise RuntimeError("their reader was run")

    class EasyDict(dict):
        pass

    for module, thing in (
        ("torch_utils.persistence", _reconstruct_persistent_obj),
        ("dnnlib.util", EasyDict),
    ):
        thing.__module__, thing.__qualname__ = module, thing.__name__
        fake = types.ModuleType(module)
        setattr(fake, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType("parent"))
        monkeypatch.setitem(sys.modules, module, fake)


def module(name: str, tensors: dict[str, Tensor], **more: Any) -> Persistent:
    """A tree of modules by the dots in the names; buffers as EDM has them."""
    own: dict[str, Any] = {"_parameters": OrderedDict(), "_buffers": OrderedDict()}
    below: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        elif first in ("resample_filter", "freqs"):
            own["_buffers"][first] = value
        else:
            own["_parameters"][first] = torch.nn.Parameter(value.clone())
    modules = OrderedDict((key, module("Layer", value)) for key, value in below.items())
    for key in {"enc", "dec"} & modules.keys():
        container = torch.nn.ModuleDict()
        container.__dict__["_modules"] = modules[key].meta["state"]["_modules"]
        modules[key] = container
    state = {"training": False, "skip_scale": np.sqrt(0.5), **own, "_modules": modules, **more}
    return Persistent(name, state)


def call(reference: Reference) -> tuple[tuple[Tensor, ...], Tensor]:
    r = torch.Generator().manual_seed(1)
    side = reference.a["img_resolution"]
    x, noise = torch.randn(3, 3, side, side, generator=r), torch.tensor([-1.2, 0.1, 0.9])
    label, augment = torch.tensor([4, -1, 0]), torch.randn(3, 9, generator=r)
    onehot = F.one_hot(label.clamp(min=0), 5) * (label >= 0)[:, None]
    return (x, noise, label, augment), reference(x, noise, onehot.float(), augment)


def pickled(reference: Reference, kind: str, precond: str = "EDMPrecond", **changes: Any) -> bytes:
    easy = sys.modules["dnnlib.util"].EasyDict
    if not reference.p:
        call(reference)
    inner = module(kind, reference.p, _init_args=(), _init_kwargs=easy(reference.a))
    outer = {"_modules": OrderedDict(model=inner), "_parameters": OrderedDict(), "_buffers": {}}
    outer |= {"sigma_data": 0.5, "sigma_min": 0.0, "sigma_max": float("inf"), **changes}
    return pickle.dumps({"ema": Persistent(precond, outer), "dataset_kwargs": easy(name="x")})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_network_is_the_one_that_was_written(family: str) -> None:
    kind, arguments = FAMILIES[family]
    reference = Reference(kind, arguments)
    (x, noise, label, augment), expected = call(reference)
    model = foreign.denoiser(pickled(reference, kind), "x.pkl")
    found = model.net(x, noise, label, augment)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_its_prediction_is_edms() -> None:
    """Karras et al. 2022, eq. 7 with table 1."""
    reference = Reference("SongUNet", SONG)
    model = foreign.denoiser(pickled(reference, "SongUNet"), "x.pkl")
    x = 3 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, s2 = torch.tensor([0.4, 7.0]).view(2, 1, 1, 1), 0.25
    total = (sigma**2 + s2).sqrt()
    noise, nothing = sigma.flatten().log() / 4, torch.zeros(2, 5)
    raw = reference(x / total, noise, nothing, torch.zeros(2, 9))
    expected = s2 / total**2 * x + sigma * 0.5 / total * raw
    found = model(x, sigma.flatten() / 80).x0
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def test_a_pickle_that_calls_something_else_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for function, arguments in ((open, (str(canary), "w")), (Path.touch, (canary,))):
        with pytest.raises(CheckpointError, match="refused: the file asks for"):
            foreign.denoiser(pickle.dumps({"ema": Call(function, *arguments)}), "x.pkl")
    assert not canary.exists()


def test_a_truncated_file_is_refused_in_one_line() -> None:
    whole = pickled(Reference("SongUNet", SONG), "SongUNet")
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        with pytest.raises(CheckpointError, match=r"x\.pkl: .*; expected a pickle") as caught:
            foreign.denoiser(whole[:n], "x.pkl")
        assert "\n" not in str(caught.value)


def test_a_tensor_too_many_or_too_few_is_named() -> None:
    reference = Reference("SongUNet", SONG)
    call(reference)
    reference.p["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 tensors do not fit: extra\.weight unexpected"):
        foreign.denoiser(pickled(reference, "SongUNet"), "x.pkl")
    del reference.p["extra.weight"], reference.p["enc.4x4_block1.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"fit: enc\.4x4_block1\.qkv\.bias missing"):
        foreign.denoiser(pickled(reference, "SongUNet"), "x.pkl")


def test_another_resampling_filter_is_refused() -> None:
    reference = Reference("SongUNet", SONG)
    call(reference)
    reference.p["enc.4x4_down.conv0.resample_filter"] = torch.ones(1, 1, 2, 2)
    with pytest.raises(CheckpointError, match=r"conv0\.resample_filter unexpected"):
        foreign.denoiser(pickled(reference, "SongUNet"), "x.pkl")


@pytest.mark.parametrize(
    ("kind", "precond", "arguments", "changes", "why"),
    [
        ("SongUNet", "VPPrecond", {}, {}, "VPPrecond, not EDMPrecond"),
        ("SongUNet", "EDMPrecond", {}, {"sigma_data": 1.0}, "sigma_data is 1.0"),
        ("OtherUNet", "EDMPrecond", {}, {}, "'OtherUNet' is unknown"),
        ("SongUNet", "EDMPrecond", {"decoder_type": "skip"}, {}, "decoder 'skip'"),
        ("SongUNet", "EDMPrecond", {"depth": 3}, {}, "unknown arguments: depth"),
        ("SongUNet", "EDMPrecond", {"model_channels": 10**9}, {}, "too large"),
        ("SongUNet", "EDMPrecond", {"model_channels": 10**6}, {}, "do not fit"),
        ("SongUNet", "EDMPrecond", {"model_channels": "x"}, {}, "fit no network"),
        ("SongUNet", "EDMPrecond", {"num_blocks": 10**9}, {}, "num_blocks is 1000000000"),
        ("SongUNet", "EDMPrecond", {"resample_filter": 3}, {}, "not nested as a network"),
        ("SongUNet", "EDMPrecond", {}, {"_modules": 3}, "has no network 'model'"),
    ],
)
def test_what_our_network_is_not_is_refused(kind, precond, arguments, changes, why) -> None:  # type: ignore[no-untyped-def]
    reference = Reference("SongUNet", SONG)
    call(reference)
    reference.a = SONG | arguments
    with pytest.raises(CheckpointError, match=why):
        foreign.denoiser(pickled(reference, kind, precond, **changes), "x.pkl")


def test_the_command_line_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickled(Reference("SongUNet", SONG), "SongUNet")
    (tmp_path / "a.pkl").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kdgen", "convert", "a.pkl", "edm"])
    cli.main()
    convert.main(["a.pkl", "sid", "--sid", "--sigma-init", "4"])
    card = checkpoint.find("edm").card
    assert card["sha256"] == hashlib.sha256(data).hexdigest()
    assert card["source"] == "a.pkl"
    teacher, student = kdgen.load("edm"), kdgen.load("sid")
    assert (teacher.sampling.sampler, teacher.sampling.steps) == ("heun", 18)
    assert student.sampling.times == (4 / 80,)
    assert teacher.net.config() == student.net.config()


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (b"not a pickle", [], 4),
        (None, [], 4),
        (b"", ["--sid", "--sigma-init", "0"], 2),
        (pickle.dumps({"ema": Call(print, "run")}), [], 4),
    ],
)
def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content, options, code
) -> None:  # type: ignore[no-untyped-def]
    if content is not None:
        (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        convert.main([str(tmp_path / "a.pkl"), str(tmp_path / "out"), *options])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    assert said.err.startswith("kdgen: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "out").exists()
