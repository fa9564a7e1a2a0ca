"""The result file, complete after every figure: the same form that `make bench` writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kdgen import durable

from .. import machine
from ..rows import SCHEMA, Row, rounded


class Record:
    """`path` holds everything noted so far, at any instant. What an earlier stage of the same run
    wrote stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    @classmethod
    def start(cls, path: Path, device: torch.device, *, more: bool = False) -> Record:
        """Begin anew; or, for `more` stages of the same commit on the same device, go on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        record = cls(path)
        before = record.document
        head = {"schema": SCHEMA, "device": machine.name(device), **machine.facts()}
        record.document = {**rounded(head), "roofs": {}, "rows": {}, "stages": {}}
        if more and all(before.get(k) == record.document[k] for k in ("device", "commit")):
            record.document |= {k: before[k] for k in ("roofs", "rows", "stages")}
        record.write()
        return record

    def row(self, row: Row, **more: Any) -> None:
        """`more`: facts that only this kind of row has (energy, error, expected seconds)."""
        said = {"group", "case", "implementation", "dtype", "device"}
        facts = {k: v for k, v in asdict(row).items() if k not in said and v not in (None, 0)}
        self.document["rows"][row.key] = rounded(facts | more)
        self.write()

    def skip(self, key: str, why: str) -> None:
        """A figure that could not be had, and why: it is part of the result."""
        self.document["rows"][key] = {"skipped": why}
        self.write()

    def note(self, stage: str, **facts: Any) -> None:
        self.document["stages"].setdefault(stage, {}).update(rounded(facts))
        self.write()

    def roofs(self, roofs: dict[str, float]) -> None:
        self.document["roofs"].update(rounded(roofs))
        self.write()

    def write(self) -> None:
        text = json.dumps(self.document, indent=1, ensure_ascii=False) + "\n"
        durable.replace_file(self.path, text.encode())
