"""`python -m kdgen.doctor`: say what works on this machine, what does not, and what to do about it.

Examples:
  python -m kdgen.doctor
  python -m kdgen.doctor --json

Exit code 0 if kdgen can be used, 8 if something essential is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kdgen import cli, diagnosis
from kdgen.diagnosis import Finding
from kdgen.errors import MissingError

if TYPE_CHECKING:
    from kdgen.diagnosis.choices import Choices

MARKS = {"ok": "ok", "note": "--", "missing": "!!"}


@dataclass(frozen=True)
class Args:
    """Say what works on this machine, what does not, and what to do about it."""

    json: bool = False
    """For programs: one JSON object."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; without tyro, which may be what is missing, too."""
    if not diagnosis.has("tyro"):
        run(Args("--json" in (sys.argv[1:] if argv is None else argv)))
        return
    cli.entry(Args, run, argv, "doctor")


def run(args: Args) -> None:
    """Print the findings; exit code 8 if something essential is missing."""
    findings = diagnosis.findings()
    usable = all(f.state != "missing" for f in findings)
    choices, verdict = _choices() if usable else {}, _verdict(findings)
    if args.json:
        found = {"ready": usable, "verdict": verdict, "kernels": choices}
        print(json.dumps(found | {"findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print("\n".join([*_lines(findings), *_table(choices), verdict]))
    if not usable:
        sys.exit(MissingError.exit_code)


def _choices() -> Choices:
    from kdgen.diagnosis.choices import choices  # loads torch, which may be what is missing

    return choices()


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for f in findings:
        lines.append(f"{MARKS[f.state]} {f.topic:<10} {f.text}")
        if f.fix:
            lines.append(f"{'':14}{f.fix[0].upper()}{f.fix[1:]}.")
    return lines


def _table(choices: Choices) -> list[str]:
    """Which backend each op takes by itself."""
    if not choices:
        return []
    devices = list(next(iter(choices.values())))
    lines = [f"{'':3}{'kernels':<20} " + "".join(f"{d:<12}" for d in devices).rstrip()]
    for op, taken in choices.items():
        names = "".join(f"{taken[d]['backend']:<12}" for d in devices).rstrip()
        lines.append(f"{'':5}{op:<18} {names}")
    return lines


def _verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    by_topic = {f.topic: f for f in findings}
    missing = [f for f in findings if f.state == "missing"]
    if missing:
        return "not ready: " + "; ".join(f"{f.topic}: {f.text}" for f in missing)
    without = [f.topic for f in findings if f.fix]
    tail = f"; without {', '.join(without)}" if without else ""
    gpu = by_topic["gpu"].text if by_topic["gpu"].state == "ok" else "no GPU"
    return f"ready: torch {by_topic['torch'].text}; {gpu}{tail}"


if __name__ == "__main__":
    main()
