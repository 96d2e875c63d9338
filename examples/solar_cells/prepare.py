"""Write the ELPV photographs of solar cells as training and held-back `.npz` files.

A cell is defective where its defect probability is at least 0.5. A quarter is held back, the classes
in equal parts. The pictures (CC BY-NC-SA 4.0) come with the package elpv-dataset; nothing of them is
kept in this repository.
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


def split(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-back rows, a quarter of each class held back."""
    rng = np.random.default_rng(seed)
    held = np.concatenate([_quarter(rng.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)])
    mask = np.zeros(len(labels), bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _quarter(rows: np.ndarray) -> np.ndarray:
    return rows[: round(len(rows) / 4)]


def main(folder: Path) -> None:
    """Write train.npz and val.npz."""
    images, labels = load()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "val"), split(labels), strict=True):
        np.savez(folder / f"{name}.npz", inputs=images[rows], labels=labels[rows])
        print(f"Wrote {folder / name}.npz: {len(rows)} cells, {labels[rows].mean():.1%} defective")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/solar_cells/data"))
