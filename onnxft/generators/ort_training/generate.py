"""The ort-training generator: onnxruntime-training 1.19.2 differentiates the model, in an environment of its own.

The loss is appended (`graphs.py`), the whole is lowered to what that release gets right (`lowering/`), and a worker
process generates the training graph, the optimizer and the checkpoints (`worker.py`). The evaluation graph is made
here, of the model in inference behaviour. The files are those that onnxruntime-training's own interfaces load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxft.errors import ConfigError, ModelError
from onnxft.files import new_directory
from onnxft.generators.describe import describe
from onnxft.generators.ort_training.graphs import evaluation_graph, training_graph, use_parameter_inputs
from onnxft.generators.ort_training.lowering import adapt_forms, lower
from onnxft.generators.ort_training.optimizer import optimizer_settings
from onnxft.generators.ort_training.run_worker import run_worker
from onnxft.graph.forward import Forward
from onnxft.graph.io import save_inference
from onnxft.manifest import GraphFile, GraphRole, Loss, Manifest, Optimizer
from onnxft.ort_training_environment import find_python
from onnxft.step.build import adapter_graph
from onnxft.step.randomness import random_operators
from onnxft.step.select import Selection
from onnxft.step.step_graph import StepGraph


def generate(
    forward: Forward,
    selection: Selection,
    loss: Loss,
    optimizer: Optimizer,
    directory: Path,
    *,
    batch_size: int,
    python: str | None = None,
    standalone: bool = False,
    additional_outputs: Sequence[str] = (),
) -> Manifest:
    """Generate the graphs and write the artifact; `directory` appears complete or not at all.

    Args:
        forward: the model; it is not changed.
        selection: what is trained; everything else is frozen.
        loss: as for the native generator; in the standalone form one of those of `standalone.py`.
        optimizer: `adamw` with torch's arithmetic, or `sgd` without momentum and decay; `max_norm` is baked in.
        directory: of the artifact.
        batch_size: rows that a session takes unless told otherwise.
        python: interpreter of the environment with onnxruntime-training; None: see `find_python`.
        standalone: whether the graphs take the model's inputs and the labels and nothing else.
        additional_outputs: values that the training step returns too, under their names.

    Raises:
        ConfigError: onnxruntime-training or the standalone form has no such loss, optimizer or option, an additional
            output is unknown, or a BatchNorm is trained.
        SelectionError: a trained name is no float32 parameter that reaches the loss.
        GradientError: an operator has no gradient there.
        ModelError: the model or the loss does not fit.
        ProviderError: there is no environment with onnxruntime-training, or its worker crashed.
    """
    if selection.batch_norms:
        raise ConfigError(
            f"the 'ort-training' generator keeps the running statistics of BatchNorm frozen, but train_batchnorm "
            f"matches '{selection.batch_norms[0].name}'. Leave --train-batchnorm out, or use --generator native."
        )
    settings = optimizer_settings(optimizer, selection)
    training = training_graph(forward, selection.trainable, loss, additional_outputs, standalone=standalone)
    evaluation = evaluation_graph(forward, loss, additional_outputs, standalone=standalone)
    adapt_forms(evaluation.model.graph)
    _check_shapes(training)
    model = lower(training.model, selection.trainable, training.outputs[0].name)
    frozen = _frozen(forward, model, selection)
    _order(model, [*selection.trainable, *frozen])
    request = {"trainable": list(selection.trainable), "frozen": frozen, "optimizer": settings}
    interpreter = find_python(python)
    with new_directory(directory) as folder:
        answer = run_worker(interpreter, model, request, folder)
        use_parameter_inputs(evaluation.model, answer.parameters, forward)
        save_inference(evaluation.model, folder / "eval_model.onnx")
        ranges = save_inference(forward.deployed, folder / "infer.onnx")
        graphs: dict[GraphRole, GraphFile] = {
            "ort_training": GraphFile("training_model.onnx", training.inputs, training.outputs, provider="cpu"),
            "ort_eval": GraphFile("eval_model.onnx", evaluation.inputs, evaluation.outputs, provider="cpu"),
            "ort_optimizer": GraphFile("optimizer_model.onnx", provider="cpu"),
            "ort_checkpoint": GraphFile("checkpoint", provider="cpu"),
            "ort_nominal_checkpoint": GraphFile("nominal_checkpoint", provider="cpu"),
            "infer": GraphFile("infer.onnx"),
        }
        if forward.added:
            save_inference(adapter_graph(forward, selection), folder / "infer_adapter.onnx")
            graphs["infer_adapter"] = GraphFile("infer_adapter.onnx")
        return describe(
            folder, forward, selection, loss, optimizer,
            generator="ort-training", batch_size=batch_size, graphs=graphs, ranges=ranges, versions=answer.versions,
            runtime_random=tuple(node.name or node.op_type for node in random_operators(training.model.graph)),
        )  # fmt: skip


def _frozen(forward: Forward, model: ir.Model, selection: Selection) -> list[str]:
    """What goes into the checkpoint besides the trained: other float32 parameters that the lowered graph reads.

    Buffers and integers stay inside the graph, where they are constants to its optimizer: the checkpoint's contiguous
    vector takes float32 alone.
    """
    parameters = {t.name for t in forward.tensors if t.kind == "parameter" and t.dtype == "float32"}
    return [n for n in model.graph.initializers if n in parameters and n not in selection.trainable]


def _order(model: ir.Model, parameters: Sequence[str]) -> None:
    """Put the parameters in this order, in place: it is that of the training graph's inputs and so of the contiguous
    vector of parameters, which is then the manifest's.
    """
    initializers = model.graph.initializers
    for name in parameters:
        initializers[name] = initializers.pop(name)


def _check_shapes(training: StepGraph) -> None:
    for port in (*training.inputs, *training.outputs):
        if "?" in port.shape:
            raise ModelError(
                f"'{port.name}' has an unknown dimension in {list(port.shape)}. Export the model with static shapes "
                "except for the batch dimension."
            )
