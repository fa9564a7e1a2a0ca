"""Makes kdgen/assets/digits.npz from the copy of the UCI digits in scikit-learn.

    python3 -m venv digits-venv && digits-venv/bin/pip install scikit-learn
    digits-venv/bin/python tools/make_digits.py

The bytes of the file depend on the zlib in use; its content does not (tests/data/test_digits.py).
"""

import hashlib
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

OUT = Path(__file__).parents[1] / "kdgen" / "assets" / "digits.npz"


def main() -> None:
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if not np.array_equal(images, digits.images):
        raise SystemExit("make_digits: the values are not whole numbers; expected 0 … 16.")
    np.savez_compressed(OUT, images=images, labels=labels)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    print(f"{OUT.name}: {len(labels):,} images, {OUT.stat().st_size:,} bytes, content {digest}")


if __name__ == "__main__":
    main()
