"""Cases of Einsum: products, ellipses, diagonals, letters summed within one factor."""

from __future__ import annotations

import torch
from checking import Case


def einsum(equation, *shapes, batch=(), note=""):
    return Case("Einsum", shapes, lambda *xs: torch.einsum(equation, *xs), {"equation": equation}, note, batch=batch)


CASES = [
    einsum("bij,bjk->bik", (2, 3, 4), (2, 4, 5), batch=(0, 1)),
    einsum("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5), batch=(0, 1)),
    einsum("bi,i,bj->j", (2, 3), (3,), (2, 4), batch=(0, 2)),
    einsum("ij,jk", (2, 3), (3, 4), batch=(0,)),
    einsum("ijk->kij", (2, 3, 4), batch=(0,)),
    einsum("...ij,...jk->...ik", (5, 2, 3), (5, 3, 4), batch=(0, 1)),
    einsum("...ij,jk->...ik", (5, 6, 2, 3), (3, 4), batch=(0,)),
    einsum("...ij,...jk->...ik", (5, 6, 2, 3), (5, 1, 3, 4), batch=(0, 1), note="broadcast"),
    einsum("...i,...i->...", (2, 3, 4), (2, 3, 4), batch=(0, 1)),
    einsum("i...,j->j...i", (3, 2, 5), (4,)),
    einsum("...ij,jk", (2, 3, 4), (4, 5), batch=(0,)),
    einsum("...->...", (2, 3), batch=(0,)),
    einsum("ij->i", (2, 3), batch=(0,), note="summed within"),
    einsum("ij->", (2, 3), batch=(0,), note="summed within"),
    einsum("bij,bk->bk", (2, 3, 4), (2, 5), batch=(0, 1), note="summed within"),
    einsum("...ij,...j->...j", (5, 3, 4), (1, 4), note="summed within, broadcast"),
    einsum("ii->i", (3, 3), note="diagonal"),
    einsum("ii->", (3, 3), note="trace"),
    einsum("ii", (3, 3), note="trace"),
    einsum("bii->bi", (2, 3, 3), batch=(0,), note="diagonal"),
    einsum("iji->ij", (3, 2, 3), note="diagonal"),
    einsum("iii->i", (3, 3, 3), note="diagonal"),
    einsum("bii,bij->bj", (2, 3, 3), (2, 3, 4), batch=(0, 1), note="diagonal"),
    einsum("...ii->...", (2, 3, 3), batch=(0,), note="trace"),
]
