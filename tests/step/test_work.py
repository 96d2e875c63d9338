"""The work of a step against numbers counted by hand, in multiply-adds and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxft.manifest_file import read_manifest
from onnxft.step.work import work_between
from onnxft.step_work import Amount, StepWork

B = 4
"""Rows."""


def work(text: str, trained: Sequence[str], sizes: dict[str, int] | None = None) -> StepWork | None:
    """Of a graph in ONNX's text form, with the value `y` at its end and the shapes of values inside inferred."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)).graph
    values = {v.name: v for v in graph.inputs} | {str(n): v for n, v in graph.initializers.items()}
    return work_between([values[name] for name in trained], graph.outputs[0], sizes or {"batch": B})


def amounts(forward: tuple[int, int], data: tuple[int, int] = (0, 0), weight: tuple[int, int] = (0, 0)) -> StepWork:
    """From (multiply-adds, values of float32) each."""
    return StepWork(*(Amount(2 * m, 4 * n) for m, n in (forward, data, weight)))


# Parameters are inputs of the graphs below; the middle column names those that are trained.
DENSE = """g (float[batch, 3] x, float[3, 5] a, float[5] b, float[5, 7] c) => (float[batch, 7] y) {
    u = MatMul(x, a)  v = Add(u, b)  w = Relu(v)  y = MatMul(w, c) }"""
XA, WC = B * 3 * 5, B * 5 * 7
RUN = B * 5 + 5 + B * 5  # u and b read, w written: Add and Relu are one run
GELU = """g (float[batch, 6] x, float[6, 6] a, float h, float r) => (float[batch, 6] y) {
    u = MatMul(x, a)  d = Div(u, r)  e = Erf(d)  p = Add(e, r)  m = Mul(u, p)  y = Mul(m, h) }"""
RESIDUAL = """g (float[batch, 6] x, float[6, 6] a, float[6, 6] c) => (float[batch, 6] y) {
    u = MatMul(x, a)  v = Relu(u)  s = Softmax(v)  t = MatMul(s, c)  y = Add(t, v) }"""
ATTENTION = """g (float[batch, 9, 8] x, float[8, 8] q, float[8, 8] k, float[8, 8] v) => (float[batch, 9, 8] y) {
    a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)  d = Transpose <perm = [0, 2, 1]> (b)
    s = MatMul(a, d)  p = Softmax(s)  y = MatMul(p, c) }"""
PROJECT, SCORES = B * 9 * 8 * 8, B * 9 * 9 * 8
CONV = """g (float[batch, 6, 10, 11] x, float[8, 3, 3, 5] w, float[8] b, float[8] s, float[8] m, float[8] z)
    => (float[batch, 8, 5, 7] y) {
    u = Conv <group = 2, strides = [2, 1], pads = [1, 0, 0, 0]> (x, w, b)
    v = BatchNormalization (u, s, b, m, z)  y = Relu (v) }"""
CONV_1D = """g (float[batch, 4, 12] x, float[6, 4, 3] w) => (float[batch, 6, 10] y) { y = Conv(x, w) }"""
CONV_3D = (
    """g (float[batch, 2, 4, 5, 6] x, float[3, 2, 2, 2, 2] w) => (float[batch, 3, 3, 4, 5] y) { y = Conv(x, w) }"""
)
TRANSPOSED = """g (float[batch, 6, 5, 7] x, float[6, 2, 3, 3] w) => (float[batch, 4, 11, 15] y) {
    y = ConvTranspose <group = 2, strides = [2, 2]> (x, w) }"""
TABLE = """g (int64[batch, 5] i, float[100, 8] t, float[8, 3] a) => (float[batch, 5, 3] y) {
    e = Gather(t, i)  y = MatMul(e, a) }"""


@pytest.mark.parametrize(
    ("text", "trained", "expected"),
    [
        # only the last layer: no data gradient at all
        (DENSE, ["c"], amounts((XA + WC, RUN), weight=(WC, 0))),
        # from the first layer: x needs none; the run reads the gradient of w and writes those of u and b
        (DENSE, ["a", "b", "c"], amounts((XA + WC, RUN), (WC, 2 * B * 5), (XA + WC, 5))),
        # a bias alone: the data gradient stops there
        (DENSE, ["b"], amounts((XA + WC, RUN), (WC, 0), (0, B * 5 + 5))),
        # five operators in a row that are one to the model: reads u, h and r, writes y
        (GELU, ["a"], amounts((B * 36, 2 * B * 6 + 2), (0, 2 * B * 6), (B * 36, 0))),
        # v is read by more than elementwise operators: written, read by Softmax and by Add
        (RESIDUAL, ["c"], amounts((2 * B * 36, (2 + 2 + 3) * B * 6), (0, 2 * B * 6), (B * 36, 0))),
        # a frozen projection has no gradient; the scores have that of the branch which is trained
        (ATTENTION, ["q"], amounts((3 * PROJECT + 2 * SCORES, 2 * B * 81), (2 * SCORES, 2 * B * 81), (PROJECT, 0))),
        (ATTENTION, ["v"], amounts((3 * PROJECT + 2 * SCORES, 2 * B * 81), (SCORES, 0), (PROJECT, 0))),
        (ATTENTION, ["q", "k", "v"],
         amounts((3 * PROJECT + 2 * SCORES, 2 * B * 81), (4 * SCORES, 2 * B * 81), (3 * PROJECT, 0))),
        # 8 x 5 x 7 outputs of 3 x 3 x 5 taps; a frozen BatchNorm and a Relu are one run
        (CONV, ["w"],
         amounts((B * 280 * 45, 2 * B * 280 + 4 * 8), (0, 2 * B * 280), (B * 280 * 45, 0))),
        (CONV_1D, ["w"], amounts((B * 60 * 12, 0), weight=(B * 60 * 12, 0))),
        (CONV_3D, ["w"], amounts((B * 180 * 16, 0), weight=(B * 180 * 16, 0))),
        (TRANSPOSED, ["w"], amounts((B * 210 * 18, 0), weight=(B * 210 * 18, 0))),
        ("g (float[batch, 7] x, float[5, 7] w, float[5] b) => (float[batch, 5] y) { y = Gemm <transB = 1> (x, w, b) }",
         ["w"], amounts((B * 35, 0), weight=(B * 35, 0))),
        ("g (float[7, batch] x, float[7, 5] w) => (float[batch, 5] y) { y = Gemm <transA = 1> (x, w) }",
         ["w"], amounts((B * 35, 0), weight=(B * 35, 0))),
        ("g (float[batch, 3, 7] x, float[3, 7, 5] w) => (float[batch, 3, 5] y) "
         '{ y = Einsum <equation = "bhi,hij->bhj"> (x, w) }', ["w"], amounts((B * 105, 0), weight=(B * 105, 0))),
        # int64 indices count twice; of the table only the rows taken are read, its gradient is written whole
        (TABLE, ["t"], amounts((B * 120, 2 * B * 40 + 2 * B * 5), (B * 120, 0), (0, B * 40 + 800))),
        (TABLE, ["a"], amounts((B * 120, 2 * B * 40 + 2 * B * 5), weight=(B * 120, 0))),
        # views move nothing, and what reads them reads their source
        ("g (float[batch, 6] x, float[6, 6] a) => (float[batch, 3] y) { u = MatMul(x, a)"
         "  p, q = Split <axis = 1, num_outputs = 2> (u)  y = Mul(p, q) }",
         ["a"], amounts((B * 36, B * 9), (0, B * 9), (B * 36, 0))),
    ],
)  # fmt: skip
def test_counted_by_hand(text: str, trained: list[str], expected: StepWork) -> None:
    assert work(text, trained) == expected


def test_it_grows_with_the_rows() -> None:
    one, three = (work(DENSE, ["a"], {"batch": n}) for n in (1, 3))
    assert one is not None
    assert three is not None
    assert three.flops == 3 * one.flops


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[batch, n] x, float[n, 5] a) => (float[batch, 5] y) { y = MatMul(x, a) }", "n has no size"),
        ("g (float[batch, 2, 3] x, float[1, 20, 3] a, float[1, 20, 5] r) => (float[t, d, b, h] y) "
         "{ y = LSTM <hidden_size = 5> (x, a, r) }", "multiplies in its own way"),
        ("g (float[batch, 3] x, float[3, 5] a) => (float[batch, 5] y) { u = MatMul(x, a) "
         "y = Scan <num_scan_inputs = 1, body = s (float[5] i) => (float[5] o) { o = Tanh(i) }> (u) }", "has a body"),
    ],
)  # fmt: skip
def test_what_is_not_counted_is_none(text: str, reason: str) -> None:
    assert work(text, ["a"]) is None, reason


def test_an_artifact_has_the_work_of_its_batch(exported: object) -> None:
    manifest = read_manifest(exported("mlp", batch_size=6))  # type: ignore[operator]
    assert manifest.work_from_features is None  # all is trained, so nothing is cut off
    assert manifest.work is not None
    # 7 -> 11 -> 6 -> 5, all trained: the first layer has no data gradient
    assert manifest.work.flops == 2 * 6 * (3 * (77 + 66 + 30) - 77)


@pytest.mark.parametrize(
    ("trained", "whole", "from_features"),
    [
        # 7 -> 11 -> 6 -> 5: the head alone has a weight gradient and nothing before it a data gradient
        (["fc3.*"], 77 + 66 + 2 * 30, 2 * 30),
        # of the second layer a weight gradient too, of the third also the one that goes through it
        (["fc2.*", "fc3.*"], 77 + 2 * 66 + 3 * 30, 2 * 66 + 3 * 30),
    ],
)
def test_the_work_from_features_on_is_that_of_the_trained_part(
    trained: list[str], whole: int, from_features: int, tmp_path: Path
) -> None:
    import models

    import onnxft

    module, inputs = models.mlp()
    artifact = onnxft.export(module, inputs, directory=tmp_path / "a", trainable=trained, batch_size=6)
    manifest = read_manifest(artifact)
    assert manifest.features
    assert manifest.work is not None
    assert manifest.work.flops == 2 * 6 * whole
    assert manifest.work_from_features is not None
    assert manifest.work_from_features.flops == 2 * 6 * from_features
    assert manifest.work_from_features.bytes < manifest.work.bytes
