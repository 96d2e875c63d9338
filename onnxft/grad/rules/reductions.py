"""Reductions. dy and y are brought back to the rank of x before they meet it."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, cast_like, count, expand_like, static_ints
from onnxft.graph.shapes import dims, normalize_axis


@vjp("ReduceSum")
def reduce_sum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(x)      dx = dy"""
    x, dy = _x(node), _kept(op, node, dy)
    return _gradients(node, expand_like(op, dy, x))


@vjp("ReduceMean")
def reduce_mean(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(x) / n      dx = dy / n"""
    x, dy = _x(node), _kept(op, node, dy)
    return _gradients(node, expand_like(op, op.Div(dy, count(op, x, over(node))), x))


@vjp("ReduceMax", "ReduceMin")
def reduce_extremum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x)      dx = dy * (x = y) / number of x that equal y

    A tie is split evenly, as torch.amax and torch.amin do. torch.max along an axis gives it to one of
    the tied; it is exported as the same operator, so the choice cannot be told apart.
    """
    x, y, dy = _x(node), _kept(op, node, node.outputs[0]), _kept(op, node, dy)
    hits = cast_like(op, op.Equal(x, y), dy)
    ties = op.ReduceSum(hits, over(node), keepdims=1) if over(node) else hits
    return _gradients(node, op.Mul(hits, op.Div(dy, ties)))


@vjp("ReduceProd")
def reduce_prod(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = prod(x)      dx = dy * (product of the other x)

    Not dy * y / x, which is NaN at 0: beside one zero the others get 0 and it gets the product of the others;
    beside two or more every gradient is 0. The zeros are counted, and the product leaves them out.
    """
    x, dy = _x(node), _kept(op, node, dy)
    at_zero = op.Equal(x, 0.0)
    factors = op.Where(at_zero, 1.0, x)
    zero = cast_like(op, at_zero, x)
    product, zeros = factors, zero
    if axes := over(node):
        product, zeros = op.ReduceProd(factors, axes, keepdims=1), op.ReduceSum(zero, axes, keepdims=1)
    others = op.Where(op.Greater(op.Sub(zeros, zero), 0.0), 0.0, op.Div(product, factors))
    return _gradients(node, op.Mul(dy, others))


@vjp("ReduceL1")
def reduce_l1(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(|x|)      dx = dy * sign(x)"""
    x, dy = _x(node), _kept(op, node, dy)
    return _gradients(node, op.Mul(dy, op.Sign(x)))


@vjp("ReduceL2")
def reduce_l2(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sqrt(sum(x * x))      dx = x * (dy / y), and 0 where y = 0 as in torch"""
    x, y, dy = _x(node), _kept(op, node, node.outputs[0]), _kept(op, node, dy)
    zero = op.Equal(y, 0.0)
    return _gradients(node, op.Mul(x, op.Where(zero, 0.0, op.Div(dy, op.Where(zero, 1.0, y)))))


@vjp("ReduceSumSquare")
def reduce_sum_square(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(x * x)      dx = 2 * dy * x"""
    x, dy = _x(node), _kept(op, node, dy)
    return _gradients(node, op.Mul(op.Mul(dy, 2.0), x))


@vjp("ReduceLogSum")
def reduce_log_sum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(sum(x))      dx = dy * exp(-y)"""
    x, y, dy = _x(node), _kept(op, node, node.outputs[0]), _kept(op, node, dy)
    return _gradients(node, expand_like(op, op.Mul(dy, op.Exp(op.Neg(y))), x))


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(sum(exp(x)))      dx = dy * exp(x - y)"""
    x, y, dy = _x(node), _kept(op, node, node.outputs[0]), _kept(op, node, dy)
    return _gradients(node, op.Mul(dy, op.Exp(op.Sub(x, y))))


def over(node: ir.Node) -> list[int]:
    """The reduced axes, counted from the front; empty where the node reduces nothing."""
    rank = len(dims(_x(node)))
    axes = static_ints(node, 1)
    if not axes:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(normalize_axis(axis, rank) for axis in axes)


def _x(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    return x


def _kept(op: Op, node: ir.Node, y: ir.Value) -> ir.Value:
    """`y` with its reduced axes kept as 1."""
    axes = over(node)
    return y if node.attributes.get_int("keepdims", 1) or not axes else op.Unsqueeze(y, axes)


def _gradients(node: ir.Node, dx: ir.Value) -> Gradients:
    """The axes, where they are an input, have no gradient."""
    return (dx, *[None] * (len(node.inputs) - 1))
