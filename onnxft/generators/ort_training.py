"""The ort-training generator: onnxruntime-training 1.19.2 differentiates the model, in an environment of its own.

The model is lowered here to what that release gets right, a worker process generates the graphs, and
`onnxft train` runs them in that environment (`onnxft/runtime/ort_training.py`). Dropout draws from the
runtime's own generator there, not from onnxft's seed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxft.errors import ConfigError, GradientError, ModelError, ProviderError, near
from onnxft.files import new_directory
from onnxft.generators import ort_training_worker
from onnxft.generators.describe import describe
from onnxft.generators.ort_training_lowering import lower
from onnxft.graph.forward import Forward
from onnxft.graph.io import save_inference
from onnxft.graph.shapes import Dim, dims
from onnxft.manifest import LABELS, GraphFile, GraphRole, Loss, Manifest, Optimizer, ParameterGroup, Port, Role
from onnxft.step.losses import label_type
from onnxft.step.select import Selection

PYTHON_VARIABLE = "ONNXFT_ORT_TRAINING_PYTHON"
_PACKAGES = ("onnxruntime-training-cpu", "onnxruntime-training")
_ADAMW_DEFAULTS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
"""torch's; onnxblock's eps is 1e-6."""


def generate(
    forward: Forward,
    selection: Selection,
    loss: Loss,
    optimizer: Optimizer,
    directory: Path,
    *,
    batch_size: int,
    python: str | None = None,
) -> Manifest:
    """Generate the graphs and write the artifact; `directory` appears complete or not at all.

    Args:
        forward: the model; it is not changed.
        selection: what is trained; everything else is frozen.
        loss: the mean over the rows of a batch (cross_entropy: logits (batch, classes), labels (batch,);
            mse: labels of the output's shape).
        optimizer: `adamw` with torch's arithmetic, or `sgd` without momentum and decay.
        directory: of the artifact.
        batch_size: rows that a session takes unless told otherwise.
        python: interpreter of the environment with onnxruntime-training; None takes the environment variable
            ONNXFT_ORT_TRAINING_PYTHON, or this interpreter where the package is installed.

    Raises:
        ConfigError: the optimizer has an option that onnxruntime-training does not know, or a BatchNorm is trained.
        SelectionError: a trained name is no float32 parameter that reaches the loss.
        GradientError: an operator has no gradient there, or the loss does not fit its output.
        ProviderError: there is no environment with onnxruntime-training, or its worker crashed.
    """
    if selection.batch_norms:
        raise ConfigError(
            f"the 'ort-training' generator keeps the running statistics of BatchNorm frozen, but train_batchnorm "
            f"matches '{selection.batch_norms[0].name}'. Leave --train-batchnorm out, or use --generator native."
        )
    if any(g != ParameterGroup(g.name) for g in selection.parameter_groups):
        raise ConfigError(
            "onnxruntime-training has one learning rate and one decay for all parameters, so the 'ort-training' "
            "generator takes no lr_factors or weight_decays. Leave them out, or use --generator native."
        )
    settings = _optimizer_settings(optimizer)
    model = lower(forward, selection.trainable, loss.output)
    inputs = (*(_port(v, "input") for v in model.graph.inputs), _label(model, loss))
    outputs = tuple(_port(v, "output") for v in model.graph.outputs)
    tensors = {t.name for t in forward.tensors}
    request = {
        "trainable": list(selection.trainable),
        "frozen": [n for n in model.graph.initializers if n in tensors and n not in selection.trainable],
        "outputs": list(forward.outputs),
        "loss": {"kind": loss.kind, "output": loss.output, "labels": LABELS},
        "optimizer": settings,
    }
    interpreter = find_python(python)
    with new_directory(directory) as folder:
        versions = _run_worker(interpreter, model, request, folder)
        ranges = save_inference(forward.infer, folder / "infer.onnx")
        graphs: dict[GraphRole, GraphFile] = {
            "ort_training": GraphFile("training_model.onnx", inputs, provider="cpu"),
            "ort_eval": GraphFile("eval_model.onnx", inputs, outputs, provider="cpu"),
            "ort_optimizer": GraphFile("optimizer_model.onnx", provider="cpu"),
            "ort_checkpoint": GraphFile("checkpoint", provider="cpu"),
            "infer": GraphFile("infer.onnx"),
        }
        return describe(
            folder, forward, selection, loss, optimizer,
            generator="ort-training", batch_size=batch_size, graphs=graphs, ranges=ranges, versions=versions,
        )  # fmt: skip


def find_python(python: str | None = None) -> str:
    """The interpreter of the environment with onnxruntime-training; ProviderError says how to make one."""
    for source, wanted in (("--python", python), (PYTHON_VARIABLE, os.environ.get(PYTHON_VARIABLE))):
        if wanted:
            found = shutil.which(wanted)
            if found is None:
                raise ProviderError(f"there is no executable '{wanted}' ({source}). {_how_to_make()}")
            return found
    if any(_installed(package) for package in _PACKAGES):
        return sys.executable
    raise ProviderError(
        "the ort-training generator needs onnxruntime-training, which cannot live beside a current onnxruntime. "
        f"{_how_to_make()}"
    )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _how_to_make() -> str:
    return (
        "Make its environment with `python3.11 -m venv ort-training` and `ort-training/bin/pip install "
        f"'onnxft[ort-training]'`, then set {PYTHON_VARIABLE}=ort-training/bin/python."
    )


def _optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """What the worker bakes into the optimizer model; ConfigError for what it cannot."""
    options, decay = optimizer.options, optimizer.weight_decay
    if optimizer.kind == "adamw":
        for name in options:
            if name not in _ADAMW_DEFAULTS:
                raise ConfigError(f"adamw has no option '{name}' here.{near(name, _ADAMW_DEFAULTS)}")
        return {"kind": "adamw", **_ADAMW_DEFAULTS, **options, "weight_decay": decay}
    if optimizer.kind != "sgd":
        raise ConfigError(
            f"onnxruntime-training has no optimizer '{optimizer.kind}'. Choose adamw or sgd, or the native generator."
        )
    for name, value in {**options, "weight_decay": decay}.items():
        if value != 0:
            raise ConfigError(
                f"sgd has {name} = {value}, but onnxruntime-training's SGD is the plain step p - lr * gradient. "
                f"Set {name} to 0, choose adamw, or use the native generator."
            )
    return {"kind": "sgd"}


def _label(model: ir.Model, loss: Loss) -> Port:
    output = next(v for v in model.graph.outputs if v.name == loss.output)
    if loss.kind not in ("cross_entropy", "mse"):
        raise GradientError(
            f"the 'ort-training' generator has the losses cross_entropy and mse, not '{loss.kind}'. "
            "Use the native generator."
        )
    if loss.class_weights or loss.label_smoothing:
        raise GradientError(
            "the cross entropy of the 'ort-training' generator is a plain mean, without class_weights and "
            "label_smoothing. Leave them out, or use the native generator."
        )
    if loss.kind == "cross_entropy" and len(dims(output)) != 2:
        raise GradientError(
            f"cross_entropy reads '{output.name}' of shape {list(dims(output))}, but onnxruntime-training's takes "
            "logits (batch, classes) only. Choose another output for the loss, or use the native generator."
        )
    if loss.shift or loss.ignore_index is not None:
        raise GradientError("onnxruntime-training's loss counts every label; use the native generator.")
    typed = label_type(loss, output)
    assert typed is not None
    dtype, shape = typed
    return Port(LABELS, "label", dtype.numpy().name, _known(LABELS, shape))


def _port(value: ir.Value, role: Role) -> Port:
    assert value.name is not None and value.dtype is not None
    return Port(value.name, role, value.dtype.numpy().name, _known(value.name, dims(value)))


def _known(name: str, shape: Sequence[Dim]) -> tuple[int | str, ...]:
    if None in shape:
        raise ModelError(
            f"'{name}' has an unknown dimension in {list(shape)}. Export the model with static shapes except for the "
            "batch dimension."
        )
    return tuple(d for d in shape if d is not None)


# ----- the worker -----


def _run_worker(python: str, model: ir.Model, request: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Let the worker write its four files into `folder`; the versions that did it.

    Raises:
        ProviderError: the environment lacks something, or the worker crashed.
        GradientError: the package refuses the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        names = ("forward.onnx", "request.json", "answer.json")
        forward_file, request_file, answer_file = (Path(scratch) / name for name in names)
        save_inference(model, forward_file)
        full = {**request, "model": str(forward_file), "directory": str(folder.resolve())}
        request_file.write_text(json.dumps(full), encoding="utf-8")
        # Isolated (-I), so that packages on this environment's PYTHONPATH do not reach the other.
        done = subprocess.run(
            [python, "-I", ort_training_worker.__file__, str(request_file), str(answer_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not answer_file.is_file():
            raise ProviderError(_crash(python, done.returncode, done.stderr))
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    match answer.get("error"):
        case "environment":
            raise ProviderError(f"'{python}' cannot generate: {answer['reason']}. {_how_to_make()}")
        case "generation":
            raise GradientError(_explain(answer["reason"]))
    versions: dict[str, str] = answer["versions"]
    return versions


def _crash(python: str, status: int, stderr: str) -> str:
    worker = f"the worker of the ort-training generator ('{python}')"
    if status < 0:
        return (
            f"{worker} was ended by {signal.Signals(-status).name}, a crash inside onnxruntime-training. "
            "Freeze more of the model, or use the native generator."
        )
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return f"{worker} failed with status {status}: {last}. {_how_to_make()}"


def _explain(reason: str) -> str:
    """One sentence for what onnxruntime-training said, without its C++ source lines, and the ways out."""
    ways_out = "Freeze what lies before it, or use the native generator."
    missing = re.search(r"gradient builder has not been registered: (\S+)(?: for node (\S*))?", reason)
    if missing:
        op_type, node = missing.group(1), missing.group(2) or ""
        return f"onnxruntime-training has no gradient for '{op_type}' (node '{node}'). {ways_out}"
    if re.search(r"(Input|Output)Defs\(\)\.size\(\) was false", reason):
        said = "a node lacks an optional input or output that its gradient builder reads"
    else:
        said = re.split(r" was false\. |\] ", reason.strip().splitlines()[0])[-1].strip().rstrip(".")
    return f"onnxruntime-training cannot differentiate the model: {said}. {ways_out}"
