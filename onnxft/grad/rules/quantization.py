"""Quantization. Rounding has no derivative; going back to floats has one in the scale."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, cast_like, reshape, static_axis
from onnxft.graph.shapes import dims


@vjp("DequantizeLinear")
def dequantize_linear(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (x - zero_point) * scale      dscale = sum(dy * (x - zero_point))

    With a vector of scales the sum is over all axes but axis. In opset 18 x and zero_point are integers, without
    gradient.
    """
    x, scale, *zero_point = node.inputs
    assert x is not None and scale is not None
    rank = len(dims(x))
    channels = dims(scale)
    per_axis = len(channels) == 1 and channels[0] != 1
    axis = static_axis(node, 1) if per_axis else rank
    steps = cast_like(op, x, scale)
    if zero_point and zero_point[0] is not None:
        zero = cast_like(op, zero_point[0], scale)
        steps = op.Sub(steps, reshape(op, zero, [channels[0], *[1] * (rank - axis - 1)]) if per_axis else zero)
    others = [i for i in range(rank) if i != axis]
    dscale = op.Mul(dy, steps)
    if others:
        dscale = op.ReduceSum(dscale, others, keepdims=0)
    return None, reshape(op, dscale, channels), *[None for _ in zero_point]
