"""The weight gradient of a convolution, for which ONNX has no operator.

dw[m, c, i] = sum over n and o of dy[n, m, o] * x[n, c, o * stride + i * dilation - begin]

No formulation is fastest everywhere, so there are several, and `choose` picks one by shape.
Legend: N batch, G groups, M and C channels of dy and x in one group, O output positions, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxft.grad.rules.convolution_matrix import fits_matrix, placement, weight_by_matrix
from onnxft.grad.rules.windows import Window, taps
from onnxft.graph.builder import Op, reshape, swap_last_two
from onnxft.graph.shapes import dims, static_dims

Variant = Callable[[Op, ir.Value, ir.Value, ir.Value, Sequence[Window], int], ir.Value]

FEW_CHANNELS = 16
"""Below so many input channels a product for each tap is too thin for a matrix kernel."""


MOST_POSITIONS_PER_TAP = 64
"""Of a row, which `depthwise_by_rows` multiplies by all outputs of the row to keep those of its taps."""


def convolution_weight(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw with the shape of `w` (G * M, C, *kernel), by the variant that `choose` names."""
    return choose(static_dims(w), over, group)(op, x, dy, w, over, group)


def choose(shape: Sequence[int], over: Sequence[Window], group: int) -> Variant:
    """The variant for a weight of the given shape (G * M, C, *kernel)."""
    m, c = shape[0] // group, shape[1]
    if group > 1 and m == c == 1:
        if fits_matrix(shape, over, group):
            return weight_by_matrix
        row = over[-1]
        return depthwise_by_rows if row.size <= MOST_POSITIONS_PER_TAP * row.kernel else depthwise
    # One product for each picture writes N * M * C sums a tap; one for all moves N * O * (M + C) values.
    at_once = group == 1 and m * c > math.prod(v.outputs for v in over) * (m + c)
    if at_once and all(v.kernel == v.stride == 1 and v.begin == v.end == 0 for v in over):
        return pointwise_at_once
    if at_once:
        return taps_at_once
    if all(v.kernel == 1 for v in over):
        return product_per_tap
    return product_of_taps if c < FEW_CHANNELS else product_per_tap


def pointwise_at_once(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw = dy x^T with the pixels of all pictures side by side, (M, N * O) and (C, N * O)"""
    dw = op.Gemm(_side_by_side(op, dy), _side_by_side(op, x), transB=1)
    return reshape(op, dw, dims(w))


def taps_at_once(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw = dy^T [x at tap 0, x at tap 1, ...] with channels last and all pictures below each other, (N * O, K * C)"""
    m, c, *kernel = static_dims(w)
    rank, count = len(kernel), math.prod(kernel)
    last = [0, *range(2, rank + 2), 1]
    over = [replace(v, axis=v.axis - 1) for v in over]
    found = all_taps(op, op.Transpose(x, perm=last), over)
    columns = op.Concat(*found, axis=rank + 1) if count > 1 else found[0]
    dy = reshape(op, op.Transpose(dy, perm=last), [None, m])
    dw = op.Gemm(dy, reshape(op, columns, [None, count * c]), transA=1)
    return reshape(op, op.Transpose(reshape(op, dw, [m, count, c]), perm=[0, 2, 1]), dims(w))


def depthwise(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw[c, i] = sum over n and o of dy * x at tap i, with channels last so that the sums run along memory"""
    rank = len(over)
    last = [0, *range(2, rank + 2), 1]
    x, dy = op.Transpose(x, perm=last), op.Transpose(dy, perm=last)
    over = [replace(v, axis=v.axis - 1) for v in over]
    sums = [op.ReduceSum(op.Mul(dy, tap), list(range(rank + 1)), keepdims=0) for tap in all_taps(op, x, over)]
    columns = [op.Unsqueeze(s, [1]) for s in sums]
    return reshape(op, op.Concat(*columns, axis=1), dims(w))


def depthwise_by_rows(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dG_i = sum of dy^T (x at tap i) over pictures and rows, (C, outputs, positions of a row),  dw[c, i, j] = sum of
    dG_i[c] * placement[j],  for each tap i but those along rows: a product for a row of taps, of which it keeps a band
    """
    *others, row = over
    placed, (taps, outputs, size) = placement(op, w, [row])
    placed = reshape(op, placed, [taps, outputs * size])
    dy = _rows(op, _pictures_within_channels(op, dy), outputs)
    sums = []
    for tap in all_taps(op, _pictures_within_channels(op, x), others):
        products = op.MatMul(swap_last_two(op, dy), _rows(op, tap, size))
        sums.append(op.Gemm(reshape(op, products, [group, outputs * size]), placed, transB=1))
    return reshape(op, op.Concat(*sums, axis=1) if len(sums) > 1 else sums[0], dims(w))


def product_per_tap(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw[:, :, i] = sum over n of dy[n] (x at tap i)[n]^T, group by group"""
    grouped = _grouped(op, dy, group)
    products = [op.MatMul(grouped, swap_last_two(op, _grouped(op, tap, group))) for tap in all_taps(op, x, over)]
    columns = [op.Unsqueeze(op.ReduceSum(p, [0], keepdims=0), [-1]) for p in products]
    return reshape(op, op.Concat(*columns, axis=-1) if len(columns) > 1 else columns[0], dims(w))


def product_of_taps(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw = sum over n of dy[n] [x at tap 0, x at tap 1, ...][n]^T: one wide product where each alone would be thin"""
    gm, c, *_ = static_dims(w)
    found = [_grouped(op, tap, group) for tap in all_taps(op, x, over)]
    columns = op.Concat(*found, axis=-2) if len(found) > 1 else found[0]
    product = op.ReduceSum(op.MatMul(_grouped(op, dy, group), swap_last_two(op, columns)), [0], keepdims=0)
    dw = op.Transpose(reshape(op, product, [gm, len(found), c]), perm=[0, 2, 1])
    return reshape(op, dw, dims(w))


def all_taps(op: Op, x: ir.Value, over: Sequence[Window]) -> list[ir.Value]:
    """x at every tap, in the order of the kernel."""
    found = [x]
    for window in over:
        found = [tap for part in found for tap in taps(op, part, window)]
    return found


def _grouped(op: Op, x: ir.Value, group: int) -> ir.Value:
    """(N, G * C, *space) -> (N, G, C, O), without G where it is 1"""
    n, (channels, *space) = dims(x)[0], static_dims(x, 1)
    shape = [n, channels] if group == 1 else [n, group, channels // group]
    return reshape(op, x, [*shape, math.prod(space)])


def _pictures_within_channels(op: Op, x: ir.Value) -> ir.Value:
    """(N, C, *space) -> (C, N, *space)"""
    return op.Transpose(x, perm=[1, 0, *range(2, len(dims(x)))])


def _rows(op: Op, x: ir.Value, size: int) -> ir.Value:
    """(C, N, *space, size) -> (C, N * rows, size)"""
    return reshape(op, x, [dims(x)[0], None, size])


def _side_by_side(op: Op, x: ir.Value) -> ir.Value:
    """(N, C, *space) -> (C, N * O)"""
    return reshape(op, _pictures_within_channels(op, x), [dims(x)[1], None])


VARIANTS: tuple[Variant, ...] = (
    depthwise,
    depthwise_by_rows,
    weight_by_matrix,
    pointwise_at_once,
    taps_at_once,
    product_per_tap,
    product_of_taps,
)
