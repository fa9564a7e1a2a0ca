"""Checkpoints: a directory of safetensors and a manifest that vouches for every byte of them.

`manifest.json` is written last and holds the size and SHA-256 of each file and a digest of itself;
a directory without a manifest that verifies is not a checkpoint. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _parse
from safetensors.torch import save as _render
from torch import Tensor

import kdgen
from kdgen import durable
from kdgen.denoiser import Denoiser
from kdgen.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"
FOLDER = "checkpoints"  # in a run directory
_STEP = re.compile(r"step-(\d{6,})")
_SHOWN = 10  # offenders listed in a message

log = logging.getLogger("kdgen")
Tensors = Mapping[str, Tensor]


def canonical(content: Any) -> bytes:
    """JSON with one spelling: two equal contents give equal bytes."""
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def plain(content: Any) -> Any:
    """The content as JSON can hold it: tuples become lists, NaN and infinities their names."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return content


def digest(content: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(content)).hexdigest()


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 of names, dtypes, shapes and values."""
    h = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        h.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def nonfinite(tensors: Tensors) -> list[str]:
    """Names of tensors that hold NaN or infinity."""
    return [n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been read and verified; `verify` checks its files too."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """What its writer noted beside the tensors."""
        return dict(self.manifest["facts"])

    @property
    def card(self) -> dict[str, Any]:
        """The model card; empty if none was given."""
        return dict(self.facts.get("card") or {})

    def read(self, file: str) -> dict[str, Tensor]:
        """The tensors of one file, from bytes that were just checked against the manifest."""
        try:
            return _parse(self._bytes(file))
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path / file}: {error}; expected safetensors. It was damaged before it was "
                "saved."
            ) from error

    def verify(self) -> Checkpoint:
        """Check every file; raises CheckpointError naming the first one that is not as recorded."""
        for file in self.manifest["files"]:
            self._bytes(file)
        return self

    def _bytes(self, file: str) -> bytes:
        path, files = self.path / file, self.manifest["files"]
        if file not in files:
            raise CheckpointError(
                f"{path}: not in {MANIFEST}; expected one of {', '.join(files)}. Name one."
            )
        recorded = files[file]
        try:
            size = path.stat().st_size if path.is_file() else None
            data = path.read_bytes() if size == recorded["bytes"] else b""
        except OSError as error:
            raise CheckpointError(
                f"{path}: {error.strerror}; expected a readable file. Check it."
            ) from error
        if size is None:
            raise CheckpointError(
                f"{path}: missing; expected {recorded['bytes']} bytes.{others(self.path)}"
            )
        if size != recorded["bytes"]:
            raise CheckpointError(
                f"{path}: damaged, {size} bytes; expected {recorded['bytes']}.{others(self.path)}"
            )
        found = hashlib.sha256(data).hexdigest()
        if found != recorded["sha256"]:
            raise CheckpointError(
                f"{path}: damaged, SHA-256 {found[:12]}…; expected "
                f"{recorded['sha256'][:12]}….{others(self.path)}"
            )
        return data


def write(target: Path, tensors: Mapping[str, Tensors], facts: Mapping[str, Any]) -> Checkpoint:
    """Write `{file: {name: tensor}}` and JSON-able facts as the directory `target`; verify it.

    Raises OSError when the disk refuses, CheckpointError for NaN or infinite values and for a
    target that is something else; what was at `target` before then still is.
    """
    _check_target(target)
    for file, content in tensors.items():
        if bad := nonfinite(content):
            raise CheckpointError(
                f"{target / file}: not finite: {_first(bad)}; expected numbers. Save an earlier "
                "state."
            )
    files: dict[str, dict[str, Any]] = {}
    with durable.new_directory(target) as draft:
        for file, content in tensors.items():
            data = _render({n: t.detach().cpu().contiguous() for n, t in content.items()})
            durable.write_file(draft / file, data)
            files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        body = {"format": FORMAT, "kdgen": kdgen.__version__, "files": files, "facts": dict(facts)}
        durable.write_file(draft / MANIFEST, canonical({**body, "digest": digest(body)}))
    return read(target).verify()


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its manifest verified, its files not yet.

    CheckpointError if it is missing, damaged or foreign.
    """
    path = durable.whole(path)
    file = path / MANIFEST
    if not path.is_dir():
        what = "is a file" if path.exists() else "no checkpoint there"
        raise CheckpointError(f"{path}: {what}; expected a checkpoint directory.{others(path)}")
    try:
        raw = file.read_bytes()
        found = json.loads(raw)
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: missing; expected a kdgen checkpoint.{others(path)}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); expected JSON.{others(path)}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise CheckpointError(
            f"{file}: format {version!r}; expected {FORMAT}, written by kdgen "
            f"{kdgen.__version__}.{others(path)}"
        )
    body = {k: v for k, v in found.items() if k != "digest"}
    if canonical(found) != raw or found.get("digest") != digest(body):
        raise CheckpointError(
            f"{file}: damaged, its digest differs; expected as written.{others(path)}"
        )
    if not _well_formed(body):
        raise CheckpointError(
            f"{file}: not laid out as kdgen does; expected plain file names, sizes and digests."
        )
    return Checkpoint(path, body)


def name_of(step: int) -> str:
    """Of the checkpoint taken after `step` steps."""
    return f"step-{step:06d}"


def steps(folder: Path) -> list[Path]:
    """The `step-…` directories in `folder`, newest first; not verified."""
    if not folder.is_dir():
        return []
    found = [
        (int(m[1]), p) for p in folder.iterdir() if (m := _STEP.fullmatch(p.name)) and p.is_dir()
    ]
    return [p for _, p in sorted(found, reverse=True)]


def newest(folder: Path, run: str | None = None) -> Checkpoint | None:
    """The newest checkpoint in `folder` that verifies (and belongs to `run`); None if empty.

    Each one passed over is a warning; CheckpointError if all are.
    """
    listed = steps(folder)
    problems = []
    for path in listed:
        try:
            checkpoint = read(path).verify()
            _check_owner(checkpoint, run)
        except CheckpointError as error:
            problems.append((path, str(error)))
            continue
        for damaged, problem in problems:
            if damaged.exists():  # else the run has retired it meanwhile
                log.warning("%s Using %s instead.", problem, path.name)
        return checkpoint
    if listed and listed != steps(folder):
        return newest(folder, run)  # the run has moved on while we were reading
    if problems:
        raise CheckpointError(
            f"{folder}: none of {len(problems)} checkpoints can be used; expected one. "
            + " ".join(text for _, text in problems[:_SHOWN])
        )
    return None


def find(path: str | Path) -> Checkpoint:
    """The verified checkpoint at `path`, or the newest good one of the run at `path`."""
    path = Path(path)
    for folder in (path / FOLDER, path):
        if steps(folder) and not (path / MANIFEST).exists():
            found = newest(folder)
            assert found is not None
            return found
    if (path / FOLDER).is_dir():
        raise CheckpointError(
            f"{path}: a run without a checkpoint; expected at least one. Train it first."
        )
    return read(path).verify()


def save(path: str | Path, denoiser: Denoiser, card: Mapping[str, Any] | None = None) -> None:
    """Write the denoiser as the checkpoint directory `path`, replacing a checkpoint that is there.

    `card` is a JSON-able model card kept with it. Raises CheckpointError when it cannot be written.
    """
    path = Path(path)
    facts = {
        "config": denoiser.config(),
        "weights": {"ema": "model.safetensors"},
        "card": dict(card or {}),
    }
    weights = denoiser.state_dict()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, {"model.safetensors": weights}, facts)
    except OSError as error:
        raise refused(path, error, size_of({"": weights})) from error


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    build: Callable[[dict[str, Any]], Denoiser] | None = None,
) -> Denoiser:
    """The denoiser in a checkpoint, or in a run's newest good one; eval mode, on the CPU.

    Of a run it is the student: its average, or its raw weights. `build` makes an untrained denoiser
    from a config and defaults to `kdgen.nets.denoiser`; give it for networks of your own. Raises
    CheckpointError.
    """
    found = find(path)
    try:
        return _loaded(found, weights, build)
    except CheckpointError:
        newer = find(path)
        if newer.path == found.path:
            raise
        return _loaded(newer, weights, build)  # a trainer has saved, and removed what was found


def _loaded(
    found: Checkpoint,
    weights: Literal["ema", "raw"],
    build: Callable[[dict[str, Any]], Denoiser] | None,
) -> Denoiser:
    facts = found.facts
    if not {"config", "weights"} <= facts.keys():
        raise CheckpointError(
            f"{found.path}: holds no denoiser; expected one. Load it with what wrote it."
        )
    files = facts["weights"]
    if weights not in ("ema", "raw"):
        raise ValueError(f"load: unknown weights {weights!r}; expected ema, raw. Pick one.")
    file = files.get(weights) or next(iter(files.values()))
    denoiser = _built(found, build)
    fill(denoiser, found.read(file), str(found.path / file))
    return denoiser.eval()


def fill(denoiser: Denoiser, tensors: Tensors, where: str) -> None:
    """Copy tensors into the denoiser.

    CheckpointError if names or shapes differ or a value is not finite.
    """
    wanted = denoiser.state_dict()
    wrong = [f"{n} missing" for n in wanted if n not in tensors]
    wrong += [f"{n} unexpected" for n in tensors if n not in wanted]
    wrong += [
        f"{n} {tuple(t.shape)}, expected {tuple(wanted[n].shape)}"
        for n, t in tensors.items()
        if n in wanted and t.shape != wanted[n].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} tensors do not fit the network: {_first(wrong)}; expected "
            "those of its config. "
            "Use the checkpoint's own config."
        )
    if bad := nonfinite(tensors):
        raise CheckpointError(
            f"{where}: not finite: {_first(bad)}; expected numbers. Use an earlier checkpoint."
        )
    denoiser.load_state_dict(dict(tensors))


def size_of(tensors: Mapping[str, Tensors]) -> int:
    """Bytes of all tensors."""
    return sum(
        t.numel() * t.element_size() for content in tensors.values() for t in content.values()
    )


def refused(target: Path, error: OSError, size: int) -> CheckpointError:
    """What to say when the disk said no."""
    return CheckpointError(
        f"could not save {target.name}: {error.strerror or error} (needs {_mb(size)}, "
        f"{_mb(free(target.parent))} free "
        f"in {target.parent}); expected it to be written.{others(target)}"
    )


def free(folder: Path) -> int:
    """Bytes free on the file system that holds `folder`; 0 if it cannot be asked."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def others(path: Path) -> str:
    """A hint that lists the checkpoints beside `path`."""
    parent = path.parent
    names = [p.name for p in steps(parent) if p != path]
    if not names and parent.is_dir():
        names = sorted(
            {p.parent.name for what in (MANIFEST, FOLDER) for p in parent.glob(f"*/{what}")}
        )
        names = [n for n in names if n != path.name and not n.startswith(".")]
    return f" Found beside it: {_first(names)}." if names else ""


def _check_owner(checkpoint: Checkpoint, run: str | None) -> None:
    owner = checkpoint.facts.get("run")
    if run is not None and owner != run:
        raise CheckpointError(
            f"{checkpoint.path}: belongs to run {owner}; expected run {run}. Move it away."
        )
    step = checkpoint.facts.get("step")
    if step is not None and name_of(step) != checkpoint.path.name:
        raise CheckpointError(
            f"{checkpoint.path}: holds step {step}; expected the step of its name. Move it away."
        )


def _well_formed(body: Mapping[str, Any]) -> bool:
    files = body.get("files")
    return (
        isinstance(body.get("facts"), dict)
        and isinstance(files, dict)
        and all(Path(name).name == name for name in files)
        and all(isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in files.values())
    )


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(
            f"{target}: exists and is no directory; expected a new name. Choose another."
        )
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise CheckpointError(
            f"{target}: holds other files; expected a checkpoint or nothing. Choose another name."
        )


def _built(found: Checkpoint, build: Callable[[dict[str, Any]], Denoiser] | None) -> Denoiser:
    if build is None:
        from kdgen import nets

        build = nets.denoiser
    try:
        return build(found.facts["config"])
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{found.path / MANIFEST}: its config builds no denoiser ({error}); expected a config "
            "of kdgen "
            f"{kdgen.__version__}. Pass build= for a network of your own."
        ) from error


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
