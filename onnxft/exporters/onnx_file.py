"""A bare ONNX file of any producer as a source: neither torch nor transformers is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxft.arrays import Array
from onnxft.errors import ModelError
from onnxft.exporters.compare import compare
from onnxft.exporters.feeds import Sizes, draw_inputs, opened, opened_file, run
from onnxft.exporters.naming import check_names, check_output_names, rename_inside, rename_outputs
from onnxft.exporters.onnx_inputs import Inputs, forget_shapes, open_inputs, open_reshapes
from onnxft.exporters.onnx_tensors import find_tensors
from onnxft.exporters.shapes import Shapes, apply_shapes, complete_shapes
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.load import load_model
from onnxft.graph.normalize import normalize
from onnxft.graph.opset import convert
from onnxft.manifest import BATCH

EXAMPLE_ROWS = 16
"""Default batch size where neither an example nor the file says one."""
_RANDOM = ("RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial")


def export_file(
    path: Path,
    example_inputs: Any = None,
    *,
    name: str | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dropout: bool = True,
    dimensions: Mapping[str, int] | None = None,
) -> Forward:
    """Make an ONNX file trainable; the file is left as it is.

    Args:
        path: the file; its external data lies in plain files inside its folder.
        example_inputs: arrays with the batch first: one, a tuple or {input: array}; None draws them.
        name: of the model; None takes that of the file.
        input_names: names of the inputs; None keeps those of the file.
        output_names: names of the outputs; None keeps those of the file.
        dropout: whether Dropout, which a file has in inference form, is active in training.
        dimensions: {open dimension besides the batch: its default size}; None takes those of the example.

    Raises:
        ModelError: the file cannot be read, trained or run, or the exported graph does not equal it.
        ConfigError: `dimensions` names an unknown one, or has a size below 1.
    """
    model = load_model(path)
    _check_domains(model)
    # The runtime reads the file first: what it refuses has a reason, in a pass it would be a crash.
    with opened_file(path) as source:
        convert(model)
        _check_behaviour(model)
        common.RemoveInitializersFromInputsPass()(model)
        renamed = rename_inside(model.graph)
        constants = {v.name or "" for node in model.graph if node.op_type == "Constant" for v in node.outputs}
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.ShapeInferencePass()(model)
        tensors = find_tensors(model.graph, constants)
        originals = [str(v.name) for v in model.graph.outputs]
        inputs = open_inputs(model.graph, input_names, dimensions or {}, example_inputs)
        weights = [f"the tensor '{old}' is called '{new}' here" for old, new in renamed.items() if new in tensors]
        notes = [*inputs.notes, *weights, *_name_outputs(model.graph, output_names)]
        check_names(tuple(inputs.names.values()), tensors)
        check_output_names([str(v.name) for v in model.graph.outputs], (*inputs.names.values(), *tensors))
        if inputs.fixed_rows is not None:
            open_reshapes(model.graph, inputs.fixed_rows)
            notes.append(f"the file fixes the batch to {inputs.fixed_rows}; here it is open")
        forget_shapes(model.graph)
        try:
            train, infer = _internal_form(model, tensors, inputs.sizes, dropout=dropout)
            check_outputs(infer, inputs, source, originals)
        except ModelError as err:
            if inputs.fixed_rows is None:
                raise
            raise ModelError(
                f"the batch of '{path}' is fixed to {inputs.fixed_rows} and cannot be opened ({err}) Export the model "
                "with a dynamic first dimension (in torch: dynamic_shapes or dynamic_axes)."
            ) from err
    return Forward(
        name=name or path.stem,
        train=train,
        infer=infer,
        tensors=tuple(replace(t, used=t.name in infer.graph.initializers) for t in tensors.values()),
        inputs=tuple(inputs.names.values()),
        outputs=tuple(str(v.name) for v in infer.graph.outputs),
        example_rows=inputs.example_rows or EXAMPLE_ROWS,
        dimensions=inputs.sizes,
        notes=tuple(notes),
    )


def _internal_form(
    model: ir.Model, tensors: Mapping[str, Tensor], sizes: Sizes, *, dropout: bool
) -> tuple[ir.Model, ir.Model]:
    """The training and the inference graph, with all shapes; `model` is used up."""
    normalize(model, tensors, dropout=True)
    infer = _without_dropout(model)
    shapes = complete_shapes(infer, sizes)
    return (_with_dropout(model, shapes, sizes) if dropout else infer.clone()), infer


def check_outputs(infer: ir.Model, inputs: Inputs, source: Any, originals: Sequence[str]) -> None:
    """The inference graph computes what the file computes, at two batch sizes and two sizes of each open dimension.

    Args:
        infer: the inference graph.
        inputs: of the model.
        source: the open session of the file.
        originals: names of the outputs in the file.

    Raises:
        ModelError: an output differs, or one of the two does not run.
    """
    outputs = [str(v.name) for v in infer.graph.outputs]
    with opened(infer) as session:
        for point, feeds in _feeds(infer, inputs, source, originals):
            expected = _rows(source, originals, inputs, feeds)
            found = run(session, outputs, feeds)
            where = "with " + ", ".join(f"{name} {size}" for name, size in point.items())
            for output, own, other in zip(outputs, found, expected, strict=True):
                compare(output, own, other, where, "the file", "Please report this with the model.")


def _feeds(
    infer: ir.Model, inputs: Inputs, source: Any, originals: Sequence[str]
) -> list[tuple[Sizes, dict[str, Array]]]:
    """Two batches of different sizes; the second one keeps the given sizes where the file itself takes no others."""
    first = {BATCH: 2, **inputs.sizes}
    feeds = draw_inputs(infer.graph.inputs, first)
    if inputs.example:
        given = {name: np.resize(array, (2, *array.shape[1:])) for name, array in inputs.example.items()}
        if all(given[n].shape == feeds[n].shape for n in given):
            feeds = {n: np.asarray(given[n], feeds[n].dtype) for n in given}
    second = {BATCH: 3, **inputs.sizes}
    for scale, more in ((0.5, 0), (1, 1)):
        point = {BATCH: 3, **{name: max(1, int(scale * size) + more) for name, size in inputs.sizes.items()}}
        try:
            _rows(source, originals, inputs, draw_inputs(infer.graph.inputs, point, seed=1))
        except ModelError:
            continue
        second = point
        break
    return [(first, feeds), (second, draw_inputs(infer.graph.inputs, second, seed=1))]


def _rows(source: Any, outputs: Sequence[str], inputs: Inputs, feeds: Mapping[str, Array]) -> list[Array]:
    """What the file computes for the rows of `feeds`, so many at a time as it takes."""
    named = {own: feeds[here] for own, here in inputs.names.items()}
    if inputs.fixed_rows is None:
        return run(source, outputs, named)
    count, size = len(next(iter(named.values()))), inputs.fixed_rows
    # A last part that is too short begins again with the first rows.
    parts = [
        run(source, outputs, {n: np.take(a, range(start, start + size), axis=0, mode="wrap") for n, a in named.items()})
        for start in range(0, count, size)
    ]
    for output, value in zip(outputs, parts[0], strict=True):
        if value.ndim == 0 or len(value) != size:
            raise ModelError(f"the output '{output}' has the shape {list(value.shape)}, whose first is not the batch.")
    return [np.concatenate(values)[:count] for values in zip(*parts, strict=True)]


def _check_domains(model: ir.Model) -> None:
    """ModelError for operators outside the standard."""
    graphs: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for node in (n for graph in graphs for n in ir.traversal.RecursiveGraphIterator(graph)):
        if node.domain not in ("", "ai.onnx") and node.op_identifier() not in model.functions:
            raise ModelError(
                f"{_name(node)} belongs to the domain '{node.domain}'; onnxft trains models of standard operators. "
                "Export the model without a runtime's optimizations and without custom operators."
            )


def _check_behaviour(model: ir.Model) -> None:
    """ModelError for a model that draws random numbers or is in training mode; its functions are inlined."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in _RANDOM:
            raise ModelError(
                f"{_name(node)} draws random numbers in inference, so the export cannot be checked: remove it."
            )
        match node.op_type:
            case "BatchNormalization":
                mode = node.attributes.get_int("training_mode", 0)
                training = mode != 0 or any(v.uses() for v in node.outputs[1:])
            case "Dropout" if len(node.inputs) > 2 and node.inputs[2] is not None:
                tensor = ir.convenience.get_const_tensor(node.inputs[2])
                training = tensor is None or bool(tensor.numpy())
            case _:
                training = False
        if training:
            raise ModelError(f"{_name(node)} is in training mode, or may be. {_EVALUATION}")


def _name(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}' (output '{node.outputs[0].name if node.outputs else ''}')"


_EVALUATION = "Export the model in evaluation mode (in torch: model.eval()); onnxft makes the training graph itself."


def _name_outputs(graph: ir.Graph, output_names: Sequence[str] | None) -> tuple[str, ...]:
    """Give the outputs their names; a note on each that was called as the training graphs call theirs."""
    own = [str(v.name) for v in graph.outputs]
    for value in graph.outputs:
        if not isinstance(value.type, ir.TensorType):
            raise ModelError(f"output '{value.name}' is no tensor ({value.type}): remove it from the model.")
    if output_names is not None and len(output_names) != len(own):
        raise ModelError(f"output_names has {len(output_names)} names for {len(own)} outputs ({', '.join(own)}).")
    names = list(output_names or rename_outputs(own))
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
    if output_names is not None:
        return ()
    return tuple(f"the model output '{a}' is called '{b}' here" for a, b in zip(own, names, strict=True) if a != b)


def _without_dropout(model: ir.Model) -> ir.Model:
    """A copy in inference behaviour."""
    copy: ir.Model = model.clone()
    for node in list(copy.graph):
        if node.op_type == "Dropout":
            assert node.inputs[0] is not None
            if len(node.outputs) > 1 and node.outputs[1].uses():
                raise ModelError(f"the mask of Dropout '{node.name}' is read by the model: export it without.")
            _replace(copy.graph, node)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    """Let the readers of a Dropout read its input; as an output of the graph it becomes an Identity."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if not y.is_graph_output():
        y.replace_all_uses_with(x)
        graph.remove(node, safe=True)
        return
    name, index = y.name, graph.outputs.index(y)
    identity = ir.node("Identity", [x])
    graph.insert_before(node, identity)
    new = identity.outputs[0]
    y.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.type, new.shape = name, y.type, y.shape
    assert graph.outputs[index] is new


def _with_dropout(model: ir.Model, shapes: Shapes, sizes: Sizes) -> ir.Model:
    """A copy in training behaviour, with the shapes measured on `infer`."""
    train: ir.Model = model.clone()
    apply_shapes(train, shapes, (BATCH, *sizes))
    for node in train.graph:
        if node.op_type == "Dropout":
            assert node.inputs[0] is not None
            node.outputs[0].shape, node.outputs[0].type = node.inputs[0].shape, node.inputs[0].type
    common.RemoveUnusedNodesPass()(train)
    return train
