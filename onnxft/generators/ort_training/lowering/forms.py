"""Forms of operators that the kernels of 1.19.2 do not run, although the standard allows them."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.shapes import dims, normalize_axis


def adapt_forms(graph: ir.Graph) -> None:
    """Bring every node to a form that runs, in place; ModelError where there is none."""
    for node in graph:
        _adapt(node)


def _adapt(node: ir.Node) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "ReduceSum" and _lacks(node, 1) and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        node.op_type = "Identity"
        node.attributes.clear()
        node.resize_inputs(1)
    elif node.op_type == "Resize" and "axes" in node.attributes and (x := node.inputs[0]) is not None:
        axes = [normalize_axis(axis, len(dims(x))) for axis in node.attributes["axes"].as_ints()]
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif node.op_type == "Slice" and (y := node.outputs[0]).shape is not None and 0 in dims(y):
        raise ModelError(
            f"'Slice' (node '{node.name}', output '{y.name}') takes nothing (shape {list(dims(y))}), on which "
            "onnxruntime-training 1.19.2 fails. Take it out of the model, or use the native generator."
        )


def _lacks(node: ir.Node, index: int) -> bool:
    return index >= len(node.inputs) or node.inputs[index] is None
