"""Masks of gradients as products, where no gradient can be infinite."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from onnxft.graph.builder import Op, cast_like
from onnxft.graph.constants import constant_array
from onnxft.graph.shapes import dims, set_dims
from onnxft.graph.walk import after, nodes_of, reads

_BOUNDED = {
    # of position and shape
    "Cast", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad",
    "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    # linear
    "Add", "AveragePool", "Conv", "ConvTranspose", "Einsum", "Gemm", "GlobalAveragePool", "MatMul", "Mul", "Neg",
    "ReduceMean", "ReduceSum", "Resize", "Sub", "Sum",
    # of a slope within bounds, or divided by more than an epsilon
    "Abs", "BatchNormalization", "Celu", "Clip", "Elu", "Erf", "Gelu", "GlobalMaxPool", "GroupNormalization",
    "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "LogSoftmax", "Max",
    "MaxPool", "Min", "Mish", "PRelu", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "Relu", "Selu", "Sigmoid",
    "Softmax", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
}  # fmt: skip
"""Operators whose gradients are finite where what they read and the gradient of what they compute are."""


def multiply_masks(op: Op, forward: Collection[ir.Node], parameters: Iterable[ir.Value], loss: ir.Value) -> None:
    """Write `mask ? dy : 0` of the backward pass as dy * mask, in place.

    ONNX Runtime (1.32, CPU) takes four times as long for Where, 13.6 against 3.5 ms for (16, 96, 64, 64). The product
    is not 0 where dy is infinite, which a gradient may be that the mask leaves out: that of sqrt(relu(x)) at 0 is. So
    nothing is changed unless every operator from the parameters to the loss is one of a bounded slope. Numbers that
    overflow then give NaN, and end the run as they do anywhere else.

    Args:
        op: writes into the differentiated graph.
        forward: its nodes before differentiation.
        parameters: those that gradients are computed of.
        loss: from which they come.
    """
    nodes = nodes_of([loss])
    moved = after(nodes, parameters)
    if not all(_is_bounded(node, moved) for node in nodes if not moved.isdisjoint(reads(node))):
        return
    graph = op.builder.graph
    for node in [node for node in graph if node.op_type == "Where" and node not in forward]:
        mask, dy, other = node.inputs
        (dx,) = node.outputs
        assert mask is not None and dy is not None and other is not None
        if _is_zero(other) and dims(mask) == dims(dy) == dims(dx):
            product = op.Mul(_unexpanded(dy), cast_like(op, mask, dy))
            set_dims(product, dims(dx))
            dx.replace_all_uses_with(product, replace_graph_outputs=True)
    graph.sort()


def _unexpanded(dy: ir.Value) -> ir.Value:
    """What an Expand repeats, which a product repeats by itself."""
    producer = dy.producer()
    is_expanded = producer is not None and producer.op_type == "Expand" and not producer.domain
    x = producer.inputs[0] if producer is not None and is_expanded else None
    return dy if x is None else x


def _is_bounded(node: ir.Node, moved: Collection[ir.Value]) -> bool:
    """Whether the node is one of `_BOUNDED`, a division by what is constant, or a square."""
    if node.op_type == "Div":
        return node.inputs[1] not in moved
    if node.op_type == "Pow":
        exponent = constant_array(node.inputs[1])
        return exponent is not None and bool((exponent >= 1).all())
    return not node.domain and node.op_type in _BOUNDED


def _is_zero(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.shape == () and not array.any()
