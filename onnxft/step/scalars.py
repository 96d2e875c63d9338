"""Scalars in the rank of what they are combined with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.shapes import dims, set_dims

_OPERATORS = ("Add", "Sub", "Mul", "Div", "Pow", "Less", "Greater", "Equal")


def raise_scalars(op: Op) -> None:
    """Give each scalar beside a tensor with a dimension of 1 that tensor's rank, as a shape of ones.

    ONNX Runtime (1.32, CPU) walks through such a tensor along the axes behind the 1 alone where the other operand lacks
    an axis, and along memory where it does not: for the weight (1152, 192, 1, 1) of a convolution, one element at a
    time, 1.04 against 0.014 ms; for (1152, 1, 5, 5) 24 against 9 microseconds.
    """
    raised: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(op.builder.graph):
        if node.op_type not in _OPERATORS or node.domain:
            continue
        shapes = [dims(v) if v is not None and v.shape is not None else None for v in node.inputs]
        for index, (x, shape, other) in enumerate(zip(node.inputs, shapes, reversed(shapes), strict=True)):
            if x is None or shape is None or other is None or 1 not in other or len(shape) >= len(other):
                continue
            if any(d != 1 for d in shape):
                continue
            key = x, len(other)
            if key not in raised:
                raised[key] = op.Reshape(x, _ones(op, len(other)))
                set_dims(raised[key], [1] * len(other))
            node.replace_input_with(index, raised[key])


def _ones(op: Op, rank: int) -> ir.Value:
    """The shape of a single element in that rank, once a graph."""
    name = f"one_element.{rank}"
    found = op.builder.graph.initializers.get(name)
    return found if found is not None else op.initializer(ir.tensor(np.ones(rank, np.int64)), name=name)
