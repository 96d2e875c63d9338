"""The first steps in a new environment: a script for its interpreter that generates, and what then trains.

    python -I first_steps.py FOLDER

The standard library, numpy, onnx and onnxruntime-training; it knows nothing of onnxft.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

FILES = {
    "training": "training_model.onnx",
    "evaluation": "eval_model.onnx",
    "optimizer": "optimizer_model.onnx",
    "checkpoint": "checkpoint",
}


def generate(folder: str) -> None:
    """Write the files of a linear layer with a mean squared error."""
    # onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
    if importlib.util.find_spec("torch") is None:
        sys.modules["onnxruntime.training.optim"] = ModuleType("optim")
    import onnx
    from onnx import helper, numpy_helper
    from onnxruntime.training import artifacts

    weight = numpy_helper.from_array(np.zeros((3, 2), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    artifacts.generate_artifacts(
        model, requires_grad=["weight"], loss=artifacts.LossType.MSELoss, optimizer=artifacts.OptimType.AdamW,
        artifact_directory=folder,
    )  # fmt: skip


def train(call: Callable[..., tuple[dict[str, Any], dict[str, Any]]], folder: Path, *, device: str) -> list[float]:
    """Losses of three steps in the worker, whose calls go through `call`."""
    files = {kind: str(folder / name) for kind, name in FILES.items()}
    names, _ = call("open", files=files, device=device, threads=1)
    (data, labels), (loss, *_) = names["training"]
    feeds = {data: np.eye(4, 3, dtype=np.float32), labels: np.ones((4, 2), np.float32)}
    losses = []
    for _ in range(3):
        _, results = call("train", feeds, outputs=[loss])
        losses.append(float(results[loss]))
        call("optimizer_step", lr=0.1, factor=1.0, max_value=float("inf"), max_norm=float("inf"))
    return losses


if __name__ == "__main__":
    generate(sys.argv[1])
