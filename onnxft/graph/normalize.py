"""Bringing a graph to the internal form that rules and generators read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from onnxft.errors import ModelError
from onnxft.graph.opset import OPSET as OPSET
from onnxft.graph.opset import convert
from onnxft.graph.shapes import Dim, dims, symbolic_count
from onnxft.manifest import BATCH

IR_VERSION = 10
_FOLDED_SIZE = 1 << 16
"""Values of at most this many elements are folded: shape arithmetic and small tables, not copies of weights."""


def normalize(model: ir.Model, tensors: Collection[str]) -> None:
    """Bring `model` to the internal form, in place.

    Functions are inlined, any opset that is read becomes 18, constants become initializers, shape
    arithmetic is folded, the batch dimension is called `batch`, shapes are inferred. Initializers
    named in `tensors` keep name and value, and are never merged: not even when two are equal.

    Raises:
        ModelError: the opset is not read, an operator has no form in opset 18, or an input has a first
            dimension that is not symbolic.
    """
    convert(model)
    model.ir_version = IR_VERSION
    _name_batch(model)
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
    _solve_reshapes(model.graph)
    _make_reshapes_static(model.graph)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.TopologicalSortPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def _name_batch(model: ir.Model) -> None:
    """Call the first symbolic dimension of the inputs `batch` everywhere."""
    graph = model.graph
    names = {d.value for v in graph.inputs if v.shape for d in v.shape[:1] if not isinstance(d, int)}
    for value in graph.inputs:
        if value.shape is None or len(value.shape) == 0 or isinstance(value.shape[0], int):
            raise ModelError(
                f"input '{value.name}' has the shape {list(dims(value)) if value.shape else '?'}; its first dimension "
                "must be the symbolic batch. Export with a dynamic first dimension."
            )
        value.shape = ir.Shape([BATCH, *value.shape[1:]])
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape(
                    [BATCH if not isinstance(d, int) and d.value in names else d for d in value.shape]
                )


def _solve_reshapes(graph: ir.Graph) -> None:
    """Put the size of the one dimension that a Reshape leaves open in its place, everywhere.

    Inference gives (7, batch, 2, 6) reshaped to (7, batch, 2 * 6) a name for the last dimension.
    """
    for node in graph:
        x, y = (node.inputs[0], node.outputs[0]) if node.op_type == "Reshape" else (None, None)
        if x is None or y is None or x.shape is None or y.shape is None:
            continue
        solved = open_dimension(dims(x), dims(y))
        if solved is None:
            continue
        name, size = solved
        values = [y] if name is None else [v for n in graph for v in n.outputs if v.shape is not None]
        for value in values:
            value.shape = ir.Shape([size if d == name else d for d in dims(value)])


def open_dimension(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[str | None, int] | None:
    """(name, size) of the one dimension of `after` that `before` has not, both being shapes of equally many values."""
    given, made = (Counter(d for d in shape if not isinstance(d, int)) for shape in (before, after))
    extra = list((made - given).elements())
    total, rest = (math.prod(d for d in shape if isinstance(d, int)) for shape in (before, after))
    if len(extra) != 1 or given - made or None in given or rest == 0 or total % rest:
        return None
    return extra[0], total // rest


def _make_reshapes_static(graph: ir.Graph) -> None:
    """Give each Reshape whose result has one symbolic dimension a constant target with one -1.

    The run-time arithmetic behind the old target then has no reader and goes.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.outputs[0].shape is None:
            continue
        shape = dims(node.outputs[0])
        target = node.inputs[1]
        if target is None or target.const_value is not None or symbolic_count(shape) > 1:
            continue
        tensor = ir.tensor([d if isinstance(d, int) else -1 for d in shape], dtype=ir.DataType.INT64)
        value = ir.Value(
            name=f"{node.outputs[0].name}.shape",
            const_value=tensor,
            shape=ir.Shape([len(shape)]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        graph.register_initializer(value)
        node.replace_input_with(1, value)
