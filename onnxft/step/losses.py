"""Losses as weighted sums: Σ w·l and Σ w, so that accumulation and padding are exact.

A loss is `loss(op, what, output, labels, weights) -> LossTerms`, `what` its manifest record, written with
differentiable operators only where its value depends on `output`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxft.errors import ModelError, near
from onnxft.graph.builder import Op, expand_like, reshape
from onnxft.graph.shapes import Dim, dims, set_dims, static_dims
from onnxft.manifest import BATCH, Loss


@dataclass(frozen=True)
class LossTerms:
    """Scalars of one batch."""

    loss_sum: ir.Value
    weight_sum: ir.Value
    metrics: dict[str, ir.Value]
    """{name: weighted sum}"""


LossBuilder = Callable[[Op, Loss, ir.Value, ir.Value, ir.Value], LossTerms]


def cross_entropy(op: Op, what: Loss, logits: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = -log_softmax(logits)[label];  logits (batch, classes, ...), labels (batch, ...) int64, weights (batch,).

    The classes lie along `class_axis`. Labels equal to `ignore_index` count in neither sum. With a `shift`, the
    position t is compared with the label at t + shift, the last ones with none.

    The label is picked by a mask: its gradient is a mask too, which every provider runs exactly, where a
    gather's is a scatter. (A product with 0 and 1 would make NaN of a masked logit, 0 × -∞.)
    """
    axis = what.class_axis
    num_classes, rank = static_dims(logits, axis, axis + 1)[0], len(dims(logits))
    if what.shift:
        labels = _shifted(op, labels, what)
    classes = op.builder.initializer(ir.tensor(list(range(num_classes)), dtype=ir.DataType.INT64), name="loss.classes")
    classes = reshape(op, classes, [num_classes if i == axis else 1 for i in range(rank)])
    picked = op.Equal(op.Unsqueeze(labels, [axis]), classes)
    log_p = op.LogSoftmax(logits, axis=axis)
    counted = _like_rows(op, weights, labels, logits)
    if what.ignore_index is not None:
        ignored = op.Equal(labels, op.Constant(value=ir.tensor(what.ignore_index, dtype=ir.DataType.INT64)))
        counted = op.Where(ignored, 0.0, counted)
    losses = op.Neg(op.ReduceSum(op.Where(picked, log_p, 0.0), [axis], keepdims=0))
    predicted = op.ArgMax(logits, axis=axis, keepdims=0)
    correct = op.Cast(op.Equal(predicted, labels), to=logits.dtype)
    return LossTerms(
        _sum(op, op.Mul(counted, losses)),
        _sum(op, counted),
        {"accuracy": _sum(op, op.Mul(counted, correct))},
    )


def _shifted(op: Op, labels: ir.Value, what: Loss) -> ir.Value:
    """labels (batch, positions) moved `shift` positions to the front, and ignored labels after them.

    Cutting the labels leaves the logits whole: their gradient needs no padding.
    """
    ignored = ir.tensor(what.ignore_index, dtype=ir.DataType.INT64)
    ahead = op.Slice(labels, [what.shift], [np.iinfo(np.int64).max], [1])
    moved = op.Pad(ahead, [0, 0, 0, what.shift], op.Constant(value=ignored))
    set_dims(moved, dims(labels))
    return moved


def mse(op: Op, what: Loss, output: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = (output - label)²;  all (batch, ...), weights (batch,)."""
    error = op.Sub(output, labels)
    row_weights = _like_rows(op, weights, output, output)
    return LossTerms(_sum(op, op.Mul(row_weights, op.Mul(error, error))), _sum(op, row_weights), {})


_LOSSES: dict[str, LossBuilder] = {"cross_entropy": cross_entropy, "mse": mse}


def loss_builder(kind: str) -> LossBuilder:
    """The builder of a loss; ModelError with the known names where there is none."""
    try:
        return _LOSSES[kind]
    except KeyError:
        raise ModelError(f"unknown loss '{kind}'.{near(kind, _LOSSES)}") from None


def describe_loss(kind: str, output: ir.Value, suggested: Loss | None = None) -> Loss:
    """The manifest's record of a loss on `output`; what the source suggested for the same output holds."""
    loss_builder(kind)
    shape = dims(output)
    if len(shape) == 0 or shape[0] != BATCH:
        raise ModelError(
            f"a loss reads one row of its output for each row of the batch; '{output.name}' has the shape "
            f"{list(shape)}. Choose another output (--loss-output)."
        )
    if kind != "cross_entropy":
        return Loss("mse", str(output.name))
    same = suggested is not None and (suggested.kind, suggested.output) == (kind, output.name)
    loss = suggested if same and suggested is not None else Loss("cross_entropy", str(output.name))
    axis = loss.class_axis
    if len(shape) <= axis or not isinstance(num_classes := shape[axis], int):
        wanted = "(batch, classes, ...)" if axis == 1 else "(batch, tokens, classes)"
        raise ModelError(
            f"cross entropy reads logits of shape {wanted}; the output '{output.name}' has {list(shape)}. "
            "Choose another output (--loss-output) or --loss mse, or export the model with a head that gives logits."
        )
    return replace(loss, num_classes=num_classes)


def label_type(loss: Loss, output: ir.Value) -> tuple[ir.DataType, tuple[Dim, ...]]:
    """Element type and shape of the labels that a loss takes."""
    shape = dims(output)
    if loss.kind == "cross_entropy":
        return ir.DataType.INT64, tuple(d for axis, d in enumerate(shape) if axis != loss.class_axis)
    assert output.dtype is not None
    return output.dtype, shape


def _like_rows(op: Op, weights: ir.Value, like: ir.Value, typed: ir.Value) -> ir.Value:
    """Row weights (batch,) repeated over the remaining axes of `like`, in the type of `typed`."""
    shape = dims(like)
    weights = op.Cast(weights, to=typed.dtype) if weights.dtype != typed.dtype else weights
    if len(shape) == 1:
        return weights
    column = reshape(op, weights, [shape[0], *[1] * (len(shape) - 1)])
    return expand_like(op, column, like)


def _sum(op: Op, x: ir.Value) -> ir.Value:
    return op.ReduceSum(x, keepdims=0)
