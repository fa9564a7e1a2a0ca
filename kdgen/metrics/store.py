"""Classifiers on disk: shipped, cached in a run directory, or trained when there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from kdgen.durable import replace_file
from kdgen.errors import CheckpointError
from kdgen.metrics.classifier import Classifier, FeatureNet, Labelled
from kdgen.metrics.fitting import train_classifier

SHIPPED = ("digits",)
ABOUT = ("name", "data", "accuracy", "held_out", "size", "digest")


def classifier_for(images: Labelled, cache: Path | None = None) -> Classifier:
    """The shipped classifier if there is one for these images, else the cached one, else a new one.

    `cache` is the file the new one is kept in; it is used again only for the same images.
    """
    if images.name in SHIPPED:
        shipped = files("kdgen") / "assets" / f"classifier-{images.name}.safetensors"
        found = load(shipped.read_bytes(), str(shipped))
        if found.data == images.digest:
            return found
    if cache is not None and cache.is_file():
        found = load(cache.read_bytes(), str(cache))
        if found.data == images.digest:
            return found
    made = train_classifier(images)
    if cache is not None:
        save(made, cache)
    return made


def save(classifier: Classifier, path: Path) -> None:
    """Write weights and provenance as one safetensors file, atomically."""
    about = {
        "name": classifier.name,
        "data": classifier.data,
        "accuracy": repr(classifier.accuracy),
        "held_out": str(classifier.held_out),
        "size": str(classifier.net.size),
        "digest": classifier.digest,
    }
    about["seal"] = _seal(about)
    tensors = {k: v.detach().cpu().contiguous() for k, v in classifier.net.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, safetensors.torch.save(tensors, metadata=about))


def load(content: bytes, where: str) -> Classifier:
    """The classifier in the bytes of a file that `save` wrote; CheckpointError if it is not one."""
    tensors, about = _read(content, where)
    net = _net_of(tensors, int(about["size"]), where)
    accuracy, held_out = float(about["accuracy"]), int(about["held_out"])
    made = Classifier(net, about["name"], about["data"], accuracy, held_out)
    if made.digest != about["digest"]:
        raise _damaged(where, "its weights do not match their SHA-256")
    return made


def _net_of(tensors: dict[str, Tensor], size: int, where: str) -> FeatureNet:
    """A network for images of this size, with these weights."""
    try:
        first = tensors["convolutions.0.weight"]
        net = FeatureNet(first.shape[1], len(tensors["head.bias"]), size, first.shape[0])
        net.load_state_dict(tensors)
    except (KeyError, RuntimeError, IndexError) as error:
        raise _damaged(where, "its tensors are not those of a FeatureNet") from error
    return net.eval().requires_grad_(False)


def _read(content: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and provenance; CheckpointError unless both are whole."""
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise _damaged(where, f"not a safetensors file ({error})") from error
    length = int.from_bytes(content[:8], "little")
    about: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    missing = [name for name in (*ABOUT, "seal") if name not in about]
    if missing:
        raise _damaged(where, f"its header lacks {', '.join(missing)}")
    if _seal(about) != about["seal"]:
        raise _damaged(where, "its header does not match its SHA-256")
    return tensors, about


def _seal(about: Mapping[str, str]) -> str:
    """SHA-256 over the header, which the weights' own digest does not cover."""
    return hashlib.sha256("\n".join(about[name] for name in ABOUT).encode()).hexdigest()


def _damaged(where: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: {why}; expected a classifier that kdgen saved. "
        "Delete the file to train it again."
    )
