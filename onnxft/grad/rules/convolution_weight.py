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

from onnxft.grad.rules.windows import Window, taps
from onnxft.graph.builder import Op, reshape, swap_last_two
from onnxft.graph.shapes import dims, static_dims

Variant = Callable[[Op, ir.Value, ir.Value, ir.Value, Sequence[Window], int], ir.Value]


def convolution_weight(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw with the shape of `w` (G * M, C, *kernel), by the variant that `choose` names."""
    return choose(static_dims(w), over, group)(op, x, dy, w, over, group)


def choose(shape: Sequence[int], over: Sequence[Window], group: int) -> Variant:
    """The variant for a weight of the given shape (G * M, C, *kernel)."""
    if all(v.kernel == v.stride == 1 and v.begin == v.end == 0 for v in over) and group == 1:
        return pointwise
    if shape[0] == group and shape[1] == 1 and group > 1:
        return depthwise
    return product_per_tap


def pointwise(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw = sum over n of dy[n] x[n]^T"""
    dw = op.MatMul(_flat_space(op, dy), swap_last_two(op, _flat_space(op, x)))
    return reshape(op, op.ReduceSum(dw, [0], keepdims=0), dims(w))


def depthwise(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw[c, i] = sum over n and o of dy * x at tap i, with channels last so that the sums run along memory"""
    rank = len(over)
    last = [0, *range(2, rank + 2), 1]
    x, dy = op.Transpose(x, perm=last), op.Transpose(dy, perm=last)
    over = [_shifted(v, -1) for v in over]
    sums = [op.ReduceSum(op.Mul(dy, tap), list(range(rank + 1)), keepdims=0) for tap in all_taps(op, x, over)]
    columns = [op.Unsqueeze(s, [1]) for s in sums]
    return reshape(op, op.Concat(*columns, axis=1), dims(w))


def product_per_tap(op: Op, x: ir.Value, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dw[:, :, i] = sum over n of dy[n] (x at tap i)[n]^T, group by group"""
    grouped = _grouped(op, dy, group)
    products = [op.MatMul(grouped, swap_last_two(op, _grouped(op, tap, group))) for tap in all_taps(op, x, over)]
    columns = [op.Unsqueeze(op.ReduceSum(p, [0], keepdims=0), [-1]) for p in products]
    return reshape(op, op.Concat(*columns, axis=-1) if len(columns) > 1 else columns[0], dims(w))


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


def _flat_space(op: Op, x: ir.Value) -> ir.Value:
    """(N, C, *space) -> (N, C, O)"""
    return _grouped(op, x, 1)


def _shifted(v: Window, by: int) -> Window:
    return replace(v, axis=v.axis + by)
