"""The command line of the measurement."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import machine
from . import __doc__ as about
from . import networks, variants
from .measuring import Plan, measure
from .record import FOLDER, Record

DEFAULT = ("ddpm32", "edm32", "digits")
QUICK = ("tiny16", "digits")
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "diffusers")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    a = parser.parse_args(argv)
    try:
        wanted = variants.chosen(a.variants)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(a.threads)
    folder = a.out or (machine.ROOT / "runs" / "peers" if a.quick else FOLDER)
    cpu = torch.device("cpu")
    record = Record(folder / f"{machine.slug(cpu)}.json", _head(cpu))
    with tempfile.TemporaryDirectory(prefix="kdgen-peers-") as made:
        scratch = a.scratch or Path(made)
        for name in a.networks or (QUICK if a.quick else DEFAULT):
            plan = _plan(a, name, wanted)
            measure(name, plan, record, scratch, _facts(plan, argv))
    print(f"results: {record.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_peers",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    families = ", ".join(dict.fromkeys(v.name.partition("-")[0] for v in variants.VARIANTS))
    parser.add_argument(
        "--variants", nargs="+", default=[], help=f"names, or families: {families}; default: all"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(networks.NETWORKS), help="default: all"
    )
    parser.add_argument("--batches", nargs="+", type=_positive, help="default: by network")
    parser.add_argument("--rounds", type=_positive, help="default: 7; 2 if quick")
    parser.add_argument("--threads", type=_positive, default=_cores(), help="default: all cores")
    parser.add_argument(
        "--budget",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for a contestant to start, to be ready at a batch, and for its rounds there",
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks, two rounds")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: benchmarks/results/peers"
    )
    parser.add_argument("--scratch", type=Path, help="keep logs and exported files here")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _cores() -> int:
    """Those that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def _plan(a: argparse.Namespace, name: str, wanted: Sequence[variants.Variant]) -> Plan:
    batches = tuple(sorted(a.batches or networks.BATCHES[name]))
    count = a.rounds or (2 if a.quick else 7)
    return Plan(wanted, batches, count, a.threads, a.budget, tiny=a.quick)


def _head(device: torch.device) -> dict[str, Any]:
    """Of the machine: what else there is to say is said of every network."""
    facts = machine.facts()
    return {"device": machine.name(device), "cpu": facts["cpu"], "native": facts["native"]}


def _facts(plan: Plan, argv: Sequence[str] | None) -> dict[str, Any]:
    said = sys.argv[1:] if argv is None else argv
    return {
        "commit": machine.commit(),
        "command": shlex.join(["python", "-m", "benchmarks.cpu_peers", *said]),
        "versions": {**machine.facts()["versions"], **{p: _version(p) for p in PACKAGES}},
        "threads": plan.threads,
        "rounds": plan.rounds,
        "contestants": [v.name for v in plan.variants],
        "batches": list(plan.batches),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    # Stopped in this way, too, it ends its workers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
