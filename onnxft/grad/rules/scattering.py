"""Writing by index, and reading by several: rows addressed by a vector of indices get one number each.

So GatherND and ScatterND become reading and writing along one axis, and ScatterElements, whose sums are
exact, serves both ways. Nothing here emits ScatterND: see `indexing`.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import (
    Op,
    cast_like,
    constant,
    expand_like,
    reshape,
    reshape_like,
    static_axis,
    zeros_like,
)
from onnxft.graph.shapes import Dim, dims, product, static_dims, symbolic_count


@vjp("ScatterElements")
def scatter_elements(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x but for y[indices[i]] = u[i] along axis, or x[indices[i]] combined with u[i]: see `_scattered`"""
    x, indices, u = node.inputs
    (y,) = node.outputs
    assert x is not None and indices is not None and u is not None
    dx, du = _scattered(op, node, static_axis(node, 0), x, indices, u, y, dy)
    return dx, None, du


@vjp("ScatterND")
def scatter_nd(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x but for y[indices[i]] = u[i], or x[indices[i]] combined with u[i]: see `_scattered`

    `x` (s..., r...), `indices` (n..., k) over the k axes s, `u` (n..., r...). With the rows numbered
    that is a ScatterElements of u (n, r) into x (s, r) along axis 0.
    """
    x, indices, u = node.inputs
    (y,) = node.outputs
    assert x is not None and indices is not None and u is not None
    (k,) = static_dims(indices, len(dims(indices)) - 1)
    matrix: list[Dim] = [product(dims(x)[:k]), product(dims(x)[k:])]
    rows: list[Dim] = [product(dims(u)[: len(dims(indices)) - 1]), matrix[1]]
    numbers = reshape(op, _row_numbers(op, x, indices, 0), [rows[0], 1])
    flat_u = reshape(op, u, rows)
    flat_x, flat_y, flat_dy = (reshape(op, v, matrix) for v in (x, y, dy))
    dx, du = _scattered(op, node, 0, flat_x, expand_like(op, numbers, flat_u), flat_u, flat_y, flat_dy)
    return reshape_like(op, dx, x), None, reshape_like(op, du, u)


@vjp("GatherND")
def gather_nd(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y[b, i] = x[b, indices[b, i]] for the batch_dims axes b      dx[b, indices[b, i]] += dy[b, i]

    `x` (b..., s..., r...), `indices` (b..., n..., k) over the k axes s, `y` (b..., n..., r...).
    """
    x, indices = node.inputs
    assert x is not None and indices is not None
    batch_dims = node.attributes.get_int("batch_dims", 0)
    (k,) = static_dims(indices, len(dims(indices)) - 1)
    batch = dims(x)[:batch_dims]
    picked, row = product(dims(indices)[batch_dims:-1]), product(dims(x)[batch_dims + k :])
    zeros = reshape(op, zeros_like(op, x), [*batch, product(dims(x)[batch_dims : batch_dims + k]), row])
    numbers = reshape(op, _row_numbers(op, x, indices, batch_dims), [*batch, picked, 1])
    dy = reshape(op, dy, [*batch, picked, row])
    dx = op.ScatterElements(zeros, expand_like(op, numbers, dy), dy, axis=batch_dims, reduction="add")
    return reshape_like(op, dx, x), None


def _scattered(
    op: Op,
    node: ir.Node,
    axis: int,
    x: ir.Value,
    indices: ir.Value,
    u: ir.Value,
    y: ir.Value,
    dy: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """dx and du of y = x with u scattered into it along `axis`, by the reduction of `node`.

    none:      dx = dy but for dx[indices[i]] = 0,  du[i] = dy[indices[i]]
    add:       dx = dy,  du[i] = dy[indices[i]]
    mul:       dx = dy * (product of the u there),  du[i] = dy * x * (product of the other u there)
    max, min:  dx = dy * (x = y) / ties,  du[i] = dy * (u[i] = y) / ties, where ties counts x and u that equal y

    Without a reduction the standard leaves open which of several updates of one place wins. Here each of them
    gets the whole gradient, as in torch's scatter and index_put: let the indices differ. A tie is split evenly,
    as torch's scatter_reduce does.
    """
    reduction = node.attributes.get_string("reduction", "none")
    if reduction in ("none", "add"):
        du = op.GatherElements(dy, indices, axis=axis)
        dx = dy if reduction == "add" else op.ScatterElements(dy, indices, zeros_like(op, u), axis=axis)
        return dx, du
    if reduction == "mul":
        return _scattered_product(op, axis, x, indices, u, dy)
    x_hits = cast_like(op, op.Equal(x, y), dy)
    u_hits = cast_like(op, op.Equal(u, op.GatherElements(y, indices, axis=axis)), dy)
    share = op.Div(dy, op.ScatterElements(x_hits, indices, u_hits, axis=axis, reduction="add"))
    return op.Mul(share, x_hits), op.Mul(op.GatherElements(share, indices, axis=axis), u_hits)


def _scattered_product(
    op: Op, axis: int, x: ir.Value, indices: ir.Value, u: ir.Value, dy: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """`_scattered` for mul; a zero among the updates is counted, so that nothing is divided by it."""
    at_zero = op.Equal(u, 0.0)
    factors = op.Where(at_zero, 1.0, u)
    ones = expand_like(op, constant(op, [1.0], x), x)
    product = op.ScatterElements(ones, indices, factors, axis=axis, reduction="mul")
    zeros = op.ScatterElements(zeros_like(op, x), indices, cast_like(op, at_zero, x), axis=axis, reduction="add")
    dx = op.Mul(dy, op.Where(op.Greater(zeros, 0.0), 0.0, product))
    product, zeros = (op.GatherElements(v, indices, axis=axis) for v in (product, zeros))
    other_zeros = op.Sub(zeros, cast_like(op, at_zero, x))
    others = op.Where(op.Greater(other_zeros, 0.0), 0.0, op.Div(product, factors))
    return dx, op.Mul(op.GatherElements(op.Mul(dy, x), indices, axis=axis), others)


def _row_numbers(op: Op, x: ir.Value, indices: ir.Value, batch_dims: int) -> ir.Value:
    """`indices` (..., k) over k axes of `x` from `batch_dims` on -> (...): the place in row-major order.

    Negative indices count from the end.
    """
    k = dims(indices)[-1]
    assert isinstance(k, int)
    strides = _strides(op, x, batch_dims, batch_dims + k)
    indices = op.Cast(indices, to=int(ir.DataType.INT64))
    shape = dims(x)[batch_dims : batch_dims + k]
    sizes = list(shape) if symbolic_count(shape) == 0 else op.Shape(x, start=batch_dims, end=batch_dims + k)
    indices = op.Where(op.Less(indices, 0), op.Add(indices, sizes), indices)
    return op.ReduceSum(op.Mul(indices, strides), [-1], keepdims=0)


def _strides(op: Op, x: ir.Value, start: int, stop: int) -> ir.Value | list[int]:
    """Row-major strides of the axes [start:stop] of `x`; read at run time where one after the first is symbolic."""
    if symbolic_count(dims(x)[start + 1 : stop]) == 0:
        return [math.prod(static_dims(x, axis + 1, stop)) for axis in range(start, stop)]
    behind = (op.ReduceProd(op.Shape(x, start=axis + 1, end=stop), keepdims=1) for axis in range(start, stop - 1))
    return op.Concat(*behind, [1], axis=0)
