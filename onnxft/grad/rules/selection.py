"""Operators that choose among the values of a tensor, and OneHot, which chooses between two."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, constant, reshape, reshape_like, static_axis, zeros_like
from onnxft.graph.shapes import dims


@vjp("TopK")
def top_k(op: Op, node: ir.Node, dy: ir.Value | None, *_: ir.Value | None) -> Gradients:
    """y, indices = the k largest of x along axis      dx = 0 but for dx[indices] = dy

    A tie is broken as the forward operator broke it: ONNX takes the lower index.
    """
    x, _k = node.inputs
    indices = node.outputs[1]
    assert x is not None and dy is not None
    return op.ScatterElements(zeros_like(op, x), indices, dy, axis=static_axis(node, -1)), None


@vjp("Compress")
def compress(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[condition] along axis, or of x flattened      dx = 0 but for dx[condition] = dy

    The condition may be shorter than the axis; what lies behind it is not taken.
    """
    x, condition = node.inputs
    assert x is not None
    taken = op.NonZero(condition)  # (1, taken)
    if "axis" not in node.attributes:
        zeros = reshape(op, zeros_like(op, x), [None])
        return reshape_like(op, op.ScatterElements(zeros, op.Squeeze(taken, [0]), dy, axis=0), x), None
    axis = static_axis(node, 0)
    rank = len(dims(x))
    rows = op.Reshape(taken, [-1, *[1] * (rank - axis - 1)])
    return op.ScatterElements(zeros_like(op, x), op.Expand(rows, op.Shape(dy)), dy, axis=axis), None


@vjp("OneHot")
def one_hot(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = hit ? on : off with values = [off, on]      doff = sum(hit ? 0 : dy),  don = sum(hit ? dy : 0)"""
    indices, depth, values = node.inputs
    assert values is not None
    axis = node.attributes.get_int("axis", -1)
    hit = op.OneHot(indices, depth, constant(op, [0.0, 1.0], values), axis=axis)
    on = op.ReduceSum(op.Mul(dy, hit), keepdims=0)
    off = op.ReduceSum(op.Mul(dy, op.Sub(1.0, hit)), keepdims=0)
    return None, None, op.Concat(op.Unsqueeze(off, [0]), op.Unsqueeze(on, [0]), axis=0)
