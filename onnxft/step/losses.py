"""Losses as weighted sums: Σ w·l and Σ w, so that accumulation and padding are exact.

A loss is `loss(op, output, labels, weights) -> LossTerms`, written with differentiable operators only
where its value depends on `output`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.errors import ModelError, near
from onnxft.graph.builder import Op, expand_like, reshape
from onnxft.graph.shapes import Dim, dims, static_dims
from onnxft.manifest import BATCH, Loss


@dataclass(frozen=True)
class LossTerms:
    """Scalars of one batch."""

    loss_sum: ir.Value
    weight_sum: ir.Value
    metrics: dict[str, ir.Value]
    """{name: weighted sum}"""


LossBuilder = Callable[[Op, ir.Value, ir.Value, ir.Value], LossTerms]


def cross_entropy(op: Op, logits: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = -log_softmax(logits)[label];  logits (batch, classes, ...), labels (batch, ...) int64, weights (batch,).

    The label is picked by a mask: its gradient is a mask too, which every provider runs exactly, where a
    gather's is a scatter. (A product with 0 and 1 would make NaN of a masked logit, 0 × -∞.)
    """
    num_classes = static_dims(logits, 1, 2)[0]
    rank = len(dims(logits))
    classes = op.builder.initializer(ir.tensor(list(range(num_classes)), dtype=ir.DataType.INT64), name="loss.classes")
    classes = reshape(op, classes, [1, num_classes, *[1] * (rank - 2)])
    picked = op.Equal(op.Unsqueeze(labels, [1]), classes)
    log_p = op.LogSoftmax(logits, axis=1)
    row_weights = _like_rows(op, weights, labels, logits)
    losses = op.Neg(op.ReduceSum(op.Where(picked, log_p, 0.0), [1], keepdims=0))
    predicted = op.ArgMax(logits, axis=1, keepdims=0)
    correct = op.Cast(op.Equal(predicted, labels), to=logits.dtype)
    return LossTerms(
        _sum(op, op.Mul(row_weights, losses)),
        _sum(op, row_weights),
        {"accuracy": _sum(op, op.Mul(row_weights, correct))},
    )


def mse(op: Op, output: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
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


def describe_loss(kind: str, output: ir.Value) -> Loss:
    """The manifest's record of a loss on `output`."""
    loss_builder(kind)
    shape = dims(output)
    if len(shape) == 0 or shape[0] != BATCH:
        raise ModelError(
            f"a loss reads one row of its output for each row of the batch; '{output.name}' has the shape "
            f"{list(shape)}. Choose another output (--loss-output)."
        )
    if kind != "cross_entropy":
        return Loss("mse", str(output.name))
    if len(shape) < 2 or not isinstance(shape[1], int):
        raise ModelError(
            f"cross entropy reads logits of shape (batch, classes, ...); the output '{output.name}' has {list(shape)}. "
            "Choose another output (--loss-output) or --loss mse, or export the model with a head that gives logits."
        )
    return Loss("cross_entropy", str(output.name), shape[1])


def label_type(loss: Loss, output: ir.Value) -> tuple[ir.DataType, tuple[Dim, ...]]:
    """Element type and shape of the labels that a loss takes."""
    shape = dims(output)
    if loss.kind == "cross_entropy":
        return ir.DataType.INT64, (shape[0], *shape[2:])
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
