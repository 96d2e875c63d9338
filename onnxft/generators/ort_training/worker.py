"""The worker of the ort-training generator: a script run by the interpreter that has onnxruntime-training.

    python ort_training_worker.py REQUEST.json ANSWER.json

It knows nothing of onnxft: the other environment needs the standard library, onnx and onnxruntime-training.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_IR_VERSION = 10
"""Of onnxruntime-training 1.19.2. It stamps the installed onnx's version on the optimizer model."""


FORWARD_DOMAIN, GRADIENT_DOMAIN = "onnxft.forward", "onnxft.gradient"
"""Of the functions that `lowering/gradient_function.py` writes."""


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
    """Write training and optimizer model and both checkpoints into `request["directory"]`.

    Its evaluation model, which is the training graph without its gradients, is written too; onnxft puts its own there.

    Request: model (path; its first output is the loss), directory, trainable and frozen (initializer names), optimizer
    {kind, beta1, beta2, eps, weight_decay, max_norm}. Answer: versions, and the parameters in the order that they have
    as inputs of the training model, in which every evaluation model must have them.
    """
    onnx, training = _import()
    directory = Path(request["directory"])
    register_gradients(onnx.load(request["model"], load_external_data=False))
    training.artifacts.generate_artifacts(
        request["model"],
        requires_grad=request["trainable"],
        frozen_params=request["frozen"],
        loss=None,  # it is in the model
        optimizer=_optimizer(training.onnxblock.optim, request["optimizer"]),
        artifact_directory=str(directory),
        nominal_checkpoint=True,
    )
    training_model = inline_functions(onnx.load(directory / "training_model.onnx"))
    onnx.save(training_model, directory / "training_model.onnx")
    _use_torch_adamw(onnx, directory / "optimizer_model.onnx")
    parameters = {*request["trainable"], *request["frozen"]}
    return {
        "versions": {"onnxruntime-training": _version(), "onnx": onnx.__version__},
        "parameters": [value.name for value in training_model.graph.input if value.name in parameters],
    }


def _optimizer(optim: Any, wanted: dict[str, Any]) -> Any:
    clip = None if wanted["max_norm"] is None else optim.ClipGradNorm(wanted["max_norm"])
    if wanted["kind"] == "sgd":
        return optim.SGD(clip_grad=clip)
    return optim.AdamW(
        betas=(wanted["beta1"], wanted["beta2"]), eps=wanted["eps"], weight_decay=wanted["weight_decay"], clip_grad=clip
    )


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


def register_gradients(model: Any) -> None:
    """Say which function of `model` is the gradient of which.

    In a definition I(0) is input 0 of the call that is differentiated, O(0) its output, GO(0) and GI(0) their
    gradients: so are inputs and outputs of the gradient named, without the brackets.
    """
    from onnxruntime.capi import _pybind_state as binding

    def spelled(names: Iterable[str]) -> list[str]:
        return [re.sub(r"(\d+)$", r"(\1)", name) for name in names]

    for function in model.functions:
        if function.domain == GRADIENT_DOMAIN:
            definition = binding.GradientNodeDefinition()
            definition.domain, definition.op_type = function.domain, function.name
            definition.inputs, definition.outputs = spelled(function.input), spelled(function.output)
            definition.attributes = []
            binding.register_gradient_definition(f"{FORWARD_DOMAIN}::{function.name}", [definition])


def inline_functions(model: Any) -> Any:
    """The model with the bodies of its functions in the place of their calls."""
    import onnx.inliner

    if not model.functions:
        return model
    inlined = onnx.inliner.inline_local_functions(model)
    kept = [imported for imported in inlined.opset_import if imported.domain not in (FORWARD_DOMAIN, GRADIENT_DOMAIN)]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


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
