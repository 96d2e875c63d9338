"""Cases of TopK, Compress and OneHot."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case

TIES = np.array([[2.0, 1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0], [0.0, -1.0, 0.0, -1.0, 1.0]])


def top_k(x, k, axis=-1, largest=1, sorted_=1, read=1, **more):
    """In torch by a stable sort, which breaks a tie as ONNX does: the lower index first."""

    def in_torch(x, _):
        values, _ = x.sort(dim=axis, descending=bool(largest), stable=True)
        return values.narrow(axis, 0, k)

    attrs = {"axis": axis, "largest": largest, "sorted": sorted_}
    return Case("TopK", (x, np.array([k])), in_torch, attrs, outputs=2, **more)


def compress(shape, condition, axis=None, **more):
    def in_torch(x, c):
        return x.reshape(-1)[: len(c)][c] if axis is None else x.index_select(axis, c.nonzero()[:, 0])

    attrs = {} if axis is None else {"axis": axis}
    return Case("Compress", (shape, np.array(condition)), in_torch, attrs, **more)


def one_hot(indices, depth, axis=-1, dtype=np.int64, **more):
    def in_torch(indices, depth, values):
        wrapped = torch.where(indices < 0, indices + depth, indices)
        position = axis % (indices.ndim + 1)
        shape = [-1, *[1] * (indices.ndim - position)]
        hit = wrapped.unsqueeze(position) == torch.arange(int(depth)).reshape(shape)
        return torch.where(hit, values[1], values[0])

    inputs = (np.array(indices, dtype), np.array(depth, dtype), (2,))
    return Case("OneHot", inputs, in_torch, {"axis": axis}, runtime=(0,), **more)


CASES = [
    top_k((2, 5), 3, batch=(0,)),
    top_k((2, 5), 3, largest=0, batch=(0,)),
    top_k((2, 5, 3), 2, axis=1, batch=(0,)),
    top_k((2, 5, 3), 4, axis=-2, largest=0, batch=(0,)),
    top_k((5, 2), 2, axis=0),
    top_k((2, 3, 4), 4, note="all", batch=(0,)),
    top_k((2, 5), 1, sorted_=0, batch=(0,)),  # of several the order would be open
    top_k((2, 5), 1, largest=0, sorted_=0, batch=(0,)),
    top_k(TIES, 2, exempt="a tie or a bound", note="ties"),
    top_k(TIES, 3, largest=0, exempt="a tie or a bound", note="ties"),
    top_k(TIES, 2, axis=0, exempt="a tie or a bound", note="ties"),
    compress((2, 3, 4), [True, False, True], 1, batch=(0,)),
    compress((2, 3, 4), [True, False, True], 1, batch=(0,), runtime=(1,), note="at run time"),
    compress((2, 3, 4), [False, True], -1, batch=(0,), note="short"),
    compress((3, 4), [False, True, True], 0, runtime=(1,)),
    compress((3, 4), [True, False, False, True, True], note="flattened", runtime=(1,)),
    compress((2, 3, 4), [True, False] * 12, note="flattened", batch=(0,)),
    one_hot([0, 2, -1, 2, 7], 4, note="repeated, negative and none"),
    one_hot([[0, 2, 1], [1, 1, 0]], 4, axis=1, batch=(0,)),
    one_hot([[0, 2, 1], [1, 1, 0]], 4, axis=0),
    one_hot([[0, 2, 1], [1, 1, 0]], 4, dtype=np.int32, note="int32", batch=(0,)),
    one_hot([[0, 2, 1], [1, 1, 0]], 4, axis=-2, batch=(0,)),
]
