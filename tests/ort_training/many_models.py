"""Run by the interpreter with onnxruntime-training: the gradients of many small models, one after the other.

    python -I many_models.py WORKER FOLDER FIRST

FOLDER has `models.json` with the trained initializers of each model and, for model k, `k.onnx` with the output `loss`
and `k.npz` with its inputs. `k.gradients.npz` or `k.error` says what came of it; `started` is the last k tried.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx


def main(worker_file: str, folder: Path, first: int) -> None:
    spec = importlib.util.spec_from_file_location("worker", worker_file)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    worker._import()
    for k, trained in list(enumerate(json.loads((folder / "models.json").read_text())))[first:]:
        (folder / "started").write_text(str(k))
        try:
            found = gradients(worker, folder / f"{k}.onnx", set(trained), dict(np.load(folder / f"{k}.npz")), k)
            np.savez(folder / f"{k}.gradients.npz", **found)
        except Exception as err:  # whatever the package raises is a result here
            (folder / f"{k}.error").write_text(str(err))


def gradients(worker: Any, file: Path, trained: set[str], feeds: dict[str, Any], number: int) -> dict[str, Any]:
    """{initializer: gradient of the loss}, by the steps of `generate_artifacts`."""
    import onnxruntime
    from onnxruntime.capi._pybind_state import GradientGraphBuilder, get_optimized_model

    onnxruntime.set_default_logger_severity(4)
    model = onnx.load(file)
    rename_functions(model, number)
    worker.register_gradients(model)
    for tensor in [t for t in model.graph.initializer if t.name in trained]:
        feeds[tensor.name] = onnx.numpy_helper.to_array(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    options = onnxruntime.SessionOptions()
    builder = GradientGraphBuilder(
        get_optimized_model(model.SerializeToString(), trained, options), {"loss"}, trained, "loss", options
    )
    builder.build()
    made = worker.inline_functions(onnx.load_from_string(builder.get_model()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    names = [f"{name}_grad" for name in sorted(trained)]
    found = session.run(names, {name: array for name, array in feeds.items() if name in taken})
    return dict(zip(sorted(trained), found, strict=True))


def rename_functions(model: Any, number: int) -> None:
    """The package keeps the first gradient that is registered for a name, and models name theirs alike."""
    for function in model.functions:
        function.name += f"_of_{number}"
    for node in model.graph.node:
        if node.domain == "onnxft.forward":
            node.op_type += f"_of_{number}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
