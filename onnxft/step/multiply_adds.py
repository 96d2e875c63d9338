"""The multiply-adds of the operators that multiply matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxft.grad.rules.einsum import letters

Shapes = Callable[[ir.Value], tuple[int, ...]]
"""Shape of a value, every dimension known."""
UNCOUNTED = {"ConvInteger", "DeformConv", "GRU", "LSTM", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN"}
"""Operators that multiply otherwise than those of `PRODUCTS`."""


def multiply_adds(node: ir.Node, shape: Shapes) -> int:
    """Those of one of the `PRODUCTS`; the gradient of each factor has as many."""
    return PRODUCTS[node.op_type](node, shape)


def is_product(node: ir.Node) -> bool:
    """Whether the operator multiplies matrices; an Einsum of one factor only moves it."""
    return node.op_type in PRODUCTS and not (node.op_type == "Einsum" and len(node.inputs) == 1)


def factors(node: ir.Node) -> Sequence[ir.Value | None]:
    """What is multiplied; the third input of all but Einsum is a bias."""
    return node.inputs if node.op_type == "Einsum" else node.inputs[:2]


def _matmul(node: ir.Node, shape: Shapes) -> int:
    return math.prod(shape(node.outputs[0])) * shape(_input(node, 0))[-1]


def _gemm(node: ir.Node, shape: Shapes) -> int:
    return math.prod(shape(node.outputs[0])) * shape(_input(node, 0))[0 if node.attributes.get_int("transA", 0) else 1]


def _conv(node: ir.Node, shape: Shapes) -> int:
    """w (out channels, in channels / groups, *kernel): one product for each tap of each output."""
    return math.prod(shape(node.outputs[0])) * math.prod(shape(_input(node, 1))[1:])


def _conv_transpose(node: ir.Node, shape: Shapes) -> int:
    """w (in channels, out channels / groups, *kernel): one product for each tap of each input."""
    return math.prod(shape(_input(node, 0))) * math.prod(shape(_input(node, 1))[1:])


def _einsum(node: ir.Node, shape: Shapes) -> int:
    """Size of the space that the letters span, once for each factor after the first."""
    shapes = [shape(x) for x in node.inputs if x is not None]
    terms = letters(node.attributes.get_string("equation").replace(" ", ""), [len(s) for s in shapes])
    size: dict[str, int] = {}
    for term, own in zip(terms, shapes, strict=False):
        for letter, n in zip(term, own, strict=True):
            size[letter] = max(n, size.get(letter, 1))
    return math.prod(size.values()) * (len(shapes) - 1)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


PRODUCTS: dict[str, Callable[[ir.Node, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""{operator: its multiply-adds}"""
