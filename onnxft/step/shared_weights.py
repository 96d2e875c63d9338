"""A weight of its own for each grouped convolution that reads the same trained weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxft.grad.rules.convolution_data import pads, steps
from onnxft.grad.rules.windows import windows
from onnxft.graph.builder import Op, constant
from onnxft.graph.shapes import static_dims

_KINDS = ("Conv", "ConvTranspose")


def separate_shared_weights(op: Op) -> None:
    """Put i taps of zeros before the weight that the i-th further grouped convolution reads, in place.

    conv(x, w; begin) = conv(x, [0 w]; begin + dilation). Each convolution then reads another weight, which OpenVINO
    needs (see `apart` in grad/rules/convolution_data.py, which puts its taps behind, so that none of the two meet).
    """
    for value in list(op.builder.graph.inputs):
        readers = [node for node, index in value.uses() if node.op_type in _KINDS and index == 1]
        grouped = [node for node in readers if node.attributes.get_int("group", 1) > 1]
        for taps, node in enumerate(grouped[1:], start=1):
            _pad_weight(op, node, value, taps)


def _pad_weight(op: Op, node: ir.Node, w: ir.Value, taps: int) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    m, c, _, *kernel = static_dims(w)
    ends = (x, y) if node.op_type == "Conv" else (y, x)
    first, *others = windows(node, *ends, static_dims(w, 2))
    over = [replace(first, kernel=first.kernel + taps, begin=first.begin + taps * first.dilation), *others]
    graph = op.builder.graph
    zeros = constant(op, np.zeros((m, c, taps, *kernel)), w)
    concat = ir.Node("", "Concat", [zeros, w], [ir.AttrInt64("axis", 2)], name=f"{node.name}.weight")
    own = concat.outputs[0]
    own.name, own.type, own.shape = f"{node.name}.weight", w.type, ir.Shape([m, c, first.kernel + taps, *kernel])
    graph.insert_before(node, concat)
    node.replace_input_with(1, own)
    node.attributes.pop("auto_pad", None)
    attributes = {"pads": pads(over), "kernel_shape": [v.kernel for v in over], **steps(over)}
    for name, values in attributes.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
