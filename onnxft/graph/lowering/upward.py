"""Opset 13 to 17: the few operators whose form changed up to opset 18."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.lowering.registry import Rewritten, given, refusal, rewrites, wanted


@rewrites(
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
    until=17,
)
def reduce(op: Op, node: ir.Node) -> Rewritten:
    """`axes` becomes an input; none, or an empty list, goes on meaning all."""
    axes = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else []
    attributes = {"keepdims": node.attributes.get_int("keepdims", 1)}
    x = given(node, 0)
    return getattr(op, node.op_type)(*([x, axes] if axes else [x]), **attributes)  # type: ignore[no-any-return]


@rewrites("Split", until=17)
def split(op: Op, node: ir.Node) -> Rewritten:
    """Equal parts, one for each output, are said by `num_outputs`."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    return None


@rewrites("BatchNormalization", until=13)
def batch_normalization(op: Op, node: ir.Node) -> Rewritten:
    """Several outputs meant training; from opset 14 on `training_mode` says so, without the saved statistics."""
    if len(node.outputs) == 1:
        return None
    if wanted(node, 3) or wanted(node, 4):
        raise refusal(
            node,
            "hands on its saved statistics, which it does not have from opset 14 on",
            "Export the model in evaluation mode, or with opset_version=18",
        )
    options = {k: node.attributes.get_float(k, v) for k, v in (("epsilon", 1e-5), ("momentum", 0.9))}
    outputs = op.BatchNormalization(*node.inputs, **options, training_mode=1, _outputs=3)
    return [*outputs, *[None] * (len(node.outputs) - 3)][: len(node.outputs)]  # type: ignore[misc]


@rewrites("RoiAlign", until=15)
def roi_align(op: Op, node: ir.Node) -> Rewritten:
    """The only coordinates before opset 16 are not the default since."""
    mode = "coordinate_transformation_mode"
    node.attributes[mode] = ir.AttrString(mode, "output_half_pixel")
    return None
