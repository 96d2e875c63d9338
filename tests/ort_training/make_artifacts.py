"""Make the artifacts and torch's reference for test_engine.py: runs in the environment that exports.

python tests/ort_training/make_artifacts.py OUT [--python INTERPRETER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ort_training_models import BATCH_SIZE, CASES, choose, make_batches, make_forward, torch_reference

from onnxft.generators.ort_training import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--python", help="interpreter of the environment with onnxruntime-training")
    arguments = parser.parse_args()
    reference = {}
    for case in CASES.values():
        generate(
            make_forward(case),
            choose(*case.trainable),
            case.loss,
            case.optimizer,
            arguments.out / case.name,
            batch_size=BATCH_SIZE,
            python=arguments.python,
        )
        reference[f"{case.name}/lr"] = np.array(case.lr)
        for step, batch in enumerate(make_batches(case)):
            reference |= {f"{case.name}/batch/{step}/{name}": array for name, array in batch.items()}
        reference |= {f"{case.name}/{name}": array for name, array in torch_reference(case).items()}
    np.savez(arguments.out / "reference.npz", **reference)


if __name__ == "__main__":
    main()
