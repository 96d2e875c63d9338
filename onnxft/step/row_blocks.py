"""Rows of a large parameter, which its update takes block by block.

An update in one piece has several values of the parameter's size at once; of a block they are small, and stay in the
caches of a CPU between the passes over them. The blocks are no copies: each is a port of its own over a part of the
parameter's memory, and of its state's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.graph.builder import Op, slice_axis

LARGE_BYTES = 3 * 2**19
"""Parameters from here on are divided."""
BLOCK_BYTES = 3 * 2**18
"""Of a block at least."""
MOST_BLOCKS = 64
_ALIGNED_ROWS = 64
"""A block of so many rows begins where providers want tensors to begin."""


@dataclass(frozen=True)
class RowBlock:
    """Rows of a parameter."""

    parameter: str
    rows: tuple[int, int] | None = None
    """First row and the row behind the last, along the first axis; None: all."""

    def named(self, name: str) -> str:
        """The name of a port, with the rows that it has."""
        return name if self.rows is None else "{}.rows_{}_{}".format(name, *self.rows)

    def of(self, op: Op, whole: ir.Value) -> ir.Value:
        """These rows of a value in the shape of the parameter."""
        return whole if self.rows is None else slice_axis(op, whole, 0, *self.rows)

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of these rows of an array of shape `whole`."""
        return tuple(whole) if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])


def row_blocks(parameter: str, shape: Sequence[int], item_bytes: int) -> list[RowBlock]:
    """All rows of a parameter, in one block where it is not large."""
    size = math.prod(shape) * item_bytes
    if size < LARGE_BYTES:
        return [RowBlock(parameter)]
    count = min(size // BLOCK_BYTES, MOST_BLOCKS)
    rows = -(-shape[0] // (count * _ALIGNED_ROWS)) * _ALIGNED_ROWS
    if rows >= shape[0]:
        return [RowBlock(parameter)]
    return [RowBlock(parameter, (start, min(start + rows, shape[0]))) for start in range(0, shape[0], rows)]
