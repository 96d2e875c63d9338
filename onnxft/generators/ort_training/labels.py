"""Labels that are no class: onnxruntime-training reads beside its memory for them, and gives a plausible loss.

`TrainSession` refuses them before a step. A program that feeds the graphs by another interface gets NaN for its loss.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxft.graph.builder import Op, constant
from onnxft.graph.shapes import static_dims
from onnxft.manifest import Loss


def wrong_labels(op: Op, what: Loss, logits: ir.Value, labels: ir.Value) -> ir.Value:
    """Where class labels (batch, ...) are neither one of the classes of `logits` nor ignored; bool in their shape."""
    (num_classes,) = static_dims(logits, what.class_axis, what.class_axis + 1)
    wrong = op.Or(op.Less(labels, 0), op.GreaterOrEqual(labels, num_classes))
    if what.ignore_index is None:
        return wrong
    return op.And(wrong, op.Not(op.Equal(labels, what.ignore_index)))


def nan_where_any(op: Op, wrong: ir.Value, loss: ir.Value) -> ir.Value:
    """`loss` (), or NaN where one of `wrong` holds; the gradient is that of `loss`."""
    count = op.ReduceSum(op.Cast(wrong, to=int(ir.DataType.FLOAT)), keepdims=0)
    penalty = op.Where(op.Greater(count, 0.0), constant(op, math.nan, loss), constant(op, 0.0, loss))
    return op.Add(loss, penalty)
