"""Convolution and its transpose: each is the other's gradient in the data."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.convolution_weight import convolution_weight
from onnxft.grad.rules.windows import Window, stretch, windows
from onnxft.graph.builder import Op, flip_axis, reshape, slice_axis
from onnxft.graph.shapes import dims, static_dims


@vjp("Conv")
def conv(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = conv(x, w) + b      dx = conv^T(dy, w),  dw as in `convolution_weight`,  db = sum of dy but over channels"""
    x, w, *b = node.inputs
    assert x is not None and w is not None
    group = node.attributes.get_int("group", 1)
    over = windows(node, x, node.outputs[0], static_dims(w, 2))
    dense_and_strided = group == 1 and any(v.stride > 1 for v in over)
    dx = (data_by_conv_transpose if dense_and_strided else data_by_conv)(op, dy, w, over, group)
    return dx, convolution_weight(op, x, dy, w, over, group), *_bias(op, dy, b)


@vjp("ConvTranspose")
def conv_transpose(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = conv^T(x, w) + b      dx = conv(dy, w),  dw as in `convolution_weight` with dy for x and x for dy

    db = sum of dy but over channels
    """
    x, w, *b = node.inputs
    assert x is not None and w is not None
    group = node.attributes.get_int("group", 1)
    over = windows(node, node.outputs[0], x, static_dims(w, 2))
    if "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise GradientError(f"ConvTranspose '{node.name}' has no rule for auto_pad and output_shape; give it pads")
    if any(-v.end >= v.stride for v in over):
        raise GradientError(f"ConvTranspose '{node.name}' has no rule for output_padding as large as its stride")
    dx = op.Conv(dy, w, group=group, pads=_pads(over), **_steps(over))
    return dx, convolution_weight(op, dy, x, w, over, group), *_bias(op, dy, b)


def data_by_conv_transpose(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = conv^T(dy, w); output_padding stands for the positions that the last window does not reach.

    Not for groups: OpenVINO moves a constant product behind the forward Conv into its weight, and a grouped
    ConvTranspose of that weight then reads the scaled one.
    """
    unread = [max(-v.end, 0) for v in over]
    dx: ir.Value = op.ConvTranspose(dy, w, group=group, pads=_pads(over), output_padding=unread, **_steps(over))
    return dx


def data_by_conv(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = conv(dy stretched by zeros to stride 1, w with its taps reversed and its channels exchanged)

    Providers run Conv faster than ConvTranspose, and fold the reversed weight where it is frozen.
    """
    m, c, *kernel = static_dims(w)
    rank = len(kernel)
    margins = []
    for v in over:
        dy = stretch(op, dy, v)
        before, after = _reach(v) - v.begin, _reach(v) - v.end
        # A frame wider than the kernel holds windows that read nothing: their gradient is cut off.
        dy = slice_axis(op, dy, v.axis, max(-before, 0), static_dims(dy, v.axis, v.axis + 1)[0] + min(after, 0))
        margins.append((max(before, 0), max(after, 0)))
    for axis, taps in enumerate(kernel, start=2):
        w = flip_axis(op, w, axis) if taps > 1 else w
    w = reshape(op, w, [group, m // group, c, *kernel])
    w = op.Transpose(w, perm=[0, 2, 1, *range(3, 3 + rank)])
    w = reshape(op, w, [group * c, m // group, *kernel])
    pads = [before for before, _ in margins] + [after for _, after in margins]
    dx: ir.Value = op.Conv(dy, w, group=group, pads=pads, dilations=[v.dilation for v in over])
    return dx


def _reach(v: Window) -> int:
    return (v.kernel - 1) * v.dilation


def _pads(over: Sequence[Window]) -> list[int]:
    return [v.begin for v in over] + [max(v.end, 0) for v in over]


def _steps(over: Sequence[Window]) -> dict[str, list[int]]:
    return {"strides": [v.stride for v in over], "dilations": [v.dilation for v in over]}


def _bias(op: Op, dy: ir.Value, b: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    others = [axis for axis in range(len(dims(dy))) if axis != 1]
    return [None if v is None else op.ReduceSum(dy, others, keepdims=0) for v in b]
