"""Cases of writing by index, and of GatherND: repeated and negative indices, every reduction, ties and zeros."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case

REDUCE = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
REPEATED = np.array([[1, 1, 3], [0, 4, 4]])
DISTINCT = np.array([[1, 3, 0], [0, 4, -2]])
TIE = {"exempt": "a tie or a bound"}


def scatter_elements(x, indices, u, axis, reduction, **more):
    def in_torch(x, i, u):
        i = i.long() % x.shape[axis]
        if reduction == "none":
            return x.scatter(axis, i, u)
        return x.scatter_reduce(axis, i, u, REDUCE[reduction], include_self=True)

    attrs = {"axis": axis, "reduction": reduction}
    return Case("ScatterElements", (x, np.asarray(indices), u), in_torch, attrs, runtime=(1,), **more)


def numbers(x, indices):
    """The places of the rows that `indices` (..., k) address among the first k axes of x flattened."""
    k = indices.shape[-1]
    sizes = torch.tensor(x.shape[:k])
    strides = torch.tensor([int(np.prod(x.shape[i + 1 : k])) for i in range(k)])
    return ((indices % sizes) * strides).sum(-1)


def scatter_nd(x, indices, u, reduction, **more):
    def in_torch(x, i, u):
        if reduction in ("none", "add"):
            return x.index_put(tuple((i % torch.tensor(x.shape[: i.shape[-1]])).unbind(-1)), u, reduction == "add")
        rows = x.reshape(-1, int(np.prod(x.shape[i.shape[-1] :])))
        u = u.reshape(-1, rows.shape[1])
        at = numbers(x, i).reshape(-1, 1).expand_as(u)
        return rows.scatter_reduce(0, at, u, REDUCE[reduction], include_self=True).reshape(x.shape)

    attrs = {"reduction": reduction}
    return Case("ScatterND", (x, np.asarray(indices), u), in_torch, attrs, runtime=(1,), **more)


def gather_nd(x, indices, batch_dims=0, note="", dtype=np.int64, **more):
    def in_torch(x, i):
        if batch_dims:
            parts = [
                in_rows(a, b) for a, b in zip(x.flatten(0, batch_dims - 1), i.flatten(0, batch_dims - 1), strict=True)
            ]
            return torch.stack(parts).reshape(*x.shape[:batch_dims], *parts[0].shape)
        return in_rows(x, i)

    def in_rows(x, i):
        return x[tuple((i % torch.tensor(x.shape[: i.shape[-1]])).unbind(-1))]

    more = {"runtime": (1,)} | more
    return Case("GatherND", (x, np.array(indices, dtype)), in_torch, {"batch_dims": batch_dims}, note, **more)


CASES = [
    *(
        case
        for reduction in REDUCE
        for case in [
            scatter_elements((2, 5), DISTINCT, (2, 3), 1, reduction, batch=(0, 1, 2), note="distinct"),
            scatter_elements((5, 3, 2), [[[0], [4]], [[-1], [2]]], (2, 2, 1), 0, reduction, note="fewer than x"),
            scatter_elements((2, 5, 3), [[[0, 2, 1]], [[3, -5, 4]]], (2, 1, 3), -2, reduction, batch=(0, 1, 2)),
            scatter_nd((4, 3), [[2], [-4]], (2, 3), reduction, note="rows"),
            scatter_nd((2, 3, 4), [[[0, 2], [1, 0]], [[1, -1], [0, 0]]], (2, 2, 4), reduction, note="distinct"),
            scatter_nd((2, 3, 4), [[1, 2, 3], [0, -1, 0]], (2,), reduction, note="values"),
            scatter_nd((4, 3), [[[2], [0], [1]]], (1, 3, 3), reduction, batch=(0,), note="x symbolic"),
            scatter_nd((4, 3), [[2], [0]], (2, 3), reduction, batch=(1, 2), note="updates symbolic"),
        ]
    ),
    *(
        case
        for reduction in ("add", "mul", "max", "min")
        for case in [
            scatter_elements((2, 5), REPEATED, (2, 3), 1, reduction, batch=(0, 1, 2), note="repeated"),
            scatter_nd((2, 3, 4), [[0, 2], [1, 0], [0, 2], [0, -1]], (4, 4), reduction, note="repeated"),
        ]
    ),
    scatter_elements(
        np.array([[0.0, 2.0, 3.0, 0.0]]),
        [[0, 1, 1, 3, 2]],
        np.array([[5.0, 0.0, 7.0, 0.0, 0.5]]),
        1,
        "mul",
        note="zeros",
    ),
    scatter_elements(
        np.array([[2.0, 3.0, 4.0]]),
        [[0, 0, 0, 1, 1]],
        np.array([[0.0, 0.0, 6.0, 0.0, 5.0]]),
        1,
        "mul",
        note="two zeros",
    ),
    scatter_nd(np.array([2.0, 3.0, 4.0]), [[0], [0], [1], [1]], np.array([0.0, 0.0, 0.0, 5.0]), "mul", note="zeros"),
    *(
        case
        for reduction in ("max", "min")
        for case in [
            scatter_elements(
                np.array([[1.0, 2.0, 3.0]]),
                [[0, 0, 1, 1]],
                np.array([[1.0, 1.0, 2.0, 5.0]]),
                1,
                reduction,
                note="ties",
                **TIE,
            ),
            scatter_nd(
                np.array([1.0, 2.0, 3.0]),
                [[0], [0], [1], [1]],
                np.array([4.0, 4.0, 2.0, 5.0]),
                reduction,
                note="ties",
                **TIE,
            ),
        ]
    ),
    gather_nd((4, 3), [[2], [-1], [2]], note="repeated rows"),
    gather_nd((4, 3), [[0, 2], [3, -1], [0, 2], [0, 2]], note="repeated values"),
    gather_nd((2, 3, 4), [[[0, 2], [1, -1]]], note="rank 3"),
    gather_nd((2, 3, 4, 2), [[1, 2, 3], [0, 0, 0], [1, 2, 3]], note="rank 4"),
    gather_nd((4, 3), [[0, 2], [1, 0], [2, 2], [3, 1]], batch=(0, 1), note="a token of each row"),
    gather_nd((4, 3, 2), [[0, 2], [1, 0], [2, 2], [3, 1]], batch=(0, 1), note="a token of each row"),
    gather_nd((2, 3, 4), [[2], [-3]], 1, batch=(0, 1), note="batched rows"),
    gather_nd((2, 3, 4), [[[2, 3], [2, 3], [0, -1]], [[1, 0], [1, 1], [0, 0]]], 1, batch=(0, 1), note="batched values"),
    gather_nd((2, 3, 4, 5), [[[[1], [1]], [[0], [3]], [[2], [-1]]]] * 2, 2, batch=(0, 1), note="two batch axes"),
    gather_nd((4, 3), [[0, 1], [0, 1]], runtime=(), note="constant"),
    gather_nd((3, 4, 2), [[0, 1], [2, -1]], named={0: {0: "batch", 1: "time"}}, note="symbolic axes"),
]
