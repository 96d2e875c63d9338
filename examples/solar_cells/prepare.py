"""Write the ELPV photographs of solar cells as folders of pictures to train on, to choose by, and to judge by.

A cell is defective where its defect probability is at least 0.5. A quarter is held back for the judgement
alone; an eighth of the rest chooses the best epoch. Each part has both classes in equal shares. The
pictures (CC BY-NC-SA 4.0) come with the package elpv-dataset; nothing of them is kept in this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from elpv_dataset.utils import load_dataset
from PIL import Image

CLASSES = ("intact", "defective")


def split(labels: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Indices of the rows of `train`, `val` and `test`."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"test": [], "val": [], "train": []}
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        test = round(len(rows) / 4)
        val = test + round((len(rows) - test) / 8)
        for part, chosen in zip(parts.values(), np.split(rows, [test, val]), strict=True):
            part.append(chosen)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def main(folder: Path) -> None:
    """Write <part>/<class>/<number>.png for the parts train, val and test."""
    images, probability, _ = load_dataset()
    labels = (probability >= 0.5).astype(np.int64)
    for part, rows in split(labels).items():
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True, exist_ok=True)
        for row in rows:
            Image.fromarray(images[row]).save(folder / part / CLASSES[labels[row]] / f"{row:04}.png")
        print(f"Wrote {folder / part}: {len(rows)} cells, {labels[rows].mean():.1%} defective")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/solar_cells/data"))
