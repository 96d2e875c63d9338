"""Trained depthwise convolutions over few positions, as products with a matrix for each channel."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir as ir

from onnxft.grad.rules.convolution_matrix import by_matrix, fits_matrix
from onnxft.grad.rules.windows import windows
from onnxft.graph.builder import Op, per_channel
from onnxft.graph.shapes import dims, set_dims, static_dims
from onnxft.graph.walk import after

MOST_POSITIONS_PER_TAP = 2
"""Above, the matrices take more memory than batches of usual size."""


def multiply_depthwise(op: Op, parameters: Iterable[ir.Value]) -> None:
    """Write each such convolution as the product that its gradients are, in place.

    The CPU provider is fast where the weight is constant: with one that is trained a convolution takes two to nine
    times as long as the product. Of many more positions than the window has taps the matrices would be larger than the
    data. The old nodes stay without readers until the graph is finished: the builder numbers its nodes by their count.
    """
    graph = op.builder.graph
    trained = after(graph, parameters)
    for node in [node for node in graph if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1]:
        x, w, *bias = node.inputs
        y, group = node.outputs[0], node.attributes.get_int("group", 1)
        if x is None or w not in trained:
            continue
        over = windows(node, x, y, static_dims(w, 2))
        positions, taps = math.prod(v.outputs for v in over), math.prod(v.kernel for v in over)
        if not fits_matrix(static_dims(w), over, group) or positions > MOST_POSITIONS_PER_TAP * taps:
            continue
        value = by_matrix(op, x, w, over, group)
        value = op.Add(value, per_channel(op, bias[0], y)) if bias and bias[0] is not None else value
        set_dims(value, dims(y))
        y.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.sort()
