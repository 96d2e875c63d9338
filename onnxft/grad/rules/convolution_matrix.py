"""Depthwise convolution over few positions as a product with a matrix for each channel, and both of its gradients.

y[n, c, o] = sum over t of x[n, c, t] * T[c, o, t]  with  T[c, o, t] = sum over i of w[c, i] * placement[i, o, t]
where placement[i, o, t] is 1 if tap i of the window at o reads position t, and otherwise 0.

Convolutions with a weight for each channel have no fast kernel on the CPU provider unless the weight is
constant; small matrix products do. Legend: N batch, C channels, O outputs, I positions of x, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxft.grad.rules.windows import Window
from onnxft.graph.builder import Op, constant, reshape, swap_last_two
from onnxft.graph.shapes import dims

MOST_OUTPUTS_PER_TAP = 3
"""Above, the zeros of the matrices cost more than the kernels of the provider."""


def fits_matrix(shape: Sequence[int], over: Sequence[Window], group: int) -> bool:
    """Whether a weight of the given shape (C, 1, *kernel) is depthwise, and its windows take few positions."""
    depthwise = group > 1 and shape[0] == group and shape[1] == 1
    return depthwise and math.prod(v.outputs for v in over) <= MOST_OUTPUTS_PER_TAP * math.prod(shape[2:])


def by_matrix(op: Op, x: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """y = x T^T, channel by channel, of x (C, N, *space): (C, N, I) (C, I, O) -> (C, N, O)"""
    matrix, (size, _) = _matrix(op, w, over, group, transposed=True)
    n = dims(x)[1]
    y = op.MatMul(reshape(op, x, [group, n, size]), matrix)
    return reshape(op, y, [group, n, *[v.outputs for v in over]])


def data_by_matrix(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = dy T, channel by channel: (C, N, O) (C, O, I) -> (C, N, I)"""
    matrix, (outputs, _) = _matrix(op, w, over, group)
    dx = op.MatMul(_channels_first(op, dy, outputs), matrix)
    return reshape(op, op.Transpose(dx, perm=[1, 0, 2]), [dims(dy)[0], group, *[v.size for v in over]])


def weight_by_matrix(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dT = dy^T x, channel by channel: (C, O, N) (C, N, I) -> (C, O, I),  dw[c, i] = sum of dT[c] * placement[i]"""
    placed, (taps, outputs, size) = placement(op, w, over)
    matrix = op.MatMul(swap_last_two(op, _channels_first(op, dy, outputs)), _channels_first(op, x, size))
    flat = reshape(op, matrix, [group, outputs * size])
    return reshape(op, op.Gemm(flat, reshape(op, placed, [taps, outputs * size]), transB=1), dims(w))


def _matrix(
    op: Op, w: ir.Value, over: Sequence[Window], group: int, *, transposed: bool = False
) -> tuple[ir.Value, tuple[int, int]]:
    """T (C, O, I), and O and I; `transposed`: T^T (C, I, O), and I and O"""
    placed, (taps, rows, columns) = placement(op, w, over, transposed=transposed)
    matrix = op.MatMul(reshape(op, w, [group, taps]), reshape(op, placed, [taps, rows * columns]))
    return reshape(op, matrix, [group, rows, columns]), (rows, columns)


def placement(
    op: Op, like: ir.Value, over: Sequence[Window], *, transposed: bool = False
) -> tuple[ir.Value, tuple[int, int, int]]:
    """placement (K, O, I), or (K, I, O), with the element type of `like`, and its shape

    It is the product of the placements along each axis: the file has those alone, and the runtime folds the rest.
    """
    first, *others = [_along(v).swapaxes(1, 2) if transposed else _along(v) for v in over]
    placed, shape = constant(op, first, like), first.shape
    for next_ in others:
        k, o, i = (a * b for a, b in zip(shape, next_.shape, strict=True))
        outer = reshape(op, placed, [shape[0], 1, shape[1], 1, shape[2], 1])
        inner = constant(op, next_[None, :, None, :, None, :], like)
        placed, shape = reshape(op, op.Mul(outer, inner), [k, o, i]), (k, o, i)
    return placed, shape


def _along(v: Window) -> np.ndarray[tuple[int, int, int], np.dtype[np.bool_]]:
    """placement along one axis (kernel, outputs, size)"""
    tap, output, position = np.ogrid[: v.kernel, : v.outputs, : v.size]
    return np.asarray(output * v.stride + tap * v.dilation - v.begin == position)


def _channels_first(op: Op, x: ir.Value, positions: int) -> ir.Value:
    """(N, C, *space) -> (C, N, positions)"""
    n, c, *_ = dims(x)
    return op.Transpose(reshape(op, x, [n, c, positions]), perm=[1, 0, 2])
