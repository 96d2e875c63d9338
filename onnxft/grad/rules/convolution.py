"""Convolution and its transpose: each is the other's gradient in the data."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.convolution_weight import convolution_weight
from onnxft.grad.rules.windows import Window, windows
from onnxft.graph.builder import Op, flip_axis, reshape
from onnxft.graph.shapes import dims, static_dims


@vjp("Conv")
def conv(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = conv(x, w) + b      dx = conv^T(dy, w),  dw as in `convolution_weight`,  db = sum of dy but over channels"""
    x, w, *b = node.inputs
    assert x is not None and w is not None
    group = node.attributes.get_int("group", 1)
    over = windows(node, x, node.outputs[0], static_dims(w, 2))
    dx = (data_by_conv if _runs_backwards(over) else data_by_conv_transpose)(op, dy, w, over, group)
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
    """dx = conv^T(dy, w); output_padding stands for the positions that the last window does not reach."""
    unread = [max(-v.end, 0) for v in over]
    dx: ir.Value = op.ConvTranspose(dy, w, group=group, pads=_pads(over), output_padding=unread, **_steps(over))
    return dx


def data_by_conv(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = conv(dy, w with its taps reversed and its channels exchanged), at stride 1

    Providers run Conv faster than ConvTranspose, and fold the reversed weight where it is frozen.
    """
    m, c, *kernel = static_dims(w)
    rank = len(kernel)
    for axis, taps in enumerate(kernel, start=2):
        w = flip_axis(op, w, axis) if taps > 1 else w
    w = reshape(op, w, [group, m // group, c, *kernel])
    w = op.Transpose(w, perm=[0, 2, 1, *range(3, 3 + rank)])
    w = reshape(op, w, [group * c, m // group, *kernel])
    pads = [_reach(v) - v.begin for v in over] + [_reach(v) - v.end for v in over]
    dx: ir.Value = op.Conv(dy, w, group=group, pads=pads, dilations=[v.dilation for v in over])
    return dx


def _runs_backwards(over: Sequence[Window]) -> bool:
    """Whether `data_by_conv` applies: it would need negative padding where a frame is wider than the kernel."""
    return all(v.stride == 1 and max(v.begin, v.end) <= _reach(v) for v in over)


def _reach(v: Window) -> int:
    return (v.kernel - 1) * v.dilation


def _pads(over: Sequence[Window]) -> list[int]:
    return [v.begin for v in over] + [max(v.end, 0) for v in over]


def _steps(over: Sequence[Window]) -> dict[str, list[int]]:
    return {"strides": [v.stride for v in over], "dilations": [v.dilation for v in over]}


def _bias(op: Op, dy: ir.Value, b: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    others = [axis for axis in range(len(dims(dy))) if axis != 1]
    return [None if v is None else op.ReduceSum(dy, others, keepdims=0) for v in b]
