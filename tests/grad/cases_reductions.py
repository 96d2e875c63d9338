"""Cases of reductions: which axes, kept or not, and ties."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range

A = (2, 3, 4)


def prod(x, axes, keep):
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


ZEROS = np.array([[2.0, 0.0, 3.0, -4.0], [0.0, 5.0, 0.0, 6.0], [1.5, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]])
FUNCTIONS = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": lambda x, axes, keep: prod(x, axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
}
AXES = [((1,), 1), ((1,), 0), ((0, -1), 1), ((2, 0), 0), ((-2,), 0)]


def reduction(op, axes, keep):
    return Case(
        op,
        (Range(A), np.array(axes)),
        lambda x, _: FUNCTIONS[op](x, axes, bool(keep)),
        {"keepdims": keep},
        note=f"axes {axes}",
        batch=(0,),
    )


def all_axes(op, keep):
    return Case(op, (Range(A),), lambda x: FUNCTIONS[op](x, (0, 1, 2), bool(keep)), {"keepdims": keep}, batch=(0,))


CASES = [
    *(reduction(op, axes, keep) for op in FUNCTIONS for axes, keep in AXES),
    *(all_axes(op, keep) for op in FUNCTIONS for keep in (0, 1)),
    Case("ReduceSum", (A,), lambda x: x * 1, {"noop_with_empty_axes": 1}),
    Case("ReduceMean", (A, np.array([], np.int64)), lambda x, _: x * 1, {"noop_with_empty_axes": 1}),
    Case("ReduceProd", (A, np.array([], np.int64)), lambda x, _: x * 1, {"noop_with_empty_axes": 1}),
    Case("ReduceProd", (ZEROS, np.array([1])), lambda x, _: x.prod(1), {"keepdims": 0}, note="zeros", batch=(0,)),
    Case("ReduceProd", (ZEROS[:, :3], np.array([0])), lambda x, _: x.prod(0, True), note="zeros"),
    Case("ReduceProd", (ZEROS[:1],), lambda x: x.prod(), {"keepdims": 0}, note="one zero"),
    Case("ReduceProd", (ZEROS[1:2],), lambda x: x.prod(), {"keepdims": 0}, note="several zeros"),
    Case(
        "ReduceMax",
        (np.array([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0]]), np.array([1])),
        lambda x, _: x.amax(1, True),
        exempt="a tie or a bound",
        note="ties",
    ),
    Case(
        "ReduceMin",
        (np.array([[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]]), np.array([1])),
        lambda x, _: x.amin(1, True),
        exempt="a tie or a bound",
        note="ties",
    ),
    Case(
        "ReduceL2",
        (np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([1])),
        lambda x, _: torch.linalg.vector_norm(x, dim=1, keepdim=True),
        exempt="a tie or a bound",
        note="zero norm",
    ),
    Case(
        "ReduceL1",
        (np.array([[0.0, -2.0], [3.0, 4.0]]), np.array([1])),
        lambda x, _: x.abs().sum(1, True),
        exempt="a tie or a bound",
        note="at 0",
    ),
]
