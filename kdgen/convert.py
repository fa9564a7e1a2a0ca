"""`python -m kdgen.convert`: a network that others trained, as a kdgen checkpoint.

Examples:
  python -m kdgen.convert edm-cifar10-32x32-cond-vp.pkl runs/edm
  python -m kdgen.convert network-snapshot-1.200000-403968.pkl runs/sid --sid
  python -m kdgen.convert ddpm-cifar10-32 runs/ddpm

Pickles of EDM and SiD are read without running the code in them. A folder is a model that diffusers
saved: a UNet2DModel as safetensors, alone or in a pipeline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from kdgen import checkpoint, cli, foreign
from kdgen.denoiser import Denoiser
from kdgen.errors import CheckpointError, UsageError
from kdgen.foreign import edm
from kdgen.foreign.diffusers import folder as diffusers
from kdgen.schedules import EDM


@dataclass(frozen=True)
class Args:
    """Convert a pickle of EDM or SiD, or a folder of diffusers."""

    source: Annotated[Path, tyro.conf.Positional]
    """The .pkl file, or the folder."""
    out: Annotated[Path, tyro.conf.Positional]
    """Directory of the new checkpoint."""
    sid: bool = False
    """The network is a one-step generator of SiD, not a diffusion model."""
    sigma_init: float = 2.5
    """With --sid: standard deviation of the noise that the generator starts from."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    cli.entry(Args, run, argv, "convert")


def run(args: Args) -> None:
    """Convert as the arguments say."""
    if not 0 < args.sigma_init <= EDM().sigma_max:
        raise UsageError(
            f"--sigma-init {args.sigma_init}: out of range; expected above 0 and at most "
            f"{EDM().sigma_max:g}. SiD uses 2.5."
        )
    model, card = _folder(args) if args.source.is_dir() else _pickle(args)
    checkpoint.save(args.out, model, {"source": args.source.name, **card})
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {count:,} parameters, {model.shape}, {model.classes} classes")


def _pickle(args: Args) -> tuple[Denoiser, dict[str, str]]:
    try:
        data = args.source.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{args.source}: {error.strerror}; expected a .pkl file or a folder. Check the path."
        ) from error
    sampling = edm.one_step(args.sigma_init) if args.sid else edm.usual()
    model = foreign.denoiser(data, str(args.source), sampling)
    kind = "SiD pickle" if args.sid else "EDM pickle"
    return model, {"sha256": hashlib.sha256(data).hexdigest(), "format": kind}


def _folder(args: Args) -> tuple[Denoiser, dict[str, str]]:
    if args.sid:
        raise UsageError(
            f"--sid: {args.source} is a folder; expected a pickle of SiD. Leave --sid out."
        )
    model = diffusers.denoiser(args.source)
    data = (diffusers.model_in(args.source) / diffusers.WEIGHTS).read_bytes()
    return model, {"sha256": hashlib.sha256(data).hexdigest(), "format": "diffusers folder"}


if __name__ == "__main__":
    main()
