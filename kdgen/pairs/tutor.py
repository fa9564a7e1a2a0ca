"""A teacher that makes the images of pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from kdgen import engine, samplers, solvers
from kdgen.denoiser import Denoiser, Guided
from kdgen.errors import NonFiniteError
from kdgen.pairs.plans import Plan
from kdgen.rows import padded


class Tutor:
    """The images of a plan's pairs, by its teacher; on a CPU the compiled engine runs the network
    where it can, in class "fp32": within 1e-5 of torch, or it warns."""

    def __init__(self, teacher: Denoiser, wanted: Plan) -> None:
        self.wanted = wanted
        self.device = next(iter(teacher.state_dict().values())).device
        self.runs = _compiled(teacher, wanted, self.device) or teacher

    @torch.no_grad()
    def __call__(self, index: Tensor) -> Tensor:
        """Those of pairs index (n,), float32 in [-1, 1] on the CPU. NonFiniteError where the
        teacher gives no numbers."""
        lanes = padded(index)
        z, label = self.wanted.z(lanes).to(self.device), self.wanted.label(lanes)
        label = None if label is None else label.to(self.device)
        training = self.runs.training
        try:
            self.runs.eval()
            images = self._drawn(z, label)[: len(index)]
        finally:
            self.runs.train(training)
        if not images.isfinite().all():
            raise NonFiniteError(
                f"pairs: the teacher's images {int(index[0])} … {int(index[-1])} are not finite; "
                "expected numbers. Check its weights, or sample it with more steps."
            )
        return images.clamp(-1, 1).cpu()

    def _drawn(self, z: Tensor, label: Tensor | None) -> Tensor:
        how = self.wanted.how
        if self.wanted.at is None:
            return samplers.sample(self.runs, z, label, how)
        guided = self.runs if how.guidance == 1.0 else Guided(self.runs, how.guidance)
        return solvers.prediction_along(
            guided, z, how.steps, self.wanted.at, label, grid=how.grid, clip=how.clip
        )


def _compiled(teacher: Denoiser, wanted: Plan, device: torch.device) -> Denoiser | None:
    """For the times of its chain; None where torch has to run it."""
    dtype = next(iter(teacher.state_dict().values())).dtype
    times = samplers.sampled_times(teacher.schedule, wanted.how)
    if times is None or dtype != torch.float32:
        return None
    return engine.taken(teacher, times, engine.Wish(), dtype, device).denoiser
