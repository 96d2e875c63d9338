"""Reading by index. Repeated indices add up: through ScatterElements, whose sums are exact.

ScatterND with reduction="add" loses additions on the CPU provider with several threads, so no rule uses it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import (
    ADDED_ROWS,
    PADDING_ROW,
    Op,
    cast_like,
    constant,
    expand_like,
    pad_axis,
    pad_to,
    reshape,
    static_axis,
    static_ints,
    zeros_like,
)
from onnxft.graph.shapes import dims, product, static_dims, symbolic_count

LARGE_TABLE = 2**20
"""From so many values on, zeros of its shape are not left to a runtime to hold as a constant all the time."""
SMALL_TABLE = 64
"""Up to this many rows, a product with one-hot rows is cheap, and every provider has it."""


@vjp("Gather")
def gather(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[..., indices, ...] along axis      dx[..., indices, ...] += dy

    Case 1: one constant index: dy surrounded by zeros.
    Case 2: rows of a small table: one_hot(indices)^T dy.
    Case 3: otherwise dy is added into zeros by ScatterElements.
    A lookup in an embedding may name its padding, a row that gets no gradient from it.
    """
    x, indices = node.inputs
    assert x is not None and indices is not None
    axis = static_axis(node, 0)
    before, after = dims(x)[:axis], dims(x)[axis + 1 :]
    picked = product(dims(indices))
    dy = reshape(op, dy, [*before, picked, *after])
    flat = reshape(op, indices, [*[1] * len(before), picked, *[1] * len(after)])
    if PADDING_ROW in node.metadata_props:
        dy = op.Where(op.Equal(flat, int(node.metadata_props[PADDING_ROW])), 0.0, dy)
    if picked == 1 and ir.convenience.get_const_tensor(indices) is not None:
        (index,) = static_ints(node, 1) or [0]
        rows = dims(x)[axis]
        if not isinstance(rows, int):
            return pad_to(op, dy, x, axis, index), None
        return pad_axis(op, dy, axis, index % rows, rows - 1 - index % rows), None
    size = dims(x)[axis]
    if axis == 0 and isinstance(size, int) and size <= SMALL_TABLE and symbolic_count(after) == 0:
        row = math.prod(static_dims(x, 1))
        one_hot = _one_hot(op, reshape(op, flat, [picked, 1]), size, dy)
        dx = op.Gemm(one_hot, reshape(op, dy, [picked, row]), transA=1)
        return reshape(op, dx, dims(x)), None
    zeros = _late_zeros(op, x, dy) if _is_large(x) else zeros_like(op, x)
    dx = op.ScatterElements(zeros, expand_like(op, flat, dy), dy, axis=axis, reduction="add")
    if axis == 0 and len(after) == 1:
        _mark(dx, ADDED_ROWS)
    return dx, None


@vjp("GatherElements")
def gather_elements(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y[i] = x[indices[i]] along axis      dx[indices[i]] += dy[i]"""
    x, indices = node.inputs
    assert x is not None
    zeros = zeros_like(op, x)
    return op.ScatterElements(zeros, indices, dy, axis=static_axis(node, 0), reduction="add"), None


@vjp("CumSum")
def cum_sum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = running sum of x along axis      dx = running sum of dy from the other end"""
    _, axis = node.inputs
    exclusive, reverse = node.attributes.get_int("exclusive", 0), node.attributes.get_int("reverse", 0)
    return op.CumSum(dy, axis, exclusive=exclusive, reverse=1 - reverse), None


def _mark(value: ir.Value, key: str) -> None:
    node = value.producer()
    assert node is not None
    node.metadata_props[key] = ""


def _one_hot(op: Op, indices: ir.Value, size: int, like: ir.Value) -> ir.Value:
    """(indices, 1) -> (indices, size), with the element type of `like`; negative indices count from the end."""
    indices = op.Cast(indices, to=int(ir.DataType.INT64))
    wrapped = op.Where(op.Less(indices, 0), op.Add(indices, size), indices)
    return cast_like(op, op.Equal(wrapped, list(range(size))), like)


def _is_large(x: ir.Value) -> bool:
    shape = dims(x)
    return all(isinstance(d, int) for d in shape) and math.prod(static_dims(x)) >= LARGE_TABLE


def _late_zeros(op: Op, x: ir.Value, dy: ir.Value) -> ir.Value:
    """Zeros of the shape of `x` that are made when `dy` is there, whatever its values."""
    is_set = op.Cast(op.Gather(reshape(op, dy, [None]), [0]), to=int(ir.DataType.BOOL))
    zero = constant(op, [0.0], x)
    return expand_like(op, op.Where(is_set, zero, zero), x)
