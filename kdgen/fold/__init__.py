"""Exact rewrites of a network that only ever sees a few noise times: smaller, the same images.

`fold` makes a `Folded` denoiser, `explain` says what became of the network, `chain` gives a sampler
the numbers of its steps. Every fold is an identity of real numbers; its weights are computed in
float64 and rounded once.
"""

from kdgen.fold.checking import FoldError, check
from kdgen.fold.explaining import Explanation, explain
from kdgen.fold.folded import Folded
from kdgen.fold.folding import ALL, KNOWN, fold, tabulate
from kdgen.fold.opaque import Opaque
from kdgen.fold.readings import Chain, Reading, chain, reading
from kdgen.fold.times import Constant, FixedTimes, Table, overgrown

__all__ = [
    "ALL",
    "KNOWN",
    "Chain",
    "Constant",
    "Explanation",
    "FixedTimes",
    "FoldError",
    "Folded",
    "Opaque",
    "Reading",
    "Table",
    "chain",
    "check",
    "explain",
    "fold",
    "overgrown",
    "reading",
    "tabulate",
]
