"""The result file: every figure of every round, by network and contestant.

A run replaces the networks that it measures and leaves the others; each says which commit and
command it is of. A contestant that could not be measured has "failed" with the reason, and so has a
batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdgen import durable

from .. import machine
from ..rows import rounded

SCHEMA = 1
FOLDER = machine.ROOT / "benchmarks" / "results" / "peers"


class Record:
    """`path` holds everything noted so far, at any instant."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        before = json.loads(path.read_text()) if path.exists() else {}
        self.path = path
        self.document = {"schema": SCHEMA, **head, "networks": before.get("networks", {})}

    def network(self, name: str, facts: dict[str, Any]) -> None:
        """Begin it anew."""
        self.document["networks"][name] = {**rounded(facts), "variants": {}}
        self.write()

    def roofs(self, name: str, roofs: dict[str, float]) -> None:
        """The best seen: a roof is what the device can do."""
        known = self.document["networks"][name].setdefault("roofs", {})
        for what, rate in roofs.items():
            known[what] = rounded(max(rate, known.get(what, 0.0)))

    def variant(self, network: str, name: str, **facts: Any) -> None:
        """More about a contestant."""
        rows = self.document["networks"][network]["variants"]
        rows.setdefault(name, {}).update(rounded(facts))
        self.write()

    def batch(self, network: str, name: str, batch: int, **facts: Any) -> None:
        """More about it at one batch."""
        row = self.document["networks"][network]["variants"].setdefault(name, {})
        row.setdefault("batches", {}).setdefault(str(batch), {}).update(rounded(facts))
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.document, indent=1, ensure_ascii=False) + "\n"
        durable.replace_file(self.path, text.encode())
