"""What stands around a convolution and becomes part of it, so that no pass over the data is made for it.

A runtime folds this itself where weights are constant and nothing else reads what lies between. In a training graph the
weights are inputs, and the backward pass reads the data.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxft.graph.builder import Op, reshape
from onnxft.graph.constants import constant_array
from onnxft.graph.shapes import dims, static_dims
from onnxft.graph.walk import after


def fold_padding(graph: ir.Graph) -> None:
    """Let each convolution pad by itself what a Pad with zeros pads for it, in place."""
    for conv in [node for node in graph if node.op_type == "Conv" and not node.domain]:
        padded, *_ = conv.inputs
        pad = padded.producer() if padded is not None else None
        if (
            pad is None
            or pad.op_type != "Pad"
            or pad.domain
            or conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        ):
            continue
        added, x = _zeros_around(pad), pad.inputs[0]
        if added is None or added[:2] != [(0, 0), (0, 0)] or min(map(min, added)) < 0:
            continue
        space = added[2:]
        own = conv.attributes.get_ints("pads") or [0] * (2 * len(space))
        around = [n for n, _ in space] + [n for _, n in space]
        conv.attributes.add(ir.AttrInt64s("pads", [a + b for a, b in zip(own, around, strict=True)]))
        conv.replace_input_with(0, x)


def fold_batch_norm(op: Op, parameters: Iterable[ir.Value]) -> None:
    """Let each trained convolution normalise by itself what a BatchNorm with fixed statistics normalises, in place.

    (conv(x, w) + b - mean) * a + bias = conv(x, w * a) + (b - mean) * a + bias  with  a = scale / sqrt(var + epsilon)

    So neither the forward nor the backward pass multiplies the data by a. Where scale or bias are trained the layer
    stays: in half precision their gradients would come out of products that are rounded too early.

    Args:
        op: writes into the graph.
        parameters: those that are trained.
    """
    graph = op.builder.graph
    trained = after(graph, parameters)
    for norm in [node for node in graph if node.op_type == "BatchNormalization" and not node.domain]:
        y, scale, bias, mean, var = norm.inputs
        conv = y.producer() if y is not None else None
        if conv is None or conv.op_type != "Conv" or conv.domain or norm.attributes.get_int("training_mode", 0):
            continue
        assert y is not None and scale is not None and bias is not None
        w = conv.inputs[1]
        is_fixed = all(constant_array(v) is not None for v in norm.inputs[1:])
        if w not in trained or not is_fixed or len(y.uses()) > 1 or y.is_graph_output():
            continue
        assert w is not None
        epsilon = norm.attributes.get_float("epsilon", 1e-5)
        a = op.Mul(scale, op.Reciprocal(op.Sqrt(op.Add(var, epsilon))))
        own = conv.inputs[2] if len(conv.inputs) > 2 else None
        shift = op.Neg(mean) if own is None else op.Sub(own, mean)
        conv.resize_inputs(3)
        conv.replace_input_with(1, op.Mul(w, reshape(op, a, [static_dims(w)[0], *[1] * (len(dims(w)) - 1)])))
        conv.replace_input_with(2, op.Add(op.Mul(shift, a), bias))
        norm.outputs[0].replace_all_uses_with(y, replace_graph_outputs=True)
    graph.sort()


def _zeros_around(pad: ir.Node) -> list[tuple[int, int]] | None:
    """How many zeros a Pad puts before and behind each axis; None where it puts something else, or is not constant."""
    x, *given = pad.inputs
    amounts, value, axes = ([constant_array(v) for v in given] + [None, None])[:3]
    absent = [v is None for v in given] + [True, True]
    is_known = amounts is not None and (absent[1] or value is not None) and (absent[2] or axes is not None)
    if not is_known or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if x is None or amounts is None or (value is not None and value.any()):
        return None
    rank = len(dims(x))
    found = [(0, 0)] * rank
    places = range(rank) if axes is None else [int(i) % rank for i in axes]
    for place, before, behind in zip(places, amounts[: len(places)], amounts[len(places) :], strict=True):
        found[place] = int(before), int(behind)
    return found
