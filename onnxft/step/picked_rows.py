"""Gradients of tables, of which a batch looks up few rows, block by block.

Such a gradient is zero but for the rows that were looked up. It is not made as a whole: their sums are kept, and where
each is, and every block of rows is gathered from them. A batch that looks up more rows than the table has takes more so
than the whole would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import ADDED_ROWS, Op, constant, expand_like, reshape, slice_axis, table, zeros_like
from onnxft.graph.shapes import dims, static_dims
from onnxft.step.row_blocks import RowBlock


def rows_of_gradient(op: Op, gradient: ir.Value, blocks: Sequence[RowBlock]) -> list[ir.Value]:
    """The rows of a gradient that each block has."""
    node = gradient.producer()
    if len(blocks) == 1 or node is None or ADDED_ROWS not in node.metadata_props:
        return [block.of(op, gradient) for block in blocks]
    _, picked, added = node.inputs
    assert picked is not None and added is not None
    size = dims(gradient)[0]
    assert isinstance(size, int)
    indices = reshape(op, op.Slice(picked, [0], [1], [1]), [None])
    # Of equal indices the last one stands for all; 0 is where the row of zeros is, before all others.
    order = op.CumSum(op.Cast(op.Equal(indices, indices), to=int(ir.DataType.INT64)), table(op, np.array(0)))
    place = op.ScatterElements(table(op, np.zeros(size, np.int64)), indices, order, axis=0, reduction="max")
    own = reshape(op, op.Sub(op.Gather(place, indices), 1), [dims(added)[0], 1])
    sums = op.ScatterElements(zeros_like(op, added), expand_like(op, own, added), added, axis=0, reduction="add")
    rows = op.Concat(constant(op, np.zeros((1, *static_dims(added, 1))), added), sums, axis=0)
    places = [slice_axis(op, place, 0, *(block.rows or (0, size))) for block in blocks]
    return [op.Gather(rows, at, axis=0) for at in places]
