"""Every family of networks in the small, each in the denoiser that it is used in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from kdgen import nets
from kdgen.denoiser import Denoiser, Sampling
from kdgen.schedules import EDM, Cosine, Flow, LinearVP, NoiseSchedule

Lively = Callable[..., nn.Module]
Use = tuple[NoiseSchedule, str, str]  # schedule, parameterisation, time

_EDM = (EDM(), "edm", "log_sigma")
FAMILIES: dict[str, Use] = {
    "ddpm32": (LinearVP(), "eps", "index"),
    "pd64": (Cosine(), "both", "angle"),
    "edm32": _EDM,
    "edm32-cond": _EDM,
    "adm64": _EDM,
    "ncsnpp32": (EDM(), "consistency", "log_sigma"),
    "rf32": (Flow(), "velocity", "thousandths"),
    "cud28": (Flow(), "velocity", "raw"),
}
USES = FAMILIES | {
    "ddpm64": FAMILIES["ddpm32"],
    "ddpm256": FAMILIES["ddpm32"],
    "pd32": (Cosine(), "v", "angle"),
    "pd128": FAMILIES["pd64"],
    "edm64": _EDM,
    "cudenc32": FAMILIES["pd64"],  # six channels out
    "tiny8": (Cosine(), "x0", "angle"),
    "tiny8-edm": _EDM,
    "tiny8-adm": (LinearVP(), "residual", "index"),
    "tiny16": (LinearVP(), "score", "index"),
    "tiny32": FAMILIES["rf32"],
}


def tiny(name: str) -> nets.UNetConfig:
    """The preset with two levels of one block, 8×8 pixels and at most 3 classes."""
    base = nets.PRESETS[name]
    return replace(
        base,
        resolution=8,
        channels=3,
        width=16,
        mult=(1, 2),
        blocks=1,
        attention=(4,),
        classes=min(base.classes, 3),
        head_width=base.head_width and 8,
        skip_gain=0.75 if name == "cud28" else None,
        outputs=2 if name == "cud28" else 1,
    )


@dataclass(frozen=True)
class Family:
    """A network's name and how it is used."""

    name: str
    lively: Lively

    @property
    def conditional(self) -> bool:
        return tiny(self.name).classes > 0

    def denoiser(self, sampling: Sampling | None = None) -> Denoiser:
        net = self.lively(nets.UNet(tiny(self.name)))
        return Denoiser(net, *USES[self.name], sampling=sampling).eval()

    def labels(self, n: int) -> Tensor | None:
        return torch.tensor([2, 0, -1, 1])[torch.arange(n) % 4] if self.conditional else None


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, lively: Lively) -> Family:
    return Family(request.param, lively)


@pytest.fixture
def families(lively: Lively) -> Callable[[str], Family]:
    return lambda name: Family(name, lively)


@pytest.fixture
def error() -> Callable[..., float]:
    """(plain, folded, t, labels) -> how far x0 and eps of all heads are apart, as a share."""

    def measure(plain: Denoiser, folded: Denoiser, t: float, label: Tensor | None) -> float:
        n = 2 if label is None else len(label)
        dtype = next(plain.parameters()).dtype
        shape = (n, plain.shape[0], 4, 8)  # networks are made of convolutions: any size will do
        x_t = torch.randn(shape, generator=torch.Generator().manual_seed(n))
        x_t = plain.schedule.start(x_t.to(dtype), t)
        with torch.no_grad():
            expected, said = (d.outputs(x_t, t, label) for d in (plain, folded))
        assert len(expected) == len(said)
        return max(
            float((theirs - ours).abs().max() / ours.abs().max())
            for one, two in zip(expected, said, strict=True)
            for ours, theirs in ((one.x0, two.x0), (one.eps, two.eps))
        )

    return measure
