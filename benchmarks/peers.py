"""The same work in plain torch, as one would write it without kdgen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdgen.data import Images
from kdgen.denoiser import Denoiser
from kdgen.nets import UNet
from kdgen.nets.blocks import Attention, ResBlock, rescaled
from kdgen.nets.layers import GroupNorm
from kdgen.training import Training

# ---- ops ------------------------------------------------------------------------------------


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    act: bool,
    more: Tensor | None,
) -> Tensor:
    x = x if more is None else torch.cat([x, more], 1)
    x = x if add is None else x + add[..., None, None]
    y = F.group_norm(x, groups, weight, bias, eps)
    y = y if scale is None else y * (1 + scale[..., None, None])
    y = y if shift is None else y + shift[..., None, None]
    return F.silu(y) if act else y


def bias_residual(x: Tensor, residual: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    y = (x if bias is None else x + bias[:, None, None]) + residual
    return y if scale == 1 else y.mul_(scale)


def scale_input(x: Tensor, c: Tensor, step: Tensor, dtype: torch.dtype, channels: int) -> Tensor:
    y = (x * c.index_select(0, step.reshape(1))).to(dtype)
    return F.pad(y, (0, 0, 0, 0, 0, channels - x.shape[1])) if channels > x.shape[1] else y


def chain_step(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float) -> Tensor:
    p, q, a, b = table.index_select(0, step.reshape(1))[0].unbind()
    result: Tensor = a * x_t + b * (p * x_t + q * raw).clamp(-clip, clip)
    return result


def chain_step_uint8(x_t: Tensor, raw: Tensor, table: Tensor, step: Tensor, clip: float) -> Tensor:
    return to_uint8(chain_step(x_t, raw, table, step, clip))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None) -> Tensor:
    split = [x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3) for x in (q, k, v)]
    y = F.scaled_dot_product_attention(*split, scale=scale)  # (B, heads, pixels, D)
    return y.transpose(1, 2).flatten(2).transpose(1, 2).reshape(q.shape)


def ddim_update(x_t: Tensor, x0: Tensor, a: Any, b: Any, clip: float | None) -> Tensor:
    result: Tensor = a * x_t + b * (x0 if clip is None else x0.clamp(-clip, clip))
    return result


def to_uint8(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def ddim_update_uint8(x_t: Tensor, x0: Tensor, a: Any, b: Any, clip: float | None) -> Tensor:
    return to_uint8(ddim_update(x_t, x0, a, b, clip))


# torch makes as many numbers from a state, not from addresses: less work, and another promise.
def words(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    return torch.randint(0, 1 << 32, (len(index), size), device=index.device)


def uniforms(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    return torch.rand(len(index), size, device=index.device)


def normals(seed: int, stream: int, index: Tensor, size: int) -> Tensor:
    return torch.randn(len(index), size, device=index.device)


OPS: Mapping[str, Callable[..., Tensor]] = {
    "group_norm_silu": group_norm_silu,
    "bias_residual": bias_residual,
    "scale_input": scale_input,
    "chain_step": chain_step,
    "chain_step_uint8": chain_step_uint8,
    "attention": attention,
    "ddim_update": ddim_update,
    "ddim_update_uint8": ddim_update_uint8,
    "to_uint8": to_uint8,
    "philox_uint32": words,
    "philox_uniform": uniforms,
    "philox_normal": normals,
}
SAME_VALUES = (
    "group_norm_silu",
    "bias_residual",
    "attention",
    "scale_input",
    "chain_step",
    "chain_step_uint8",
    "ddim_update",
    "ddim_update_uint8",
    "to_uint8",
)


# ---- networks -------------------------------------------------------------------------------


class PlainNorm(nn.Module):
    """torch's group norm and SiLU, with the weights of one of ours."""

    def __init__(self, ours: GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.act = ours.groups, ours.eps, ours.act
        self.weight, self.bias = ours.weight, ours.bias

    def forward(
        self,
        x: Tensor,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        more: Tensor | None = None,
    ) -> Tensor:
        return group_norm_silu(
            x, self.weight, self.bias, self.groups, self.eps, scale, shift, add, self.act, more
        )


class PlainAttention(nn.Module):
    """torch's attention between the layers of one of ours."""

    def __init__(self, ours: Attention) -> None:
        super().__init__()
        self.heads, self.skip_scale = ours.heads, ours.skip_scale
        self.norm, self.qkv, self.out = PlainNorm(ours.norm), ours.qkv, ours.out

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, 1)
        return rescaled(x + self.out(attention(q, k, v, self.heads, None)), self.skip_scale)


class PlainBlock(nn.Module):
    """One of our residual blocks as one would write it: a concatenation, and sums in two passes."""

    def __init__(self, ours: ResBlock) -> None:
        super().__init__()
        self.ours = ours  # its norms are replaced like all others

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        b = self.ours
        x = x if skip is None else torch.cat([x, skip], 1)
        h = b.conv1(b.resize(b.norm1(x)))
        h = b.conv2(b.dropout(b._timed(h, b.time(emb))))
        return rescaled(b.shortcut(b.resize(x)) + h, b.skip_scale)


def plain(net: UNet) -> UNet:
    """A copy of the network without our kernels."""
    kinds: dict[type, Any] = {
        GroupNorm: PlainNorm,
        Attention: PlainAttention,
        ResBlock: PlainBlock,
    }
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if kind := kinds.get(type(child)):
                setattr(parent, name, kind(child))
    return net


class PlainGenerator:
    """n images of a one-step student, uint8 (n, H, W, C) on the CPU: eager, channels last."""

    def __init__(self, denoiser: Denoiser, batch: int, dtype: torch.dtype) -> None:
        net = plain(denoiser.net).to(dtype, memory_format=torch.channels_last)  # type: ignore[arg-type, call-overload]
        self.denoiser = denoiser.copy(net=net).eval().requires_grad_(False)
        self.batch = batch
        self.device = next(net.parameters()).device

    def __call__(self, n: int) -> Tensor:
        parts = []
        for first in range(0, n, self.batch):
            size = min(self.batch, n - first)
            z = torch.randn(size, *self.denoiser.shape, device=self.device)
            parts.append(self.images(z, self._labels(size)).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def images(self, z: Tensor, label: Tensor | None) -> Tensor:
        """(B, H, W, C) uint8."""
        z = z.contiguous(memory_format=torch.channels_last)
        (start, _), *_ = self.denoiser.schedule.moves(1, self.denoiser.sampling.grid)
        return to_uint8(self.denoiser(z, start, label).x0)

    def _labels(self, size: int) -> Tensor | None:
        classes = self.denoiser.classes
        return torch.randint(classes, (size,), device=self.device) if classes else None


# ---- training -------------------------------------------------------------------------------


def training(
    denoiser: Denoiser, images: Images, training: Training, *, compiled: bool = False
) -> Iterator[Tensor]:
    """Steps of a v-prediction teacher, with fused Adam, clipping and an average of the weights.

    Yields the loss. `compiled`: forward and backward through torch.compile.
    """
    net = plain(denoiser.net).train()  # type: ignore[arg-type]
    student = denoiser.copy(net=net)
    loss_of = torch.compile(_v_loss, dynamic=False) if compiled else _v_loss
    average = denoiser.copy(net=copy.deepcopy(net)).requires_grad_(False)
    adam = torch.optim.AdamW(
        student.parameters(),
        lr=training.lr,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=True,
    )
    weights: list[Tensor] = list(student.parameters())
    kept: list[Tensor] = list(average.parameters())
    bf16 = training.precision == "bf16"
    device = next(net.parameters()).device
    while True:
        adam.zero_grad(set_to_none=True)
        x0, label = images.take(torch.randint(len(images), (training.batch,)))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = loss_of(student, x0, label if student.classes else None)
        loss.backward()
        if training.clip is not None:
            nn.utils.clip_grad_norm_(student.parameters(), training.clip)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, weights, 1 - training.ema.decay)
        yield loss.detach()


def _v_loss(student: Denoiser, x0: Tensor, label: Tensor | None) -> Tensor:
    eps, t = torch.randn_like(x0), 1 - torch.rand(len(x0), device=x0.device)
    alpha, sigma = (c[:, None, None, None] for c in student.schedule.alpha_sigma(t))
    guess = student(alpha * x0 + sigma * eps, t, label).v
    return F.mse_loss(guess, alpha * eps - sigma * x0)
