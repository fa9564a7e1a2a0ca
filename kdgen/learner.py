"""One trained network: its Adam moments and its update, which never asks the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdgen.denoiser import Denoiser
from kdgen.methods.base import Batch

FAULTS = ("", "loss", "gradient")  # what was not finite, by code
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Outcome(NamedTuple):
    """What one update did: scalars on the device.

    Mean loss, global gradient norm before clipping, and a code into FAULTS.
    """

    loss: Tensor
    grad_norm: Tensor
    fault: Tensor


class Learner:
    """Adam on the parameters of these roles that require gradients now; ValueError if none does."""

    def __init__(
        self,
        nets: Mapping[str, Denoiser],
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip: float | None,
    ) -> None:
        self.roles, self._clip = tuple(nets), clip
        self.name = "+".join(nets)
        self.params = {
            n if len(nets) == 1 else f"{role}.{n}": p
            for role, net in nets.items()
            for n, p in net.named_parameters()
            if p.requires_grad
        }
        if not self.params:
            raise ValueError(
                f"fit: no parameter of {self.name} requires gradients; expected some. Call "
                "requires_grad_(True) on it."
            )
        self.lr = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.params.values(),
            lr=self.lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",  # it counts its steps on the device
        )

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    def reset(self) -> None:
        """Forget the moments."""
        self.optimizer.state.clear()

    def update(self, parts: Iterable[Batch], size: int, loss: Callable[[Batch], Tensor]) -> Outcome:
        """One step of Adam on the mean loss of `size` images in parts; none if it is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return self._update(parts, size, loss)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _update(
        self, parts: Iterable[Batch], size: int, loss: Callable[[Batch], Tensor]
    ) -> Outcome:
        total = torch.zeros((), device=self.device)
        for part in parts:
            share = self._checked(loss(part), part).sum() / size
            share.backward()
            total = total + share.detach()
        return self.step(total)

    def step(self, total: Tensor) -> Outcome:
        """One of Adam on the gradients that are there, clipped; none where they or the loss `total`
        are not finite."""
        grads = [p.grad for p in self.params.values() if p.grad is not None]
        if not grads:
            raise ValueError(
                f"fit: the loss does not reach {self.name}; expected gradients. Check its phase."
            )
        norm = torch.nn.utils.get_total_norm(grads)
        fault = torch.where(total.isfinite(), torch.where(norm.isfinite(), 0, 2), 1)
        self._adam(norm, fault)
        return Outcome(total, norm, fault)

    def _checked(self, values: Tensor, part: Batch) -> Tensor:
        if values.shape != part.index.shape or not values.requires_grad:
            raise ValueError(
                f"fit: the loss of {self.name} has shape {tuple(values.shape)}, requires_grad "
                f"{values.requires_grad}; "
                f"expected {tuple(part.index.shape)} and True. Return one value per image."
            )
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _adam(self, norm: Tensor, fault: Tensor) -> None:
        """Fused Adam divides by grad_scale, and does nothing where found_inf is not 0."""
        adam: Any = self.optimizer
        adam.found_inf = (fault != 0).float()
        adam.grad_scale = None if self._clip is None else (norm / self._clip).clamp(min=1).float()
        adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name."""
        state = self.optimizer.state
        return {
            f"{what}/{n}": state[p][what]
            for n, p in self.params.items()
            if p in state
            for what in _MOMENTS
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over moments that `tensors` gave."""
        self.reset()
        for n, p in self.params.items():
            if f"step/{n}" not in tensors:  # it never had a gradient
                continue
            self.optimizer.state[p] = {
                "step": tensors[f"step/{n}"].to(p.device),
                "exp_avg": torch.empty_like(p, requires_grad=False).copy_(tensors[f"exp_avg/{n}"]),
                "exp_avg_sq": torch.empty_like(p, requires_grad=False).copy_(
                    tensors[f"exp_avg_sq/{n}"]
                ),
            }
