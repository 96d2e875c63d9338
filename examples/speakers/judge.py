"""Measure a run on the recordings that it has never seen: `judge.py ARTIFACT RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import onnxft


def main(artifact: Path, run: Path) -> None:
    """Accuracy on test.npz."""
    test = np.load(Path(__file__).parent / "data" / "test.npz")
    with onnxft.TrainSession(artifact) as session:
        session.set_parameters(load_file(run / "weights" / "best.safetensors"))
        (scores,) = session.predict({name: test[name] for name in ("series", "mask")}).values()
    right = scores.argmax(1) == test["labels"]
    print(f"{right.sum()} of {len(right)} recordings right ({right.mean():.1%}).")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
