"""A denoiser whose network was folded for a few times."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from kdgen.denoiser import Denoiser, Levels, Prediction
from kdgen.fold.readings import Reading

_SAME = 1e-6  # relative: float32's rounding of a time, several times over


class Folded(Denoiser):
    """`like` with the network `net`, for `times` (rising) only.

    `places` says how many places of the network each fold changed. `takes_x_t`: the network scales
    its input itself. `share`: where the network gives its share of x0, how x0 and eps follow from
    it. Raises ValueError when asked at another time (given as a float: a tensor's value is on the
    device, and not looked at).
    """

    def __init__(
        self,
        net: nn.Module,
        like: Denoiser,
        times: tuple[float, ...],
        places: dict[str, int],
        *,
        takes_x_t: bool = False,
        share: Reading | None = None,
    ) -> None:
        super().__init__(net, like.schedule, like.parameterisation, like.time, like.sampling)
        self.times, self.places = times, places
        self.takes_x_t, self.share = takes_x_t, share

    @property
    def parts(self) -> int:
        """How many images the network's raw output has for one head."""
        return super().parts if self.share is None else 1

    def outputs(
        self,
        x_t: Tensor,
        t: Tensor | float,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Prediction, ...]:
        """The prediction of every head."""
        if not isinstance(t, Tensor):
            self._check_time(t)
        return super().outputs(x_t, t, label, augment)

    def read(self, x_t: Tensor, raw: Tensor, q: Levels) -> Prediction:
        """What the raw output of one head says: linear in x_t and raw."""
        if self.share is None:
            return super().read(x_t, raw, q)
        (p, p_raw), (e, e_raw) = self.share.x0, self.share.eps
        return Prediction(x_t, p * x_t + p_raw * raw, q, eps=e * x_t + e_raw * raw)

    def scaled(self, x_t: Tensor, q: Levels) -> Tensor:
        """x_t at the size that the network was made for."""
        return x_t if self.takes_x_t else super().scaled(x_t, q)

    def copy(self, **changes: Any) -> Folded:
        """An independent copy of the weights; `net` and `sampling` can be replaced.

        Raises ValueError for other changes: what they mean is in the weights now.
        """
        if refused := changes.keys() - {"net", "sampling"}:
            raise ValueError(
                f"Folded.copy: got {', '.join(sorted(refused))}; expected net or sampling, the "
                "rest is folded into the network. Copy the denoiser and fold again."
            )
        twin = copy.deepcopy(self)
        for name, value in changes.items():
            setattr(twin, name, value)
        return twin.requires_grad_(True)

    def config(self) -> dict[str, Any]:
        """Refused: a description does not make a folded network."""
        raise ValueError(
            "Folded.config: a folded denoiser cannot be kept; expected the one it was made of. "
            "Keep that and fold it again after loading: it takes seconds."
        )

    def _check_time(self, t: float) -> None:
        if not any(math.isclose(t, known, rel_tol=_SAME) for known in self.times):
            shown = ", ".join(f"{known:g}" for known in self.times[:4])
            more = ", …" if len(self.times) > 4 else ""
            raise ValueError(
                f"Folded: t is {t}; expected a time it was folded for: {shown}{more}. Fold again "
                "for the times that you need."
            )
