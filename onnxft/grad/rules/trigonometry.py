"""Inverse trigonometric and hyperbolic functions; Sin, Cos and Tan are in `elementwise`, Tanh in `activations`."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op


@vjp("Asin")
def asin(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = asin(x)      dx = dy / sqrt(1 - x * x), infinite at -1 and 1 as in torch"""
    (x,) = node.inputs
    return (op.Div(dy, op.Sqrt(op.Sub(1.0, op.Mul(x, x)))),)


@vjp("Acos")
def acos(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = acos(x)      dx = -dy / sqrt(1 - x * x), infinite at -1 and 1 as in torch"""
    (x,) = node.inputs
    return (op.Neg(op.Div(dy, op.Sqrt(op.Sub(1.0, op.Mul(x, x))))),)


@vjp("Atan")
def atan(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = atan(x)      dx = dy / (x * x + 1)"""
    (x,) = node.inputs
    return (op.Div(dy, op.Add(op.Mul(x, x), 1.0)),)


@vjp("Sinh")
def sinh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sinh(x)      dx = dy * cosh(x)"""
    (x,) = node.inputs
    return (op.Mul(dy, op.Cosh(x)),)


@vjp("Cosh")
def cosh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cosh(x)      dx = dy * sinh(x)"""
    (x,) = node.inputs
    return (op.Mul(dy, op.Sinh(x)),)


@vjp("Asinh")
def asinh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = asinh(x)      dx = dy / sqrt(x * x + 1)"""
    (x,) = node.inputs
    return (op.Div(dy, op.Sqrt(op.Add(op.Mul(x, x), 1.0))),)


@vjp("Acosh")
def acosh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = acosh(x)      dx = dy / sqrt(x * x - 1)"""
    (x,) = node.inputs
    return (op.Div(dy, op.Sqrt(op.Sub(op.Mul(x, x), 1.0))),)


@vjp("Atanh")
def atanh(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = atanh(x)      dx = dy / (1 - x * x)"""
    (x,) = node.inputs
    return (op.Div(dy, op.Sub(1.0, op.Mul(x, x))),)
