"""Networks on a CPU by the compiled engine: Winograd convolutions, a plan for each network.

`taken` folds a denoiser and puts a `Network` in the place of its network; `Wish` says how exact
that is to be, and whether torch may step in. docs/engine.md has the rest.
"""

from kdgen.engine.asking import ENGINES, Wish, missing
from kdgen.engine.building import FOLDS, Taken, network, taken
from kdgen.engine.choice import BOUNDS
from kdgen.engine.network import Network
from kdgen.engine.refusal import Refused
from kdgen.engine.report import Report

__all__ = [
    "BOUNDS",
    "ENGINES",
    "FOLDS",
    "Network",
    "Refused",
    "Report",
    "Taken",
    "Wish",
    "missing",
    "network",
    "taken",
]
