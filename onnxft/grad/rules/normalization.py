"""Normalisation with fixed or own statistics, and Dropout as it is at inference."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.windows import Window, add_taps, taps
from onnxft.graph.builder import Op, count, per_channel, static_axis
from onnxft.graph.shapes import dims, static_dims


@vjp("BatchNormalization")
def batch_normalization(op: Op, node: ir.Node, dy: ir.Value | None, *statistics: ir.Value | None) -> Gradients:
    """y = n * scale + bias with n = (x - mean) * i and i = 1 / sqrt(var + epsilon)

    dx = dy * scale * i,  dscale = sum(dy * n),  dbias = sum(dy),  dmean = -dbias * scale * i,
    dvar = -dscale * scale * i² / 2

    In training mode mean and var are those of x, which changes dx alone (N values of a channel):

    dx = (dy - sum(dy) / N - n * sum(dy * n) / N) * scale * i
    """
    training = bool(node.attributes.get_int("training_mode", 0))
    if training and (len(node.outputs) < 3 or node.attributes.get_float("momentum", 0.9) != 0.0):
        raise GradientError(
            f"BatchNormalization '{node.name}' is in training mode, where it would use the statistics of the batch. "
            "BatchNorm is frozen by default: export the model with its normalisation layers in eval mode, and name "
            "those to train with train_batchnorm (--train-batchnorm)."
        )
    if dy is None or any(d is not None for d in statistics):
        raise GradientError(
            f"the loss reads a running statistic that BatchNormalization '{node.name}' computes, for which there is no "
            "rule. Compute it with ReduceMean instead."
        )
    x, scale, _bias, mean, var = node.inputs
    if training:  # with momentum 0 the new running statistics are those of the batch
        _, mean, var = node.outputs
    assert x is not None and scale is not None and mean is not None and var is not None
    inverse = op.Reciprocal(op.Sqrt(op.Add(var, node.attributes.get_float("epsilon", 1e-5))))
    a = op.Mul(scale, inverse)
    others = [axis for axis in range(len(dims(x))) if axis != 1]
    centred = op.Sub(x, per_channel(op, mean, x))
    dscale = op.Mul(op.ReduceSum(op.Mul(dy, centred), others, keepdims=0), inverse)
    dbias = op.ReduceSum(dy, others, keepdims=0)
    if training:
        n = count(op, x, others)
        along = op.Mul(centred, per_channel(op, op.Div(op.Mul(dscale, inverse), n), x))
        rest = op.Add(along, per_channel(op, op.Div(dbias, n), x))
        return op.Mul(op.Sub(dy, rest), per_channel(op, a, x)), dscale, dbias, None, None
    dx = op.Mul(dy, per_channel(op, a, x))
    dvar = op.Mul(op.Mul(dscale, op.Mul(a, inverse)), -0.5)
    return dx, dscale, dbias, op.Neg(op.Mul(dbias, a)), dvar


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


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (x - m) / d with d = s + 1e-9, s = sqrt(mean((x - m)^2)), over the axes

    dx = (dy - mean(dy) - y * mean(dy * (x - m)) / s) / d, the last product 0 where s = 0
    """
    (x,), (y,) = node.inputs, node.outputs
    axes = list(node.attributes.get_ints("axes", [0, 2, 3]) or [])
    centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    s = op.Sqrt(op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1))
    slope = op.Div(op.ReduceMean(op.Mul(dy, centred), axes, keepdims=1), op.Where(op.Equal(s, 0.0), 1.0, s))
    dx = op.Sub(op.Sub(dy, op.ReduceMean(dy, axes, keepdims=1)), op.Mul(y, slope))
    return (op.Div(dx, op.Add(s, 1e-9)),)


@vjp("LpNormalization")
def lp_normalization(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / n with n = sum(|x|) or sqrt(sum(x * x)) along axis (p = 1, 2)

    dx = (dy - sign(x) * sum(dy * y)) / n for p = 1,  (dy - y * sum(dy * y)) / n for p = 2

    A zero vector stays zero, and its gradient is 0.
    """
    (x,), (y,) = node.inputs, node.outputs
    axes = [static_axis(node, -1)]
    if node.attributes.get_int("p", 2) == 1:
        n, slope = op.ReduceL1(x, axes, keepdims=1), op.Sign(x)
    else:
        n, slope = op.ReduceL2(x, axes, keepdims=1), y
    dx = op.Sub(dy, op.Mul(slope, op.ReduceSum(op.Mul(dy, y), axes, keepdims=1)))
    zero = op.Equal(n, 0.0)
    return (op.Where(zero, 0.0, op.Div(dx, op.Where(zero, 1.0, n))),)


@vjp("LRN")
def local_response_normalization(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x * s^-beta with s = bias + alpha / size * (sum of x * x over a window of channels)

    dx = dy * s^-beta - 2 * alpha / size * beta * x * (sum of dy * y / s over the windows that hold x)
    """
    (x,), (y,) = node.inputs, node.outputs
    assert x is not None
    alpha, beta = node.attributes.get_float("alpha", 1e-4), node.attributes.get_float("beta", 0.75)
    size, bias = node.attributes.get_int("size"), node.attributes.get_float("bias", 1.0)
    (channels,) = static_dims(x, 1, 2)
    window = Window(1, channels, channels, kernel=size, begin=(size - 1) // 2)
    squares = taps(op, op.Mul(x, x), window)
    s = op.Add(op.Mul(op.Sum(*squares), alpha / size), bias)
    back = add_taps(op, [op.Div(op.Mul(dy, y), s)] * size, window)
    through = op.Mul(op.Mul(x, back), 2.0 * alpha / size * beta)
    return (op.Sub(op.Mul(dy, op.Pow(s, -beta)), through),)


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
