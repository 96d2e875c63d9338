"""Train artifacts by onnxruntime-training's own interfaces: a script for the interpreter that has it, without onnxft.

    python -I own_interfaces.py ROOT

Every directory of ROOT is an artifact with a `batches.npz` of arrays `STEP/INPUT` and `lr`. Its `results.npz` gets
`losses`, `final/PARAMETER`, `vector`, `names`, and what a round through each file and interface gives.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

# onnxruntime.training imports its package `optim`, for which torch is needed and nothing here is.
sys.modules["onnxruntime.training.optim"] = ModuleType("onnxruntime.training.optim")
from onnxruntime import InferenceSession, OrtValue, SessionOptions  # noqa: E402
from onnxruntime.training.api import CheckpointState, Module, Optimizer  # noqa: E402


def main(root: Path) -> None:
    assert "onnxft" not in sys.modules
    for file in sorted(root.glob("*/batches.npz")):
        with np.load(file) as stored:
            batches = dict(stored)
        np.savez(file.with_name("results.npz"), **everything(file.parent, batches))


def everything(directory: Path, batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Train; then evaluate, export, read and write the contiguous vector, and go on from each kind of checkpoint."""
    state, module = opened(directory, directory / "checkpoint")
    optimizer = Optimizer(directory / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(float(batches.pop("lr")))
    steps = sorted({int(name.split("/")[0]) for name in batches})
    losses = []
    for step in steps:
        losses.append(outputs(module, batches, step)["loss"])
        optimizer.step()
        module.lazy_reset_grad()
    results = {f"final/{name}": p.data.copy() for name, p in state.parameters if p.requires_grad}
    results["losses"] = np.array(losses)
    results["inputs"] = np.array(module.input_names())
    module.eval()
    evaluated = outputs(module, batches, 0)
    results |= {f"eval/{name}": value for name, value in evaluated.items()}

    vector = as_numpy(module.get_contiguous_parameters(trainable_only=True))
    whole = as_numpy(module.get_contiguous_parameters(trainable_only=False))
    results["vector"] = vector

    _, fresh = opened(directory, directory / "checkpoint")
    fresh.copy_buffer_to_parameters(as_buffer(vector), trainable_only=True)
    results["from the vector"] = outputs(fresh.eval(), batches, 0)["loss"]

    _, nominal = opened(directory, directory / "nominal_checkpoint")
    nominal.copy_buffer_to_parameters(as_buffer(whole), trainable_only=False)
    results["from the nominal checkpoint"] = outputs(nominal.eval(), batches, 0)["loss"]

    CheckpointState.save_checkpoint(state, directory / "saved", include_optimizer_state=True)
    _, loaded = opened(directory, directory / "saved")
    results["from the saved checkpoint"] = outputs(loaded.eval(), batches, 0)["loss"]

    graph = json.loads((directory / "manifest.json").read_text())["graphs"]["ort_eval"]
    wanted = [port["name"] for port in graph["outputs"] if port["role"] == "output"]
    module.export_model_for_inferencing(directory / "exported.onnx", wanted)
    session = InferenceSession(directory / "exported.onnx", providers=["CPUExecutionProvider"])
    found = session.run(wanted, {v.name: batches[f"0/{v.name}"] for v in session.get_inputs()})
    results |= {f"exported/{name}": value for name, value in zip(wanted, found, strict=True)}
    return results


def opened(directory: Path, checkpoint: Path) -> tuple[CheckpointState, Module]:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    state = CheckpointState.load_checkpoint(checkpoint)
    training, evaluation = (directory / f"{name}_model.onnx" for name in ("training", "eval"))
    return state, Module(training, state, evaluation, session_options=options)


def outputs(module: Module, batches: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """{output: array} of a step or an evaluation on one of the batches."""
    found = module(*(batches[f"{step}/{name}"] for name in module.input_names()))
    found = found if isinstance(found, tuple) else (found,)
    return dict(zip(module.output_names(), found, strict=True))


def as_numpy(buffer: object) -> np.ndarray:
    """What get_contiguous_parameters returns is the binding's own value."""
    return OrtValue(buffer).numpy().copy()


def as_buffer(vector: np.ndarray) -> object:
    """What copy_buffer_to_parameters takes, likewise."""
    return OrtValue.ortvalue_from_numpy(vector)._ortvalue


if __name__ == "__main__":
    main(Path(sys.argv[1]))
