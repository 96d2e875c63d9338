"""Into which blocks the rows of a parameter are divided."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from onnxft.step.row_blocks import _ALIGNED_ROWS, BLOCK_BYTES, LARGE_BYTES, MOST_BLOCKS, RowBlock, row_blocks


@pytest.mark.parametrize(
    ("shape", "item_bytes", "count"),
    [
        ((30_522, 384), 4, 53),
        ((30_522, 384), 8, 60),
        ((1_000_000, 64), 4, 64),
        ((1_024, 384), 4, 2),
        ((1_537, 3, 17, 19), 4, 7),
        ((2_000_000,), 4, 10),
        ((1_023, 384), 4, 1),  # a little less than what is large
        ((64, 70_000), 4, 1),
        ((3, 5_000_000), 4, 1),  # no rows to divide
        ((), 8, 1),
        ((0, 7), 4, 1),
    ],
)
def test_blocks_have_every_row_once(shape: tuple[int, ...], item_bytes: int, count: int) -> None:
    blocks = row_blocks("w", shape, item_bytes)
    assert len(blocks) == count
    if count == 1:
        assert blocks == [RowBlock("w")]
        return
    rows = [block.rows or (0, 0) for block in blocks]
    assert rows[0][0] == 0
    assert rows[-1][1] == shape[0]
    assert all(stop == start for (_, stop), (start, _) in pairwise(rows))
    assert all(start % _ALIGNED_ROWS == 0 and start < stop for start, stop in rows)
    assert len(rows) <= MOST_BLOCKS
    assert math.prod(blocks[0].shape(shape)) * item_bytes >= BLOCK_BYTES
    assert math.prod(shape) * item_bytes >= LARGE_BYTES
