"""Losses as weighted sums: Σ w·l and Σ w, so that accumulation and padding are exact.

A loss is `loss(op, what, output, labels, weights) -> LossTerms`, `what` its manifest record, written with
differentiable operators only where its value depends on `output`. Each is stable for any finite output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxft.errors import ModelError, near
from onnxft.graph.builder import Op, constant, expand_like, reshape
from onnxft.graph.shapes import Dim, dims, set_dims, static_dims
from onnxft.manifest import Loss


@dataclass(frozen=True)
class LossTerms:
    """Scalars of one batch."""

    loss_sum: ir.Value
    weight_sum: ir.Value
    metrics: dict[str, ir.Value]
    """{name: weighted sum}"""


LossBuilder = Callable[[Op, Loss, ir.Value, Any, ir.Value], LossTerms]


def cross_entropy(op: Op, what: Loss, logits: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = -Σ_c t_c v_c log_softmax(logits)_c,  t = (1 - ε) [c = label] + ε / C;  its weight is w·v_label.

    logits (batch, classes, ...), the C classes along `class_axis`, labels (batch, ...) int64, weights w (batch,);
    v are `class_weights`, ε is `label_smoothing`: torch.nn.functional.cross_entropy. Labels equal to `ignore_index`
    count in neither sum. With a `shift`, the position t is compared with the label at t + shift, the last ones
    with none.

    The label is picked by a mask: its gradient is a mask too, which every provider runs exactly, where a
    gather's is a scatter. (A product with 0 and 1 would make NaN of a masked logit, 0 × -∞.)
    """
    axis = what.class_axis
    num_classes, rank = static_dims(logits, axis, axis + 1)[0], len(dims(logits))
    along = [num_classes if i == axis else 1 for i in range(rank)]
    if what.shift:
        labels = _shifted(op, labels, what)
    classes = op.builder.initializer(ir.tensor(list(range(num_classes)), dtype=ir.DataType.INT64), name="loss.classes")
    picked = op.Equal(op.Unsqueeze(labels, [axis]), reshape(op, classes, along))
    log_p = op.LogSoftmax(logits, axis=axis)
    counted = _like_rows(op, weights, labels, logits)
    if what.ignore_index is not None:
        ignored = op.Equal(labels, op.Constant(value=ir.tensor(what.ignore_index, dtype=ir.DataType.INT64)))
        counted = op.Where(ignored, 0.0, counted)
    if what.label_smoothing:
        rest = what.label_smoothing / num_classes
        share = op.Where(picked, constant(op, 1 - what.label_smoothing + rest, logits), constant(op, rest, logits))
        terms = op.Mul(share, log_p)
    else:
        terms = op.Where(picked, log_p, 0.0)
    labelled = counted
    if what.class_weights:
        v = constant(op, np.reshape(what.class_weights, along), logits)
        terms = op.Mul(v, terms)
        labelled = op.Mul(counted, op.ReduceSum(op.Where(picked, v, 0.0), [axis], keepdims=0))
    losses = op.Neg(op.ReduceSum(terms, [axis], keepdims=0))
    metrics = {}
    if not what.class_weights:  # over the sum of weights it would be an accuracy weighted by class
        predicted = op.ArgMax(logits, axis=axis, keepdims=0)
        correct = op.Cast(op.Equal(predicted, labels), to=logits.dtype)
        metrics["accuracy"] = _sum(op, op.Mul(counted, correct))
    return LossTerms(_sum(op, op.Mul(counted, losses)), _sum(op, labelled), metrics)


def _shifted(op: Op, labels: ir.Value, what: Loss) -> ir.Value:
    """labels (batch, positions) moved `shift` positions to the front, and ignored labels after them.

    Cutting the labels leaves the logits whole: their gradient needs no padding.
    """
    ignored = ir.tensor(what.ignore_index, dtype=ir.DataType.INT64)
    ahead = op.Slice(labels, [what.shift], [np.iinfo(np.int64).max], [1])
    moved = op.Pad(ahead, [0, 0, 0, what.shift], op.Constant(value=ignored))
    set_dims(moved, dims(labels))
    return moved


def bce_with_logits(op: Op, what: Loss, x: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = -(p y log σ(x) + (1 - y) log(1 - σ(x))) = (1 - y) x + (1 + (p - 1) y) s,  s = log(1 + exp(-x));
    x and y (batch, ...), p is `pos_weight` along `class_axis`, weights (batch,).

    s = log(1 + exp(-|x|)) + (|x| - x) / 2 overflows nowhere, and its slope at 0 is -1/2 as it must be.
    """
    size = op.Abs(x)
    s = op.Add(op.Log(op.Add(op.Exp(op.Neg(size)), 1.0)), op.Mul(op.Sub(size, x), 0.5))
    if what.pos_weight:
        rank = len(dims(x))
        along = [len(what.pos_weight) if i == what.class_axis else 1 for i in range(rank)]
        more = constant(op, np.reshape(what.pos_weight, along) - 1, x)
        s = op.Mul(op.Add(op.Mul(labels, more), 1.0), s)
    return _elementwise(op, op.Add(op.Mul(op.Sub(1.0, labels), x), s), x, weights)


def mse(op: Op, what: Loss, output: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = (output - label)²;  all (batch, ...), weights (batch,)."""
    error = op.Sub(output, labels)
    return _elementwise(op, op.Mul(error, error), output, weights)


def l1(op: Op, what: Loss, output: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = |output - label|;  all (batch, ...), weights (batch,)."""
    return _elementwise(op, op.Abs(op.Sub(output, labels)), output, weights)


def huber(op: Op, what: Loss, output: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = q (e - q / 2),  e = |output - label|,  q = min(e, δ);  all (batch, ...), weights (batch,)."""
    error = op.Abs(op.Sub(output, labels))
    q = op.Min(error, constant(op, what.delta, output))
    return _elementwise(op, op.Mul(q, op.Sub(error, op.Mul(q, 0.5))), output, weights)


def kl_div(op: Op, what: Loss, logits: ir.Value, labels: ir.Value, weights: ir.Value) -> LossTerms:
    """l = Σ_c p_c (log p_c - log_softmax(logits)_c),  0 where p_c is 0;  logits and p (batch, classes, ...).

    A mean over rows and positions: of (batch, classes) it is torch's "batchmean".
    """
    log_q = op.LogSoftmax(logits, axis=what.class_axis)
    positive = op.Greater(labels, constant(op, 0.0, labels))
    log_p = op.Log(op.Where(positive, labels, 1.0))
    terms = op.Where(positive, op.Mul(labels, op.Sub(log_p, log_q)), 0.0)
    return _elementwise(op, op.ReduceSum(terms, [what.class_axis], keepdims=0), logits, weights)


def model(op: Op, what: Loss, output: ir.Value, labels: ir.Value | None, weights: ir.Value) -> LossTerms:
    """l = output (batch,), weights (batch,);  or () with `scalar`: the mean over a batch of equal weights."""
    if not what.scalar:
        return _elementwise(op, output, output, weights)
    total = _sum(op, op.Cast(weights, to=output.dtype) if weights.dtype != output.dtype else weights)
    return LossTerms(op.Mul(output, total), total, {})


_LOSSES: dict[str, LossBuilder] = {
    "cross_entropy": cross_entropy,
    "bce_with_logits": bce_with_logits,
    "mse": mse,
    "l1": l1,
    "huber": huber,
    "kl_div": kl_div,
    "model": model,
}


def loss_builder(kind: str) -> LossBuilder:
    """The builder of a loss; ModelError with the known names where there is none."""
    try:
        return _LOSSES[kind]
    except KeyError:
        raise ModelError(f"unknown loss '{kind}'.{near(kind, _LOSSES)}") from None


def label_type(loss: Loss, output: ir.Value) -> tuple[ir.DataType, tuple[Dim, ...]] | None:
    """Element type and shape of the labels that a loss takes; None for a loss of the model's own."""
    shape = dims(output)
    if loss.kind == "model":
        return None
    if loss.kind == "cross_entropy":
        return ir.DataType.INT64, tuple(d for axis, d in enumerate(shape) if axis != loss.class_axis)
    assert output.dtype is not None
    return output.dtype, shape


def _elementwise(op: Op, losses: ir.Value, typed: ir.Value, weights: ir.Value) -> LossTerms:
    """The sums of losses (batch, ...) and of the row weights over them."""
    row_weights = _like_rows(op, weights, losses, typed)
    return LossTerms(_sum(op, op.Mul(row_weights, losses)), _sum(op, row_weights), {})


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
