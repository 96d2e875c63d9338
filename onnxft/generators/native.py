"""The native generator: training graphs of standard ONNX operators, for every provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxft.files import new_directory
from onnxft.generators.describe import describe
from onnxft.graph.forward import Forward
from onnxft.graph.io import save_inference, save_model, save_weights
from onnxft.manifest import (
    FROZEN_FILE,
    PARAMETERS_FILE,
    ByteRange,
    GraphFile,
    GraphRole,
    HalfPrecision,
    Loss,
    Manifest,
    Optimizer,
    Precision,
)
from onnxft.step.build import adapter_graph, build_step, differentiated
from onnxft.step.cut import Cut, cut
from onnxft.step.frozen.store import Stored
from onnxft.step.precision import lower_all
from onnxft.step.segments import Recomputation
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
    precisions: Sequence[HalfPrecision] = (),
    divide: bool = True,
    stored: Stored | None = None,
    recomputation: Recomputation | None = None,
) -> Manifest:
    """Build the graphs and write the artifact; `directory` appears complete or not at all.

    With `divide` the frozen part of the model is a graph of its own, where there is one; see `onnxft.step.cut`. The
    graphs are those of `stored`, where the frozen weights of `forward` are stored in fewer bytes. With `recomputation`
    the step is differentiated twice: the artifact has graphs that keep all activations too.

    Raises:
        GradientError: an operator between a trained parameter and the loss has no derivative.
        ModelError: the loss does not fit the model, or it multiplies nothing that a precision could lower.
        SelectionError: there is nothing for `recomputation` to compute again.
    """
    model, forward = forward, forward if stored is None else stored.forward
    divided = cut(forward, selection) if divide else ""
    trained = divided.rest if isinstance(divided, Cut) else forward
    step = build_step(trained, selection, loss, optimizer)
    if isinstance(divided, Cut):
        step = {"trunk": divided.trunk, **step}
    lowered = {precision: lower_all(step, precision) for precision in precisions}
    again: dict[Precision, dict[GraphRole, StepGraph]] = {}
    if recomputation:
        again["float32"] = differentiated(trained, selection, loss, optimizer, recomputation)
        again |= {precision: lower_all(again["float32"], precision) for precision in precisions}
    weights = initial_weights(forward)
    with new_directory(directory) as folder:
        moved = (*selection.trainable, *selection.buffers)
        moved_places = save_weights(folder / PARAMETERS_FILE, {name: weights[name] for name in moved})
        frozen = {name: tensor for name, tensor in weights.items() if name not in moved}
        places = save_weights(folder / FROZEN_FILE, frozen)
        graphs = _save(step, folder, places)
        half = {p: _save(made, folder, places, p) for p, made in lowered.items()}
        recomputed = {p: _save(made, folder, places, p, suffix=".recomputed") for p, made in again.items()}
        if forward.added:
            save_model(adapter_graph(forward, selection), folder / "infer_adapter.onnx", {**places, **moved_places})
            graphs["infer_adapter"] = GraphFile("infer_adapter.onnx")
        ranges = save_inference(forward.deployed, folder / "infer.onnx")
        graphs["infer"] = GraphFile("infer.onnx")
        return describe(
            folder, model, selection, loss, optimizer,
            generator="native", batch_size=batch_size, graphs=graphs, ranges=ranges,
            half=half, recomputed=recomputed, rest=divided.rest if isinstance(divided, Cut) else None,
            whole="" if isinstance(divided, Cut) else divided,
            frozen_weights=None if stored is None else stored.weights,
            recompute=recomputation.per_segment if recomputation else 0,
        )  # fmt: skip


def _save(
    graphs: Mapping[GraphRole, StepGraph],
    folder: Path,
    places: Mapping[str, ByteRange],
    precision: Precision = "float32",
    suffix: str = "",
) -> dict[GraphRole, GraphFile]:
    """Write graphs of one precision, which refer to weights at `places`."""
    ending = suffix if precision == "float32" else f"{suffix}.{precision}"
    made: dict[GraphRole, GraphFile] = {}
    for role, graph in graphs.items():
        made[role] = GraphFile(f"{role}{ending}.onnx", graph.inputs, graph.outputs, precision)
        save_model(graph.model, folder / made[role].file, places)
    return made


def initial_weights(forward: Forward) -> dict[str, ir.TensorProtocol]:
    """{name: value} of the tensors that the graphs read."""
    named = {t.name for t in forward.tensors}
    found = {}
    for graph in (forward.infer.graph, forward.train.graph):
        found.update(
            {n: v.const_value for n, v in graph.initializers.items() if n in named and v.const_value is not None}
        )
    return found
