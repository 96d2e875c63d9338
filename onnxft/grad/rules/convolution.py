"""Convolution and its transpose: each is the other's gradient in the data."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.convolution_data import apart, convolution_data, pads, steps
from onnxft.grad.rules.convolution_weight import convolution_weight
from onnxft.grad.rules.windows import Window, windows
from onnxft.graph.builder import Op
from onnxft.graph.shapes import dims, static_dims


@vjp("Conv")
def conv(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = conv(x, w) + b      dx as in `convolution_data`,  dw as in `convolution_weight`

    db = sum of dy but over channels
    """
    x, w, *b = node.inputs
    assert x is not None and w is not None
    group = node.attributes.get_int("group", 1)
    over = windows(node, x, node.outputs[0], static_dims(w, 2))
    dx = convolution_data(op, dy, w, over, group)
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
    _check_padding(node, over)
    if any(-v.end >= v.stride for v in over):
        raise GradientError(f"ConvTranspose '{node.name}' has no rule for output_padding as large as its stride")
    own, around = apart(op, w, over, group)
    # As of a square matrix, see `_on_the_way_back` in products.py: OpenVINO takes the two uses of the weight for one.
    is_square = group == 1 and static_dims(w)[0] == static_dims(w)[1]
    is_mistaken = is_square and ir.convenience.get_const_tensor(w) is not None
    own = op.Neg(own) if is_mistaken else own
    dx = op.Conv(dy, own, group=group, pads=pads(around), **steps(around))
    dx = op.Neg(dx) if is_mistaken else dx
    return dx, convolution_weight(op, dy, x, w, over, group), *_bias(op, dy, b)


def _check_padding(node: ir.Node, over: Sequence[Window]) -> None:
    """GradientError where shape inference or another runtime would take other pads than ONNX Runtime's CPU provider.

    With output_shape that provider splits the padding as the specification says, OpenVINO (2025.4) by `pads` or with
    the odd one at the other end. With auto_pad it has outputs * stride positions, shape inference adds output_padding.
    """
    same = node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    extra = node.attributes.get_ints("output_padding") or [0] * len(over)
    given = "output_shape" in node.attributes
    missing = [v.extent + more - v.size for v, more in zip(over, extra, strict=True)]
    split = any(n > 0 and not (same and n % 2 == 0) for n in missing) or any(node.attributes.get_ints("pads") or [])
    if (given and split) or (same and not given and any(v.size != v.outputs * v.stride for v in over)):
        shape = [v.size for v in over]
        raise GradientError(
            f"runtimes differ in the pads of ConvTranspose '{node.name}', whose output_shape or auto_pad asks for "
            f"{shape} positions. Give it pads and output_padding instead."
        )


def _bias(op: Op, dy: ir.Value, b: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    others = [axis for axis in range(len(dims(dy))) if axis != 1]
    return [None if v is None else op.ReduceSum(dy, others, keepdims=0) for v in b]
