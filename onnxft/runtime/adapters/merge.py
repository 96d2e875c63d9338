"""Adapters merged into the weights that they adapt."""

from __future__ import annotations

import numpy as np

from onnxft.arrays import Array
from onnxft.merge import Merge


def merged_weight(base: Array, a: Array, b: Array, merge: Merge) -> Array:
    """W' = W + alpha / rank B A, added in float64 and rounded once.

    Args:
        base: W, of the shape `merge.target_shape`: (out, in), (out, in, *kernel), or (in, out) where it is transposed.
        a: (rank, in, *kernel)
        b: (out, rank, 1, ...)
        merge: of one of the two.
    """
    rank, taken, *kernel = a.shape
    product = b.reshape(-1, rank).astype(np.float64) @ a.reshape(rank, -1).astype(np.float64)
    change = merge.alpha / rank * product.reshape(-1, taken, *kernel)
    return np.asarray(base + (change.T if merge.transposed else change), base.dtype)
