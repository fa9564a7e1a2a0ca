"""Teacher pairs (z, image), made once: sharded, resumable, verified.

Pair i is a function of (teacher weights, sampling, seed, i) alone, so only the image is stored; z
and class are drawn again from their address. A store is a directory with `plan.json` and one
verified checkpoint directory per shard.
"""

from kdgen.pairs.making import generate
from kdgen.pairs.plans import Plan, plan
from kdgen.pairs.store import PairStore
from kdgen.pairs.tutor import Tutor

__all__ = ["PairStore", "Plan", "Tutor", "generate", "plan"]
