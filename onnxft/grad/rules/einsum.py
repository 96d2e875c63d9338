"""Einsum: the gradient of each factor is an Einsum of dy and the other factors, rearranged."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, expand_like, table
from onnxft.graph.shapes import dims, static_dims


@vjp("Einsum")
def einsum(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = einsum("ij,jk->ik", a, b)      da = einsum("ik,jk->ij", dy, b),  db = einsum("ij,ik->jk", a, dy)

    An ellipsis is spelt out in letters of its own, and an axis of 1 that is broadcast is dropped.
    A letter that occurs in one factor alone was summed there: dy is spread along it.
    A letter twice in a factor is a diagonal: the gradient is put on the diagonal, among zeros.
    """
    equation = node.attributes.get_string("equation").replace(" ", "")
    xs = [x for x in node.inputs if x is not None]
    *terms, result = letters(equation, [len(dims(x)) for x in xs])
    wide = {
        letter for term, x in zip(terms, xs, strict=True) for letter, n in zip(term, dims(x), strict=True) if n != 1
    }
    narrow, factors = [], []
    for x, term in zip(xs, terms, strict=True):
        broadcast = [axis for axis, n in enumerate(dims(x)) if n == 1 and term[axis] in wide]
        narrow.append("".join(letter for axis, letter in enumerate(term) if axis not in broadcast))
        factors.append(op.Squeeze(x, broadcast) if broadcast else x)
    gradients = []
    for i, (x, term) in enumerate(zip(xs, terms, strict=True)):
        others = [*narrow[:i], result, *narrow[i + 1 :]]
        distinct = "".join(dict.fromkeys(term))
        known = "".join(letter for letter in distinct if letter in narrow[i] and letter in "".join(others))
        dx = op.Einsum(*factors[:i], dy, *factors[i + 1 :], equation=f"{','.join(others)}->{known}")
        missing = [axis for axis, letter in enumerate(distinct) if letter not in known]
        dx = op.Unsqueeze(dx, missing) if missing else dx
        gradients.append(expand_like(op, _on_diagonals(op, dx, x, term), x))
    return gradients


def letters(equation: str, ranks: Sequence[int]) -> list[str]:
    """The terms of the factors and of the result, without ellipses and with the result written out.

    >>> letters("...ij,jk", [4, 2])
    ['abij', 'jk', 'abik']
    """
    left, arrow, result = equation.partition("->")
    if not arrow:
        plain = left.replace(",", "").replace(".", "")
        result = "..." * ("." in left) + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    free = [c for c in string.ascii_letters if c not in equation]
    terms = left.split(",")
    widths = [rank - len(term.replace(".", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max(widths)
    ellipsis = "".join(free[:widest])
    spelt = [term.replace("...", ellipsis[widest - width :]) for term, width in zip(terms, widths, strict=True)]
    return [*spelt, result.replace("...", ellipsis)]


def _on_diagonals(op: Op, dx: ir.Value, x: ir.Value, term: str) -> ir.Value:
    """`dx` with one axis for each distinct letter of `term` -> one for each letter, zero where equal letters differ."""
    first = {letter: axis for axis, letter in reversed(list(enumerate(term)))}
    repeats = [axis for axis, letter in enumerate(term) if first[letter] != axis]
    dx = op.Unsqueeze(dx, repeats) if repeats else dx
    for axis in repeats:
        (size,) = static_dims(x, axis, axis + 1)
        pair = [size if i in (axis, first[term[axis]]) else 1 for i in range(len(term))]
        mask = np.eye(size, dtype=bool).reshape(pair)
        dx = op.Where(table(op, mask), dx, 0.0)
    return dx
