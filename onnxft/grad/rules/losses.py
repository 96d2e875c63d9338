"""The two losses of the standard. Letters: C classes, d all further axes."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, cast_like, constant, per_channel
from onnxft.graph.shapes import dims, static_dims


@vjp("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = -sum(w * x[target]) / n      dx[target] = -w * dy / n,  dweight as `_loss` says

    `x` (batch, C, d...) holds log-probabilities, `target` is (batch, d...).
    """
    x = node.inputs[0]
    assert x is not None
    dx, dweight = _loss(op, node, x, dy)
    return [dx, None, dweight][: len(node.inputs)]


@vjp("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    op: Op, node: ir.Node, dy: ir.Value | None, dlog_prob: ir.Value | None = None
) -> Gradients:
    """y = -sum(w * l[target]) / n, l = log(softmax(x, axis 1))      dx = dl - exp(l) * sum(dl, axis 1)

    dl[target] = -w * dy / n, plus what arrives at the output log_prob, which is l; dweight as `_loss` says.
    """
    x = node.inputs[0]
    assert x is not None
    log_prob = node.outputs[1] if len(node.outputs) > 1 else op.LogSoftmax(x, axis=1)
    dl, dweight = dlog_prob, None
    if dy is not None:
        dl, dweight = _loss(op, node, log_prob, dy)
        dl = dl if dlog_prob is None else op.Add(dl, dlog_prob)
    assert dl is not None
    dx = op.Sub(dl, op.Mul(op.Exp(log_prob), op.ReduceSum(dl, [1], keepdims=1)))
    return [dx, None, dweight][: len(node.inputs)]


def _loss(op: Op, node: ir.Node, log_prob: ir.Value, dy: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Gradients of -sum(w * log_prob[target]) / n in `log_prob` and in `weight` (C,).

    w is weight[target], and 0 where the target is ignore_index, which need not be a class. n is 1, or sum(w) for
    the reduction mean, whose own derivative makes dweight = sum((-log_prob[target] - y) * dy / n) over the targets
    of a class.
    """
    x, target, *rest = node.inputs
    weight = rest[0] if rest else None
    assert x is not None and target is not None
    ignore = node.attributes.get_int("ignore_index") if "ignore_index" in node.attributes else None
    reduction = node.attributes.get_string("reduction", "mean")
    target = op.Unsqueeze(op.Cast(target, to=int(ir.DataType.INT64)), [1])
    (classes,) = static_dims(x, 1, 2)
    hit = op.Equal(target, per_channel(op, constant(op, range(classes), target), x))  # (batch, C, d...)
    if ignore is not None:
        hit = op.And(hit, op.Not(op.Equal(target, ignore)))
    weighted = cast_like(op, hit, x) if weight is None else op.Where(hit, per_channel(op, weight, x), 0.0)
    if reduction == "none":
        dy = op.Unsqueeze(dy, [1])
    elif reduction == "mean":
        dy = op.Div(dy, op.ReduceSum(weighted, keepdims=0))
    if weight is None:
        return op.Neg(op.Mul(weighted, dy)), None
    excess = op.Add(log_prob, node.outputs[0]) if reduction == "mean" else log_prob
    others = [axis for axis in range(len(dims(x))) if axis != 1]
    dweight = op.Neg(op.ReduceSum(op.Where(hit, op.Mul(excess, dy), 0.0), others, keepdims=0))
    return op.Neg(op.Mul(weighted, dy)), dweight
