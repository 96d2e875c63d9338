"""Matrix products. A batch that one factor lacks is folded into the rows, so that its gradient is one Gemm."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, reshape, reshape_like, swap_last_two
from onnxft.graph.shapes import dims


@vjp("MatMul")
def matmul(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a b      da = dy b^T,  db = a^T dy

    Case 1: b is a matrix, the weight of a layer: rows of a and dy are folded, (..., k) -> (rows, k).
    Case 2: both are batches of matrices; the engine sums where one was broadcast.
    A vector a (k,) counts as (1, k) and a vector b (k,) as (k, 1).
    """
    a, b = node.inputs
    assert a is not None and b is not None
    rank_a, rank_b = len(dims(a)), len(dims(b))
    if rank_b == 1:
        b = op.Unsqueeze(b, [1])
        dy = op.Unsqueeze(dy, [-1])
    if rank_a == 1:
        dy = op.Unsqueeze(dy, [-2])
        a = op.Unsqueeze(a, [0])
    if len(dims(b)) == 2:
        rows_a, rows_dy = _rows(op, a), _rows(op, dy)
        own, sign = _on_the_way_back(op, b)
        da = reshape_like(op, op.Gemm(rows_dy, own, alpha=sign, transB=1), a)
        db = op.Gemm(rows_a, rows_dy, transA=1)
    else:
        da = op.MatMul(dy, swap_last_two(op, b))
        db = op.MatMul(swap_last_two(op, a), dy)
    if rank_a == 1:
        da = op.Squeeze(da, [-2])
    if rank_b == 1:
        db = op.Squeeze(db, [-1])
    return da, db


@vjp("Gemm")
def gemm(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = alpha * A' B' + beta * c      dA' = alpha * dy B'^T,  dB' = alpha * A'^T dy,  dc = beta * dy

    A' is a or its transpose (transA), B' is b or its transpose (transB).
    """
    a, b, *c = node.inputs
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    trans_a, trans_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    own, sign = _on_the_way_back(op, b)
    if trans_a:
        da = op.Gemm(own, dy, alpha=sign * alpha, transA=trans_b, transB=1)
    else:
        da = op.Gemm(dy, own, alpha=sign * alpha, transB=1 - trans_b)
    if trans_b:
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=trans_a)
    else:
        db = op.Gemm(a, dy, alpha=alpha, transA=1 - trans_a)
    if not c:
        return da, db
    return da, db, None if c[0] is None else dy if beta == 1.0 else op.Mul(dy, beta)


def transposed_product(op: Op, y: ir.Value) -> ir.Value | None:
    """y^T = alpha * B'^T A'^T where y = alpha * A' B', neither factor frozen (see `_on_the_way_back`); else None.

    The runtime's cpu fuses a Transpose behind a Gemm itself, OpenVINO (2025.4) does not.
    """
    node = y.producer()
    if node is None or node.op_type != "Gemm" or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    if a is None or b is None or _is_frozen(a) or _is_frozen(b):
        return None
    alpha = node.attributes.get_float("alpha", 1.0)
    trans_a, trans_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    return op.Gemm(b, a, alpha=alpha, transA=1 - trans_b, transB=1 - trans_a)


def _on_the_way_back(op: Op, b: ir.Value | None) -> tuple[ir.Value | None, float]:
    """(b, 1), or (-b, -1), a constant of its own with the same product, where the matrix b is square and frozen.

    OpenVINO (2025.4) takes one square constant that two products read, one of them transposed, for the same to both.
    It folds a Transpose into the product, but not a Neg, which is exact.
    """
    if b is None or len(dims(b)) != 2 or dims(b)[0] != dims(b)[1] or not _is_frozen(b):
        return b, 1.0
    return op.Neg(b), -1.0


def _is_frozen(x: ir.Value) -> bool:
    """Whether x is made of constants alone."""
    node = x.producer()
    if node is None:
        return x.is_initializer() and not x.is_graph_input()
    return all(_is_frozen(v) for v in node.inputs if v is not None)


def _rows(op: Op, x: ir.Value) -> ir.Value:
    """(..., k) -> (rows, k)"""
    return x if len(dims(x)) == 2 else reshape(op, x, [None, dims(x)[-1]])
