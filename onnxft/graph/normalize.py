"""Bringing a graph to the internal form that rules and generators read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from onnxft.errors import ModelError
from onnxft.graph.constants import add_constant
from onnxft.graph.gelu import order_gelu
from onnxft.graph.opset import OPSET as OPSET
from onnxft.graph.opset import convert
from onnxft.graph.shapes import Dim, dims
from onnxft.manifest import BATCH

IR_VERSION = 10
_FOLDED_SIZE = 1 << 16
"""Values of at most this many elements are folded: shape arithmetic and small tables, not copies of weights."""


def normalize(
    model: ir.Model,
    tensors: Collection[str],
    symbolic: Mapping[str, Mapping[int, str]] | None = None,
    *,
    dropout: bool = False,
) -> None:
    """Bring `model` to the internal form, in place.

    Functions are inlined, any opset that is read becomes 18, constants become initializers, shape
    arithmetic is folded, the batch dimension is called `batch`, shapes are inferred, the factors of
    a Gelu have one order. Initializers named in `tensors` keep name and value, and are never merged:
    not even when two are equal.
    `symbolic` {input: {axis: name}} names further dimensions that are not static. With `dropout`,
    Dropout in inference form becomes active instead of going.

    Raises:
        ModelError: the opset is not read, an operator has no form in opset 18, or an input has a static
            dimension that should be symbolic.
    """
    convert(model)
    model.ir_version = IR_VERSION
    _name_dimensions(model, symbolic or {})
    if dropout:
        activate_dropout(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    kept = set(tensors)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLDED_SIZE,
        output_size_limit=_FOLDED_SIZE,
        should_fold=lambda node: False if any(v is not None and v.name in kept for v in node.inputs) else None,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(data_prop=True)(model)
    make_reshapes_static(model.graph)
    order_gelu(model.graph)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.TopologicalSortPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def _name_dimensions(model: ir.Model, symbolic: Mapping[str, Mapping[int, str]]) -> None:
    """Call the first dimension of the inputs `batch`, and those of `symbolic` by their names, everywhere."""
    graph = model.graph
    renamed: dict[str, str] = {}
    for value in graph.inputs:
        if value.shape is None or len(value.shape) == 0 or isinstance(value.shape[0], int):
            raise ModelError(
                f"input '{value.name}' has the shape {list(dims(value)) if value.shape else '?'}; its first dimension "
                "must be the symbolic batch. Export with a dynamic first dimension."
            )
        shape: list[Dim] = list(dims(value))
        for axis, name in {0: BATCH, **symbolic.get(str(value.name), {})}.items():
            old = shape[axis]
            if isinstance(old, int):
                raise ModelError(
                    f"the dimension '{name}' of input '{value.name}' became {old} in the export: the model only takes "
                    "that size. Leave it out of the dynamic dimensions."
                )
            if old is not None:
                renamed[old] = name
            shape[axis] = name
        value.shape = ir.Shape(shape)
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else _renamed(d.value, renamed) for d in value.shape])


def _renamed(dim: str | None, names: Mapping[str, str]) -> str | None:
    """A dimension, which may be an expression such as `2*s0 + 1`, in the new names."""
    return None if dim is None else re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim)


def activate_dropout(graph: ir.Graph, *, every: bool = True) -> None:
    """Put every Dropout into training mode, or those that say nothing of a mode."""
    nodes = [node for node in graph if node.op_type == "Dropout"]
    if not every:
        nodes = [node for node in nodes if len(node.inputs) < 3 or node.inputs[2] is None]
    if not nodes:
        return
    training = add_constant(graph, "dropout.training_mode", ir.tensor(True))
    for node in nodes:
        node.resize_inputs(3)
        node.replace_input_with(2, training)


def make_reshapes_static(graph: ir.Graph, names: Collection[str] = ()) -> None:
    """Give Reshapes a constant target where all but one of the symbolic dimensions are copied from the input (0).

    The run-time arithmetic behind the old target then has no reader and goes. Equal names mean equal
    sizes only for those in `names`: others may come from inferences that do not know each other.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.outputs[0].shape is None or node.inputs[0] is None:
            continue
        old = node.inputs[1]
        if old is None or old.const_value is not None:
            continue
        shape = dims(node.outputs[0])
        source = dims(node.inputs[0]) if node.inputs[0].shape is not None else ()
        target = [d if isinstance(d, int) else -1 for d in shape]
        if target.count(-1) > 1 and 0 not in target:
            pairs = zip(target, shape, (*source, *[None] * len(shape)), strict=False)
            target = [0 if isinstance(d, str) and d == s and d in names else t for t, d, s in pairs]
        if target.count(-1) > 1:
            continue
        if 0 in target and 0 not in shape:  # it means copy
            node.attributes.pop("allowzero", None)
        constant = ir.tensor(target, dtype=ir.DataType.INT64)
        node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}.shape", constant))
