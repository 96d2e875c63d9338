"""Elementwise arithmetic. The engine sums over broadcast axes; a rule speaks of full shapes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, cast_like, is_float, zeros_like
from onnxft.graph.shapes import static_dims

# ----- sums and products -----


@vjp("Add")
def add(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a + b      da = dy,  db = dy"""
    return dy, dy


@vjp("Sub")
def sub(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a - b      da = dy,  db = -dy"""
    return dy, op.Neg(dy)


@vjp("Mul")
def mul(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a * b      da = dy * b,  db = dy * a"""
    a, b = node.inputs
    return op.Mul(dy, b), op.Mul(dy, a)


@vjp("Div")
def div(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a / b      da = dy / b,  db = -da * y"""
    _, b = node.inputs
    (y,) = node.outputs
    da = op.Div(dy, b)
    return da, op.Neg(op.Mul(da, y))


@vjp("Mod")
def mod(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a - b * q with the integer q = trunc(a / b)      da = dy,  db = -dy * q

    Floats have fmod = 1. q is found as (a - y) / b, rounded, since a / b may round up to the next integer.
    """
    a, b = node.inputs
    (y,) = node.outputs
    return dy, op.Neg(op.Mul(dy, op.Round(op.Div(op.Sub(a, y), b))))


@vjp("Pow")
def power(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a^b      da = dy * b * a^(b - 1),  db = dy * y * log(a)

    As in torch, da is 0 where b = 0 and db is 0 where a = 0 and b >= 0 (the products would be NaN).
    """
    a, b = node.inputs
    assert a is not None and b is not None
    (y,) = node.outputs
    exponent = ir.convenience.get_const_tensor(b)
    if exponent is not None and np.all(exponent.numpy() == 2):
        return op.Mul(dy, op.Add(a, a)), None  # a constant has no use for its gradient
    differentiable = is_float(b)
    b = cast_like(op, b, a)
    da = op.Mul(dy, op.Mul(b, op.Pow(a, op.Sub(b, 1.0))))
    da = op.Where(op.Equal(b, 0.0), 0.0, da)
    if not differentiable:
        return da, None
    at_zero = op.And(op.Equal(a, 0.0), op.Not(op.Less(b, 0.0)))
    log = op.Log(op.Where(at_zero, 1.0, a))
    return da, op.Mul(dy, op.Mul(y, log))


@vjp("Sum")
def sum_of(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a + b + ...      da = db = ... = dy"""
    return (dy,) * len(node.inputs)


@vjp("Mean")
def mean_of(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (a + b + ...) / n      da = db = ... = dy / n"""
    n = len(node.inputs)
    return (op.Mul(dy, 1.0 / n),) * n


# ----- functions of one value -----


@vjp("Identity")
def identity(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x      dx = dy"""
    return (dy,)


@vjp("Cast")
def cast(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cast(x)      dx = cast(dy) to the element type of x"""
    (x,) = node.inputs
    return (cast_like(op, dy, x) if x is not None and is_float(x) else None,)


@vjp("CastLike")
def cast_as(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cast(x) to the element type of another value      dx = cast(dy) to the element type of x"""
    x, _ = node.inputs
    return (cast_like(op, dy, x) if x is not None and is_float(x) else None), None


@vjp("Neg")
def neg(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = -x      dx = -dy"""
    return (op.Neg(dy),)


@vjp("Exp")
def exp(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = exp(x)      dx = dy * y"""
    (y,) = node.outputs
    return (op.Mul(dy, y),)


@vjp("Log")
def log(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(x)      dx = dy / x"""
    (x,) = node.inputs
    return (op.Div(dy, x),)


@vjp("Sqrt")
def sqrt(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sqrt(x)      dx = dy / (2 * y)"""
    (y,) = node.outputs
    return (op.Div(dy, op.Mul(2.0, y)),)


@vjp("Reciprocal")
def reciprocal(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 1 / x      dx = -dy * y * y"""
    (y,) = node.outputs
    return (op.Neg(op.Mul(dy, op.Mul(y, y))),)


@vjp("Abs")
def absolute(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = |x|      dx = dy * sign(x), which is 0 at 0 as in torch"""
    (x,) = node.inputs
    return (op.Mul(dy, op.Sign(x)),)


@vjp("Sin")
def sin(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sin(x)      dx = dy * cos(x)"""
    (x,) = node.inputs
    return (op.Mul(dy, op.Cos(x)),)


@vjp("Cos")
def cos(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cos(x)      dx = -dy * sin(x)"""
    (x,) = node.inputs
    return (op.Neg(op.Mul(dy, op.Sin(x))),)


@vjp("Tan")
def tan(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = tan(x)      dx = dy * (1 + y * y)"""
    (y,) = node.outputs
    return (op.Mul(dy, op.Add(op.Mul(y, y), 1.0)),)


@vjp("Sign", "Floor", "Ceil", "Round")
def steps(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = floor(x)      dx = 0, everywhere, as in torch"""
    return (zeros_like(op, dy),)


# ----- choices -----


@vjp("Where")
def where(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = c ? a : b      da = c ? dy : 0,  db = c ? 0 : dy"""
    c, _, _ = node.inputs
    return None, op.Where(c, dy, 0.0), op.Where(c, 0.0, dy)


@vjp("Clip")
def clip(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = min(max(x, low), high)

    dx = low < y < high ? dy : 0,  dlow = x < low ? dy : 0,  dhigh = x > high ? dy : 0

    Two bounds are what relu6 and hardtanh are exported to, which give 0 at a bound. One bound alone
    is torch.clamp, which passes the gradient there; with two bounds it becomes Max and Min.
    Where low > high the result is high, whatever x is. The result says as well as x whether x is between two bounds,
    and a runtime then has no reason to keep x.
    """
    x, *bounds = node.inputs
    (y,) = node.outputs
    low, high = [*bounds, None, None][:2]
    below = None if low is None else op.Less(x, low)
    above = None if high is None else op.Greater(x, high)
    if low is not None and high is not None:
        inside = op.And(op.Greater(y, low), op.Less(y, high))
        dx = op.Where(inside, dy, 0.0)
        crossed = op.Greater(low, high)
        below, above = op.And(below, op.Not(crossed)), op.Or(above, crossed)
    else:
        outside = below if below is not None else above
        dx = dy if outside is None else op.Where(outside, 0.0, dy)
    dbounds = [None if out is None else op.Where(out, dy, 0.0) for out in (below, above)]
    return (dx, *dbounds[: len(bounds)])


@vjp("Max", "Min")
def extremum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(a, b, ...)      da = dy * (a = y) / number of inputs that equal y

    A tie of tensors is split evenly, as torch.maximum and torch.minimum do. A constant scalar is a
    bound of torch.clamp, which passes the whole gradient to the tensor at the bound.
    """
    (y,) = node.outputs
    tensors = [x for x in node.inputs if x is not None and not _is_bound(x)]
    if len(tensors) < 2:
        return tuple(op.Where(op.Equal(x, y), dy, 0.0) if x in tensors else None for x in node.inputs)
    hits = {x: cast_like(op, op.Equal(x, y), y) for x in tensors}
    # Where a bound alone is the extremum nothing is hit, and 0 / 0 must not arise.
    share = op.Div(dy, op.Max(op.Sum(*hits.values()), 1.0))
    return tuple(op.Mul(share, hits[x]) if x in hits else None for x in node.inputs)


def _is_bound(x: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(x) is not None and math.prod(static_dims(x)) == 1
