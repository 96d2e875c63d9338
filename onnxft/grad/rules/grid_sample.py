"""GridSample: a picture read at the points of a grid."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.sampling import Tap, cubic_taps, linear_taps, nearest_taps, ones_like, within
from onnxft.graph.builder import Op, expand_like, reshape, reshape_like, slice_axis, zeros_like
from onnxft.graph.shapes import dims, static_dims, symbolic_count


@vjp("GridSample")
def grid_sample(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum over taps i, j of v_i * w_j * x[i, j]      dx[i, j] += v_i * w_j * dy

    v and w are the weights that the two coordinates g of a grid point give to rows and columns. With
    s_ij = sum over channels of dy * x[i, j]:  dgrid = (sum of v_i * dw_j/dg * s_ij, sum of dv_i/dg * w_j * s_ij).
    As in torch, nearest gives the grid no gradient, nor does a coordinate that padding holds at the border.

    Legend: N batch, C channels, H and W of x, P points of the grid.
    """
    x, grid = node.inputs
    assert x is not None and grid is not None
    n, (c, h, w) = dims(x)[0], static_dims(x, 1)
    p = None if symbolic_count(dims(grid)[1:3]) else math.prod(static_dims(grid, 1, 3))
    pixels, dy = reshape(op, x, [n, c, h * w]), reshape(op, dy, [n, c, p])
    columns, rows = (
        _taps(op, node, reshape(op, slice_axis(op, grid, 3, i, i + 1), [n, 1, p]), size)
        for i, size in enumerate((w, h))
    )
    indices, updates, dcolumns, drows = [], [], [], []
    for row in rows:
        for column in columns:
            index = expand_like(op, op.Add(op.Mul(row.position, w), column.position), dy)
            indices.append(index)
            updates.append(op.Mul(dy, op.Mul(row.weight, column.weight)))
            s = op.ReduceSum(op.Mul(dy, op.GatherElements(pixels, index, axis=2)), [1], keepdims=1)
            dcolumns.append(op.Mul(s, op.Mul(row.weight, column.slope)))
            drows.append(op.Mul(s, op.Mul(row.slope, column.weight)))
    index, update = (op.Concat(*v, axis=2) if len(v) > 1 else v[0] for v in (indices, updates))
    dx = op.ScatterElements(zeros_like(op, pixels), index, update, axis=2, reduction="add")
    dgrid = op.Transpose(op.Concat(op.Sum(*dcolumns), op.Sum(*drows), axis=1), perm=[0, 2, 1])
    return reshape_like(op, dx, x), reshape_like(op, dgrid, grid)


def _taps(op: Op, node: ir.Node, g: ir.Value, size: int) -> list[Tap]:
    """The taps along an axis of the given size for coordinates g from -1 to 1, with slopes d weight / d g."""
    mode = node.attributes.get_string("mode", "bilinear")
    if node.attributes.get_int("align_corners", 0):
        c, scale = op.Mul(op.Div(op.Add(g, 1.0), 2.0), float(size - 1)), (size - 1) / 2
    else:
        c, scale = op.Div(op.Sub(op.Mul(op.Add(g, 1.0), float(size)), 1.0), 2.0), size / 2
    if mode == "bicubic":  # pads what it reads, not the coordinate
        taps = cubic_taps(op, c)
        taps = [replace(tap, position=_padded(op, node, tap.position, size)[0]) for tap in taps]
    else:
        c, moved = _padded(op, node, op.Round(c) if mode == "nearest" else c, size)
        taps = nearest_taps(op, c) if mode == "nearest" else linear_taps(op, c)
        taps = [replace(tap, slope=op.Mul(tap.slope, moved)) for tap in taps]
    return [within(op, replace(tap, slope=op.Mul(tap.slope, scale)), size) for tap in taps]


def _padded(op: Op, node: ir.Node, c: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
    """The coordinate that padding_mode makes of c, and its derivative 1, -1 or 0."""
    mode = node.attributes.get_string("padding_mode", "zeros")
    slope = ones_like(op, c)
    if mode == "zeros":
        return c, slope
    if mode == "reflection":
        c, slope = _reflected(op, c, size, bool(node.attributes.get_int("align_corners", 0)))
    last = float(size - 1)
    free = op.And(op.Greater(c, 0.0), op.Less(c, last))
    return op.Clip(c, 0.0, last), op.Where(free, slope, 0.0)


def _reflected(op: Op, c: ir.Value, size: int, align_corners: bool) -> tuple[ir.Value, ir.Value]:
    """c thrown back at the centres of the border pixels (align_corners) or at their outer edges, until it is inside."""
    low, span = (0.0, float(size - 1)) if align_corners else (-0.5, float(size))
    if span == 0:
        return zeros_like(op, c), zeros_like(op, c)
    beyond = op.Sub(c, low)
    distance = op.Abs(beyond)
    turns = op.Floor(op.Div(distance, span))
    rest = op.Sub(distance, op.Mul(turns, span))
    half = op.Div(turns, 2.0)
    even = op.Equal(op.Floor(half), half)
    side = op.Where(op.Less(beyond, 0.0), -1.0, ones_like(op, c))
    return op.Add(op.Where(even, rest, op.Sub(span, rest)), low), op.Where(even, side, op.Neg(side))
