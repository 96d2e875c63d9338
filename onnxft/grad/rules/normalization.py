"""Normalisation with fixed or own statistics, and Dropout as it is at inference."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, per_channel, static_axis
from onnxft.graph.shapes import dims


@vjp("BatchNormalization")
def batch_normalization(op: Op, node: ir.Node, dy: ir.Value, *_: ir.Value | None) -> Gradients:
    """y = n * scale + bias with n = (x - mean) / sqrt(var + epsilon)

    dx = dy * scale / sqrt(var + epsilon),  dscale = sum(dy * n),  dbias = sum(dy)

    The running statistics are frozen: no gradient, and none flows through them.
    """
    if node.attributes.get_int("training_mode", 0):
        raise GradientError(
            f"BatchNormalization '{node.name}' is in training mode, where it would use the statistics of the batch. "
            "BatchNorm is frozen by default: export the model with its normalisation layers in eval mode."
        )
    x, scale, _bias, mean, var = node.inputs
    assert x is not None and scale is not None and mean is not None and var is not None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, epsilon)))
    dx = op.Mul(dy, per_channel(op, op.Mul(scale, inverse), x))
    others = [axis for axis in range(len(dims(x))) if axis != 1]
    centred = op.Sub(x, per_channel(op, mean, x))
    dscale = op.Mul(op.ReduceSum(op.Mul(dy, centred), others, keepdims=0), inverse)
    return dx, dscale, op.ReduceSum(dy, others, keepdims=0), None, None


@vjp("LayerNormalization")
def layer_normalization(op: Op, node: ir.Node, dy: ir.Value | None, *statistics: ir.Value | None) -> Gradients:
    """y = n * scale + bias with n = (x - mean(x)) / sqrt(var(x) + epsilon) over the axes from axis on

    dx as `_normalized` says for dn = dy * scale,  dscale = dy * n,  dbias = dy
    """
    if dy is None or any(d is not None for d in statistics):
        raise GradientError(
            f"the loss reads Mean or InvStdDev of LayerNormalization '{node.name}', for which there is no rule. "
            "Compute them with ReduceMean and ReduceSumSquare instead."
        )
    x, scale, *bias = node.inputs
    assert x is not None
    axes = list(range(static_axis(node, -1), len(dims(x))))
    dn = op.Mul(dy, scale)
    n, dx = _normalized(op, x, dn, axes, node.attributes.get_float("epsilon", 1e-5))
    return dx, op.Mul(dy, n), *[dy if b is not None else None for b in bias]


@vjp("InstanceNormalization")
def instance_normalization(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = n * scale + bias with n = (x - mean(x)) / sqrt(var(x) + epsilon) over the spatial axes

    dx as `_normalized` says for dn = dy * scale,  dscale = sum(dy * n),  dbias = sum(dy)
    """
    x, scale, _ = node.inputs
    assert x is not None and scale is not None
    rank = len(dims(x))
    dn = op.Mul(dy, per_channel(op, scale, x))
    n, dx = _normalized(op, x, dn, list(range(2, rank)), node.attributes.get_float("epsilon", 1e-5))
    others = [axis for axis in range(rank) if axis != 1]
    return dx, op.ReduceSum(op.Mul(dy, n), others, keepdims=0), op.ReduceSum(dy, others, keepdims=0)


@vjp("Dropout")
def dropout(op: Op, node: ir.Node, dy: ir.Value | None, *_: ir.Value | None) -> Gradients:
    """y = x at inference      dx = dy"""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    flag = ir.convenience.get_const_tensor(training) if training is not None else None
    if training is not None and (flag is None or bool(flag.numpy())):
        raise GradientError(
            f"Dropout '{node.name}' is in training mode and would draw its own mask. "
            "Export the model with onnxft.export, which makes the mask an input of the graph."
        )
    return (dy, *[None] * (len(node.inputs) - 1))


def _normalized(op: Op, x: ir.Value, dn: ir.Value, axes: Sequence[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """n = (x - mean(x)) / s with s = sqrt(var(x) + epsilon), and dx = (dn - mean(dn) - n * mean(dn * n)) / s"""
    axes = list(axes)
    centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    var = op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, epsilon)))
    n = op.Mul(centred, inverse)
    along_n = op.Mul(n, op.ReduceMean(op.Mul(dn, n), axes, keepdims=1))
    dx = op.Mul(op.Sub(op.Sub(dn, op.ReduceMean(dn, axes, keepdims=1)), along_n), inverse)
    return n, dx
