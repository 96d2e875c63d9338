"""Cases of reading and writing by index: repeated, negative, at run time and constant."""

from __future__ import annotations

import numpy as np
from checking import Case


def gather(shape, indices, axis, **more):
    def torch_gather(x, i):
        picked = x.index_select(axis, (i.reshape(-1) % x.shape[axis]).long())
        return picked.reshape(*x.shape[:axis], *i.shape, *x.shape[axis + 1 :])

    return Case("Gather", (shape, np.array(indices)), torch_gather, {"axis": axis}, **more)


def scatter(x, i, u, add):
    return x.scatter_add(1, i, u) if add else x.scatter(1, i, u)


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
    gather((2, 5, 3), [[0]], 2, batch=(0,), note="one constant index"),
    Case("Gather", ((5, 3), np.array([1, 1, 0], np.int32)), lambda x, i: x[i.long()], runtime=(1,), note="int32"),
    Case(
        "GatherElements",
        ((2, 5), np.array([[1, 1, 4], [0, 2, 0]])),
        lambda x, i: x.gather(1, i),
        {"axis": 1},
        runtime=(1,),
    ),
    Case("GatherElements", ((5, 3), np.array([[1, -1, 4], [0, 2, 4]])), lambda x, i: x.gather(0, i % 5), runtime=(1,)),
    Case(
        "ScatterElements",
        ((2, 5), np.array([[1, 3], [0, 4]]), (2, 2)),
        lambda x, i, u: scatter(x, i, u, False),
        {"axis": 1},
        runtime=(1,),
    ),
    Case(
        "ScatterElements",
        ((2, 5), np.array([[1, 1], [0, 4]]), (2, 2)),
        lambda x, i, u: scatter(x, i, u, True),
        {"axis": 1, "reduction": "add"},
        runtime=(1,),
    ),
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
