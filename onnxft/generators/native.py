"""The native generator: training graphs of standard ONNX operators, for every provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxft.files import new_directory
from onnxft.generators.describe import describe
from onnxft.graph.forward import Forward
from onnxft.graph.io import save_inference, save_model, save_weights
from onnxft.manifest import (
    FROZEN_FILE,
    PARAMETERS_FILE,
    GraphFile,
    GraphRole,
    HalfPrecision,
    Loss,
    Manifest,
    Optimizer,
)
from onnxft.step.build import adapter_graph, build_step
from onnxft.step.cut import Cut, cut
from onnxft.step.frozen.store import Stored
from onnxft.step.precision import lower_all
from onnxft.step.segments import Recomputation
from onnxft.step.select import Selection


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
    graphs are those of `stored`, where the frozen weights of `forward` are stored in fewer bytes.

    Raises:
        GradientError: an operator between a trained parameter and the loss has no derivative.
        ModelError: the loss does not fit the model, or it multiplies nothing that a precision could lower.
        SelectionError: there is nothing for `recomputation` to compute again.
    """
    model, forward = forward, forward if stored is None else stored.forward
    divided = cut(forward, selection) if divide else ""
    if isinstance(divided, Cut):
        step = {"trunk": divided.trunk, **build_step(divided.rest, selection, loss, optimizer, recomputation)}
    else:
        step = build_step(forward, selection, loss, optimizer, recomputation)
    lowered = {precision: lower_all(step, precision) for precision in precisions}
    weights = initial_weights(forward)
    with new_directory(directory) as folder:
        moved = (*selection.trainable, *selection.buffers)
        moved_places = save_weights(folder / PARAMETERS_FILE, {name: weights[name] for name in moved})
        frozen = {name: tensor for name, tensor in weights.items() if name not in moved}
        places = save_weights(folder / FROZEN_FILE, frozen)
        graphs: dict[GraphRole, GraphFile] = {}
        for role, graph in step.items():
            save_model(graph.model, folder / f"{role}.onnx", places)
            graphs[role] = GraphFile(f"{role}.onnx", graph.inputs, graph.outputs)
        half: dict[HalfPrecision, dict[GraphRole, GraphFile]] = {precision: {} for precision in lowered}
        for precision, made in lowered.items():
            for role, graph in made.items():
                file = f"{role}.{precision}.onnx"
                save_model(graph.model, folder / file, places)
                half[precision][role] = GraphFile(file, graph.inputs, graph.outputs, precision)
        if forward.added:
            save_model(adapter_graph(forward, selection), folder / "infer_adapter.onnx", {**places, **moved_places})
            graphs["infer_adapter"] = GraphFile("infer_adapter.onnx")
        ranges = save_inference(forward.deployed, folder / "infer.onnx")
        graphs["infer"] = GraphFile("infer.onnx")
        return describe(
            folder, model, selection, loss, optimizer,
            generator="native", batch_size=batch_size, graphs=graphs, ranges=ranges,
            half=half, rest=divided.rest if isinstance(divided, Cut) else None,
            whole="" if isinstance(divided, Cut) else divided,
            frozen_weights=None if stored is None else stored.weights,
            recompute=recomputation.per_segment if recomputation else 0,
        )  # fmt: skip


def initial_weights(forward: Forward) -> dict[str, ir.TensorProtocol]:
    """{name: value} of the tensors that the graphs read."""
    named = {t.name for t in forward.tensors}
    found = {}
    for graph in (forward.infer.graph, forward.train.graph):
        found.update(
            {n: v.const_value for n, v in graph.initializers.items() if n in named and v.const_value is not None}
        )
    return found
