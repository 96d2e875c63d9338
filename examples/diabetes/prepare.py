"""Write scikit-learn's diabetes data (442 patients) as a CSV file of ten measurements and the progression after a year.

Progression is written in units of its standard deviation around its mean, so that the fresh model's rate fits it.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from sklearn.datasets import load_diabetes


def main(folder: Path) -> None:
    """Write patients.csv."""
    data = load_diabetes(scaled=False)
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "patients.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "progression"])
        writer.writerows([[f"{v:.6f}" for v in row] for row in [[*a, b] for a, b in zip(x, y, strict=True)]])
    print(f"Wrote {folder / 'patients.csv'}: {len(y)} patients")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/diabetes/data"))
