"""Cases of reading by index and of running sums: repeated, negative, at run time and constant."""

from __future__ import annotations

import numpy as np
from checking import Case


def gather(shape, indices, position, **more):
    def torch_gather(x, i):
        axis = position % x.ndim
        picked = x.index_select(axis, (i.reshape(-1) % x.shape[axis]).long())
        return picked.reshape([*x.shape[:axis], *i.shape, *x.shape[axis + 1 :]])

    return Case("Gather", (shape, np.array(indices)), torch_gather, {"axis": position}, **more)


CASES = [
    gather((5, 3), [4, 0, 4, -1], 0, runtime=(1,), note="small table"),
    gather((5, 3, 2), [[4, 0, 4], [1, -5, 1]], 0, runtime=(1,), batch=(1,), note="small table"),
    gather((70, 3), [[4, 69, 4], [1, -70, 1]], 0, runtime=(1,), batch=(1,), note="large table"),
    gather((70, 3), [4, 69, -1, 4], 0, runtime=(1,), note="large table"),
    gather((2, 5, 3), [[1, 1], [4, 0]], 1, runtime=(1,), batch=(0,)),
    gather((2, 3, 4), [0, -1, 3, 0], 2, batch=(0,), note="constant indices"),
    gather((5, 3), 2, 0, runtime=(1,), note="one index at run time"),
    gather((2, 5, 3), -2, 1, batch=(0,), note="one constant index"),
    gather((2, 5, 3), [3], 1, batch=(0,), note="one constant index"),
    gather((5, 3), [3], 0, batch=(0,), note="one constant index of a symbolic axis"),
    gather((5, 3), -2, 0, batch=(0,), note="one constant index of a symbolic axis"),
    gather((2, 5, 3), [[0]], 2, batch=(0,), note="one constant index"),
    Case("Gather", ((5, 3), np.array([1, 1, 0], np.int32)), lambda x, i: x[i.long()], runtime=(1,), note="int32"),
    gather((2, 3, 4, 5), [[[4, 0, 4]], [[-1, -5, 2]]], -1, runtime=(1,), batch=(0,), note="rank 3 in rank 4"),
    gather((2, 3, 4, 5), [[2, 2], [-1, 0]], -3, batch=(0,), note="constant indices in the middle"),
    gather((5,), [[4, -5, 4]], 0, runtime=(1,), note="vector"),
    gather((70,), -1, 0, runtime=(1,), note="vector, one index at run time"),
    gather((70, 2), [[4], [4]], 0, note="constant repeated indices, large table"),
    Case(
        "GatherElements",
        ((2, 5), np.array([[1, 1, 4], [0, 2, 0]])),
        lambda x, i: x.gather(1, i),
        {"axis": 1},
        runtime=(1,),
    ),
    Case("GatherElements", ((5, 3), np.array([[1, -1, 4], [0, 2, 4]])), lambda x, i: x.gather(0, i % 5), runtime=(1,)),
    Case("CumSum", ((2, 3, 4), np.array(-1, np.int32)), lambda x, _: x.cumsum(-1), batch=(0,), note="from the end"),
    Case("CumSum", ((5,), np.array(0)), lambda x, _: x.cumsum(0), note="vector"),
    *(
        Case("CumSum", ((2, 3, 4), np.array(1)), function, {"exclusive": exclusive, "reverse": reverse}, batch=(0,))
        for exclusive, reverse, function in [
            (0, 0, lambda x, _: x.cumsum(1)),
            (0, 1, lambda x, _: x.flip(1).cumsum(1).flip(1)),
            (1, 0, lambda x, _: x.cumsum(1) - x),
            (1, 1, lambda x, _: x.flip(1).cumsum(1).flip(1) - x),
        ]
    ),
]
