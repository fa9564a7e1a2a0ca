"""One op, a few times: what the profiler looks at.

python -m benchmarks.gpu.one group_norm_silu triton 0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from kdgen import kernels

from ..cases import cases
from ..machine import synchronise


def main(argv: Sequence[str]) -> None:
    name, backend, number = argv[0], argv[1], int(argv[2])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    op = next(o for o in kernels.OPS if o.name == name)
    found = cases(name, device, smoke=device.type == "cpu")
    case = found[number % len(found)]
    args = case.make(device, case.dtypes[-1])
    with torch.inference_mode(), kernels.use(f"{name}={backend}"):
        for _ in range(3):
            op(*args)
    synchronise(device)


if __name__ == "__main__":
    main(sys.argv[1:])
