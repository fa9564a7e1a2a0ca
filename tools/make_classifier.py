"""Train the classifier that ships with kdgen and write it to kdgen/assets.

Only needed when the digits or the network change. A new file has a new SHA-256, and Fréchet
distances on its features do not compare with those on the old one.

    python tools/make_classifier.py
"""

from __future__ import annotations

from pathlib import Path

from kdgen.data import load
from kdgen.metrics import store, train_classifier

ASSETS = Path(__file__).parents[1] / "kdgen" / "assets"


def main() -> None:
    classifier = train_classifier(load("digits"))
    path = ASSETS / "classifier-digits.safetensors"
    store.save(classifier, path)
    print(
        f"{path.name}: {path.stat().st_size:,} bytes, {classifier.accuracy:.2%} on "
        f"{classifier.held_out} held-out images, sha256 {classifier.digest}"
    )


if __name__ == "__main__":
    main()
