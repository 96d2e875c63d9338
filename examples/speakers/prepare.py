"""Write JapaneseVowels (nine speakers, twelve cepstral coefficients of a sound over time) as `.npz` files.

The test recordings are those of the data set; a sixth of each speaker's other recordings chooses the best epoch.
The series come with the package aeon, of which only the data files are read. Shorter ones end in zeros, which
`mask` tells from values; each coefficient is in units of its standard deviation.
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np

CHANNELS = 12
STEPS = 29


def recordings(part: str) -> dict[str, np.ndarray]:
    """`series` (rows, 12, 29), `mask` (rows, 1, 29) and `labels` (rows,) of `TRAIN` or `TEST`."""
    name = f"JapaneseVowels_{part}.ts"
    found = next(f for f in files("aeon") or () if f.name == name)
    lines = Path(str(found.locate())).read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and line[0] not in "#@"]
    series = np.zeros((len(rows), CHANNELS, STEPS), np.float32)
    mask = np.zeros((len(rows), 1, STEPS), np.float32)
    labels = np.zeros(len(rows), np.int64)
    for i, row in enumerate(rows):
        *channels, label = row.split(":")
        values = np.array([[float(v) for v in channel.split(",")] for channel in channels], np.float32)
        series[i, :, : values.shape[1]] = values
        mask[i, :, : values.shape[1]] = 1
        labels[i] = int(label) - 1
    return {"series": series, "mask": mask, "labels": labels}


def main(folder: Path) -> None:
    """Write train.npz, val.npz and test.npz."""
    seen = recordings("TRAIN")
    held = np.concatenate([np.flatnonzero(seen["labels"] == c)[::6] for c in np.unique(seen["labels"])])
    kept = np.setdiff1d(np.arange(len(seen["labels"])), held)
    test = recordings("TEST")
    recorded = seen["series"].transpose(1, 0, 2)[:, seen["mask"][:, 0] == 1]
    mean, std = (f(1, keepdims=True) for f in (recorded.mean, recorded.std))
    for arrays in (seen, test):
        arrays["series"] = (arrays["series"] - mean) / std * arrays["mask"]
    parts = {
        "train": {name: array[kept] for name, array in seen.items()},
        "val": {name: array[held] for name, array in seen.items()},
        "test": test,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in parts.items():
        np.savez(folder / f"{name}.npz", **arrays)
        print(f"Wrote {folder / name}.npz: {len(arrays['labels'])} recordings")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/speakers/data"))
