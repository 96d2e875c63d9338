"""Cases of matrix products: every pair of ranks, every flag."""

from __future__ import annotations

import itertools

import torch
from checking import Case


def gemm(trans_a, trans_b, alpha, beta, c):
    def torch_gemm(a, b, c=None):
        y = alpha * (a.T if trans_a else a) @ (b.T if trans_b else b)
        return y if c is None else y + beta * c

    a, b = (3, 2) if trans_a else (2, 3), (4, 3) if trans_b else (3, 4)
    attrs = {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta}
    batch = () if trans_a else (0, 2) if c == (2, 4) else (0,)
    return Case("Gemm", (a, b) if c is None else (a, b, c), torch_gemm, attrs, batch=batch)


CASES = [
    *(
        Case("MatMul", shapes, torch.matmul, batch=batch)
        for shapes, batch in [
            (((2, 3), (3, 4)), (0,)),
            (((5, 2, 3), (3, 4)), (0,)),
            (((5, 6, 2, 3), (3, 4)), (0,)),
            (((2, 3), (5, 3, 4)), (1,)),
            (((5, 2, 3), (5, 3, 4)), (0, 1)),
            (((5, 1, 2, 3), (6, 3, 4)), (0,)),
            (((5, 6, 2, 3), (5, 6, 3, 4)), (0, 1)),
            (((3,), (3, 4)), ()),
            (((2, 3), (3,)), (0,)),
            (((3,), (3,)), ()),
            (((3,), (5, 3, 4)), (1,)),
            (((5, 2, 3), (3,)), (0,)),
        ]
    ),
    *(
        gemm(*flags, c)
        for flags, c in zip(itertools.product((0, 1), (0, 1), (0.5,), (2.0,)), [(4,), (2, 4), (2, 1), ()], strict=True)
    ),
    gemm(0, 1, 1.0, 1.0, (4,)),
    gemm(1, 0, 1.0, 1.0, None),
    gemm(0, 0, 1.5, 1.0, (1, 4)),
]
