"""Artifacts as onnxruntime-training's LossType makes them: a script for the interpreter that has it, without onnxft.

    python -I own_losses.py ROOT

For every directory of ROOT, named as a LossType, with `forward.onnx` and `feeds.npz` (`x`, `labels`) it makes such
artifacts and takes one step with them; `results.npz` gets `loss` and `gradient/PARAMETER`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

# onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
sys.modules["onnxruntime.training.optim"] = ModuleType("onnxruntime.training.optim")
from onnxruntime.training.api import CheckpointState, Module  # noqa: E402
from onnxruntime.training.artifacts import LossType, OptimType, generate_artifacts  # noqa: E402


def main(root: Path) -> None:
    assert "onnxft" not in sys.modules
    for file in sorted(root.glob("*/feeds.npz")):
        with np.load(file) as stored:
            feeds = dict(stored)
        with tempfile.TemporaryDirectory() as scratch:
            generate_artifacts(
                str(file.with_name("forward.onnx")),
                requires_grad=["scale", "shift"],
                loss=LossType[file.parent.name],
                optimizer=OptimType.SGD,
                artifact_directory=scratch,
            )
            state = CheckpointState.load_checkpoint(Path(scratch, "checkpoint"))
            module = Module(Path(scratch, "training_model.onnx"), state)
            loss = module(feeds["x"], feeds["labels"])
            gradients = {f"gradient/{name}": p.grad.copy() for name, p in state.parameters}
        np.savez(file.with_name("results.npz"), loss=loss, **gradients)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
