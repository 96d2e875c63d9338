"""Where a model is divided, against cuts found by hand."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import pytest

from onnxft.errors import ModelError
from onnxft.step.frontier import find_frontier

SIZES = {"batch": 1, "time": 5}


def frontier(text: str, trained: Sequence[str]) -> list[str]:
    """Of a graph in ONNX's text form; parameters are inputs without a batch."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)).graph
    values = {v.name: v for v in graph.inputs}
    parameters = [values[n] for n in values if n in ("a", "b", "c")]
    for value in parameters:
        graph.inputs.remove(value)
        value.const_value = ir.tensor([0.0])
        graph.register_initializer(value)
    found = find_frontier(graph.outputs, [values[name] for name in trained], SIZES)
    return [str(v.name) for v in found]


CHAIN = """g (float[batch, 3] x, float[3, 5] a, float[5, 7] b, float[7, 2] c) => (float[batch, 2] y) {
    u = MatMul(x, a)  v = Relu(u)  w = MatMul(v, b)  z = Relu(w)  y = MatMul(z, c) }"""
SKIP = """g (float[batch, 6] x, float[6, 6] a, float[6, 6] b) => (float[batch, 6] y) {
    u = MatMul(x, a)  v = MatMul(u, b)  y = Add(u, v) }"""
INPUT_TOO = """g (float[batch, 4] x, float[4, 4] a, float[4, 4] b) => (float[batch, 4] y) {
    u = MatMul(x, a)  v = MatMul(u, b)  y = Mul(x, v) }"""
# The mask is needed as (batch, 5, 5) floats: its booleans, one for each position, are fewer bytes.
MASK = """g (float[batch, 5, 4] x, int64[batch, 5] i, float[4, 4] a, float[4, 5] b) => (float[batch, 5, 5] y) {
    zero = Constant <value_ints = [0]> ()  axis = Constant <value_ints = [1]> ()
    m = Greater(i, zero)  n = Unsqueeze(m, axis)  f = Cast <to = 1> (n)  shape = Constant <value_ints = [1, 5, 1]> ()
    t = Expand(f, shape)  u = MatMul(x, a)  v = MatMul(u, b)  y = Mul(v, t) }"""
# Relu widens nothing: of equal bytes the last value is taken.
EQUAL = """g (float[batch, 3] x, float[3, 3] a, float[3, 3] b) => (float[batch, 3] y) {
    u = MatMul(x, a)  v = Relu(u)  w = Tanh(v)  y = MatMul(w, b) }"""
# An output of the frozen part is wanted too.
TWO_BRANCHES = """g (float[batch, 3] x, float[3, 9] a, float[9, 2] b, float[9, 4] c)
    => (float[batch, 2] y, float[batch, 4] z) {
    u = MatMul(x, a)  y = MatMul(u, b)  z = MatMul(u, c) }"""
FROZEN_OUTPUT = """g (float[batch, 3] x, float[3, 9] a, float[9, 2] b) => (float[batch, 2] y, float[batch, 9] v) {
    u = MatMul(x, a)  v = Softmax(u)  y = MatMul(u, b) }"""
# What is computed from a shape alone is no feature.
SHAPE = """g (float[batch, 3] x, float[3, 4] a, float[4, 4] b) => (float[batch, 4] y) {
    s = Shape <start = 0, end = 1> (x)  four = Constant <value_ints = [4]> ()  t = Concat <axis = 0> (s, four)
    u = MatMul(x, a)  v = MatMul(u, b)  y = Reshape(v, t) }"""


@pytest.mark.parametrize(
    ("text", "trained", "expected"),
    [
        (CHAIN, ["c"], ["z"]),
        (CHAIN, ["b"], ["v"]),
        (CHAIN, ["b", "c"], ["v"]),
        (CHAIN, ["a", "c"], []),
        (SKIP, ["b"], ["u"]),
        (INPUT_TOO, ["b"], ["x", "u"]),
        (MASK, ["b"], ["n", "u"]),
        (EQUAL, ["b"], ["w"]),
        (TWO_BRANCHES, ["b"], ["u", "z"]),
        (TWO_BRANCHES, ["c"], ["u", "y"]),
        (FROZEN_OUTPUT, ["b"], ["u", "v"]),
        (SHAPE, ["b"], ["u"]),
    ],
)
def test_the_fewest_bytes_divide(text: str, trained: list[str], expected: list[str]) -> None:
    assert frontier(text, trained) == expected


@pytest.mark.parametrize(
    "text",
    [
        """g (float[batch, 3] x, float[3, 4] a, float[4, 4] b) => (float[4, batch] y) {
            u = MatMul(x, a)  t = Transpose <perm = [1, 0]> (u)  v = Softmax <axis = 0> (t)  y = MatMul(b, v) }""",
        """g (float[time, 3] x, float[3, 4] a, float[4, 4] b) => (float[time, 4] y) {
            u = MatMul(x, a)  y = MatMul(u, b) }""",
    ],
)
def test_what_has_no_rows_cannot_be_kept(text: str) -> None:
    with pytest.raises(ModelError, match="first dimension is not the batch"):
        frontier(text, ["b"])
