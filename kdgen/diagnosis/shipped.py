"""What comes with kdgen: the digits and a student."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdgen.diagnosis.finding import REINSTALL, Finding, first_line
from kdgen.errors import CheckpointError

ASSETS = Path(__file__).parents[1] / "assets"


def digits(file: Path = ASSETS / "digits.npz") -> Finding:
    """The embedded data set, against the SHA-256 in its attribution."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        notes = file.with_suffix(".md").read_text(encoding="utf-8")
    except Exception as error:  # a damaged archive fails in many ways
        return Finding("digits", "missing", f"{file}: {first_line(error)}", REINSTALL)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() not in notes:
        text = f"{file} is damaged: not the SHA-256 of {file.stem}.md"
        return Finding("digits", "missing", text, REINSTALL)
    return Finding("digits", "ok", f"{len(images):,} images, verified")


def student(folder: Path = ASSETS / "digits-student") -> Finding:
    """The bundled one-step student, loaded as `kdgen.sample` loads it."""
    from kdgen import checkpoint

    if not folder.exists():
        fix = "make your own (make demo) and name it: kdgen.sample --checkpoint"
        return Finding("student", "note", "the bundled one is not here", fix)
    try:
        model = checkpoint.load(folder)
    except CheckpointError as error:
        return Finding("student", "note", first_line(error), REINSTALL)
    size = "x".join(map(str, model.shape))
    count = sum(p.numel() for p in model.parameters())
    return Finding("student", "ok", f"bundled, {size}, {count:,} parameters, verified")
