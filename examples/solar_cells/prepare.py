"""Write the ELPV photographs of solar cells as `.npz` files to train on, to choose by, and to judge by.

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

SIZE = 128


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (2624, 3, 128, 128) as the model was pretrained, (x - 127) / 128, and labels (2624,)."""
    images, probability, _ = load_dataset()
    small = [np.asarray(Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for i in images]
    grey = (np.stack(small).astype(np.float32) - 127) / 128
    # 8-bit values fit float16 exactly, which halves the files; the three channels are the same grey.
    return np.repeat(grey[:, None].astype(np.float16), 3, axis=1), (probability >= 0.5).astype(np.int64)


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
    """Write train.npz, val.npz and test.npz."""
    images, labels = load()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in split(labels).items():
        np.savez(folder / f"{name}.npz", inputs=images[rows], labels=labels[rows])
        print(f"Wrote {folder / name}.npz: {len(rows)} cells, {labels[rows].mean():.1%} defective")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/solar_cells/data"))
