"""The worker of the ort-training generator: a script run by the interpreter that has onnxruntime-training.

    python ort_training_worker.py REQUEST.json ANSWER.json

It knows nothing of onnxft: the other environment needs the standard library, onnx and onnxruntime-training.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_IR_VERSION = 10
"""Of onnxruntime-training 1.19.2. It stamps the installed onnx's version on the optimizer model."""


class EnvironmentFaultError(Exception):
    """The environment cannot generate, whatever the model."""


def main(request_file: str, answer_file: str) -> None:
    """Generate, and answer with versions or with the kind and text of what went wrong."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    try:
        answer = generate(request)
    except EnvironmentFaultError as err:
        answer = {"error": "environment", "reason": str(err)}
    except Exception as err:  # the packages raise RuntimeError, IndexError, protobuf's and onnx's own
        answer = {"error": "generation", "reason": f"{type(err).__name__}: {err}"}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Write the four files of the artifact into `request["directory"]`; the versions that did it.

    Request: model (path), directory, trainable and frozen (initializer names), outputs (names), loss {kind,
    output, labels}, optimizer {kind, beta1, beta2, eps, weight_decay}.
    """
    onnx, training = _import()
    onnxblock = training.onnxblock
    losses = {"cross_entropy": onnxblock.loss.CrossEntropyLoss, "mse": onnxblock.loss.MSELoss}
    wanted, directory = request["optimizer"], Path(request["directory"])
    if wanted["kind"] == "adamw":
        optimizer = onnxblock.optim.AdamW(
            betas=(wanted["beta1"], wanted["beta2"]), eps=wanted["eps"], weight_decay=wanted["weight_decay"]
        )
    else:
        optimizer = onnxblock.optim.SGD()

    class Loss(onnxblock.Block):  # type: ignore[misc, name-defined]
        """The loss with its second input under our name; MSELoss would call it `target`."""

        def __init__(self) -> None:
            super().__init__()
            self._loss = losses[request["loss"]["kind"]]()

        def build(self, output: str) -> Any:
            return self._loss(output, request["loss"]["labels"])

    training.artifacts.generate_artifacts(
        request["model"],
        requires_grad=request["trainable"],
        frozen_params=request["frozen"],
        loss=Loss(),
        optimizer=optimizer,
        artifact_directory=str(directory),
        additional_output_names=request["outputs"],
        loss_input_names=[request["loss"]["output"]],
    )
    _use_torch_adamw(onnx, directory / "optimizer_model.onnx")
    return {"versions": {"onnxruntime-training": _version(), "onnx": onnx.__version__}}


def _import() -> tuple[Any, Any]:
    # onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
    if importlib.util.find_spec("torch") is None:
        sys.modules["onnxruntime.training.optim"] = ModuleType("onnxruntime.training.optim")
    try:
        import onnx
        import onnxruntime.training.artifacts
        import onnxruntime.training.onnxblock
    except ImportError as err:
        raise EnvironmentFaultError(f"onnxruntime-training cannot be imported ({err})") from err
    if onnx.IR_VERSION > MAX_IR_VERSION:
        raise EnvironmentFaultError(
            f"onnx {onnx.__version__} stamps IR version {onnx.IR_VERSION} on the optimizer model, which "
            f"onnxruntime-training {_version()} cannot read (at most {MAX_IR_VERSION}): it needs onnx<1.18"
        )
    return onnx, onnxruntime.training


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _use_torch_adamw(onnx: Any, path: Path) -> None:
    """Set the AdamW node to mode 0, which is torch.optim.AdamW; onnxblock can only write mode 1, the
    Hugging Face variant (decay after the step, eps before the bias correction).
    """
    model = onnx.load(path)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "AdamWOptimizer" and attribute.name == "adam_mode":
                attribute.i = 0
    onnx.save(model, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
