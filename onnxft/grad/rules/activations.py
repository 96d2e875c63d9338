"""Activations. At a kink each rule takes the subgradient that torch takes."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, static_axis

# ----- piecewise linear -----


@vjp("Relu")
def relu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x, 0)      dx = y > 0 ? dy : 0, so 0 at 0"""
    (y,) = node.outputs
    return (op.Where(op.Greater(y, 0.0), dy, 0.0),)


@vjp("LeakyRelu")
def leaky_relu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : alpha * x      dx = x > 0 ? dy : alpha * dy"""
    (x,) = node.inputs
    alpha = node.attributes.get_float("alpha", 0.01)
    return (op.Where(op.Greater(x, 0.0), dy, op.Mul(dy, alpha)),)


@vjp("PRelu")
def prelu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : slope * x      dx = x > 0 ? dy : slope * dy,  dslope = x > 0 ? 0 : dy * x"""
    x, slope = node.inputs
    positive = op.Greater(x, 0.0)
    return op.Where(positive, dy, op.Mul(dy, slope)), op.Where(positive, 0.0, op.Mul(dy, x))


@vjp("ThresholdedRelu")
def thresholded_relu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > alpha ? x : 0      dx = x > alpha ? dy : 0"""
    (x,) = node.inputs
    alpha = node.attributes.get_float("alpha", 1.0)
    return (op.Where(op.Greater(x, alpha), dy, 0.0),)


@vjp("Shrink")
def shrink(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x < -lambd ? x + bias : x > lambd ? x - bias : 0      dx = x < -lambd or x > lambd ? dy : 0"""
    (x,) = node.inputs
    lambd = node.attributes.get_float("lambd", 0.5)
    outside = op.Or(op.Less(x, -lambd), op.Greater(x, lambd))
    return (op.Where(outside, dy, 0.0),)


@vjp("HardSigmoid")
def hard_sigmoid(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = clip(alpha * x + beta, 0, 1)      dx = 0 < y < 1 ? alpha * dy : 0, as torch excludes the bounds"""
    (y,) = node.outputs
    alpha = node.attributes.get_float("alpha", 0.2)
    inside = op.And(op.Greater(y, 0.0), op.Less(y, 1.0))
    return (op.Where(inside, op.Mul(dy, alpha), 0.0),)


@vjp("HardSwish")
def hard_swish(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x * clip(x / 6 + 1/2, 0, 1)      dx = x >= 3 ? dy : x > -3 ? dy * (x / 3 + 1/2) : 0

    torch includes 3 in the linear part and -3 in the flat one.
    """
    (x,) = node.inputs
    middle = op.Mul(dy, op.Add(op.Mul(x, 1.0 / 3.0), 0.5))
    return (op.Where(op.Less(x, 3.0), op.Where(op.Greater(x, -3.0), middle, 0.0), dy),)


# ----- smooth -----


@vjp("Sigmoid")
def sigmoid(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 1 / (1 + exp(-x))      dx = dy * y * (1 - y)"""
    (y,) = node.outputs
    return (op.Mul(dy, op.Mul(y, op.Sub(1.0, y))),)


@vjp("Tanh")
def tanh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = tanh(x)      dx = dy * (1 - y * y)"""
    (y,) = node.outputs
    return (op.Mul(dy, op.Sub(1.0, op.Mul(y, y))),)


@vjp("Erf")
def erf(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = erf(x)      dx = dy * 2 / sqrt(pi) * exp(-x * x)"""
    (x,) = node.inputs
    bell = op.Exp(op.Neg(op.Mul(x, x)))
    return (op.Mul(dy, op.Mul(bell, 2.0 / math.sqrt(math.pi))),)


@vjp("Gelu")
def gelu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x Φ(x)      dx = dy * (Φ(x) + x φ(x)) = dy / 2 * (1 - (erf(u) + 2 u exp(-u²) / sqrt(pi))), u = -x / sqrt(2)

    Nothing is read but x. The sign of u keeps a runtime from reading the erf of the forward pass, kept until now.
    """
    (x,) = node.inputs
    u = op.Mul(x, -math.sqrt(0.5))
    bell = op.Exp(op.Sub(math.log(2.0 / math.sqrt(math.pi)), op.Mul(u, u)))
    return (op.Mul(op.Mul(dy, 0.5), op.Sub(1.0, op.Add(op.Erf(u), op.Mul(u, bell)))),)


@vjp("Softplus")
def softplus(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(1 + exp(x))      dx = dy * sigmoid(x)"""
    (x,) = node.inputs
    return (op.Mul(dy, op.Sigmoid(x)),)


@vjp("Softsign")
def softsign(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / (1 + |x|)      dx = dy / (1 + |x|)^2"""
    (x,) = node.inputs
    scale = op.Add(op.Abs(x), 1.0)
    return (op.Div(dy, op.Mul(scale, scale)),)


@vjp("Mish")
def mish(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x * t with t = tanh(softplus(x))      dx = dy * (t + x * (1 - t * t) * sigmoid(x))"""
    (x,) = node.inputs
    t = op.Tanh(op.Softplus(x))
    slope = op.Mul(op.Sub(1.0, op.Mul(t, t)), op.Sigmoid(x))
    return (op.Mul(dy, op.Add(t, op.Mul(x, slope))),)


@vjp("Elu")
def elu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : alpha * (exp(x) - 1)      dx = x > 0 ? dy : dy * (y + alpha)"""
    (x,), (y,) = node.inputs, node.outputs
    alpha = node.attributes.get_float("alpha", 1.0)
    return (op.Where(op.Greater(x, 0.0), dy, op.Mul(dy, op.Add(y, alpha))),)


@vjp("Selu")
def selu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = gamma * (x > 0 ? x : alpha * (exp(x) - 1))      dx = x > 0 ? gamma * dy : dy * (y + gamma * alpha)"""
    (x,), (y,) = node.inputs, node.outputs
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    return (op.Where(op.Greater(x, 0.0), op.Mul(dy, gamma), op.Mul(dy, op.Add(y, gamma * alpha))),)


@vjp("Celu")
def celu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x > 0 ? x : alpha * (exp(x / alpha) - 1)      dx = x > 0 ? dy : dy * (y / alpha + 1)"""
    (x,), (y,) = node.inputs, node.outputs
    alpha = node.attributes.get_float("alpha", 1.0)
    return (op.Where(op.Greater(x, 0.0), dy, op.Mul(dy, op.Add(op.Mul(y, 1.0 / alpha), 1.0))),)


# ----- over an axis -----


@vjp("Softmax")
def softmax(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = softmax(x, axis)      dx = y * (dy - sum(dy * y, axis))"""
    (y,) = node.outputs
    total = op.ReduceSum(op.Mul(dy, y), [static_axis(node, -1)], keepdims=1)
    return (op.Mul(y, op.Sub(dy, total)),)


@vjp("LogSoftmax")
def log_softmax(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(softmax(x, axis))      dx = dy - exp(y) * sum(dy, axis)"""
    (y,) = node.outputs
    total = op.ReduceSum(dy, [static_axis(node, -1)], keepdims=1)
    return (op.Sub(dy, op.Mul(op.Exp(y), total)),)
