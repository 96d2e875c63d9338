"""Dimensions that inference leaves unknown are measured: numbers, input dimensions, sums of their products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_models import random, save

import onnxft
from onnxft.errors import ModelError
from onnxft.exporters import shapes
from onnxft.exporters.onnx_file import export_file
from onnxft.exporters.shapes import complete_shapes
from onnxft.graph.shapes import Dim, dims, set_dims
from onnxft.manifest_file import read_manifest
from onnxft.runtime.session import TrainSession

S = {"s": 12}
"""Default size of the second dimension."""

ONES = {"one": np.array([1]), "zero": np.array([0]), "two": np.array([2]), "three": np.array([3])}

CASES: list[tuple[str, tuple[Dim, ...], dict[str, int]]] = [
    # y is what the nodes make of x (batch, s, 6); what inference cannot follow goes over a computed shape.
    ("t = Shape<start=0,end=2>(x)  u = ReduceProd(t)  k = Concat<axis=0>(u, six)  y = Reshape(x, k)",
     ("batch*s", 6), S),
    ("t = Shape(x)  u = ReduceProd(t)  y = Reshape(x, u)", ("6*batch*s",), S),
    ("t = Shape<start=0,end=1>(x)  u = Mul(t, three)  k = Concat<axis=0>(u, minus, two)  y = Reshape(x, k)",
     ("3*batch", "s", 2), S),
    ("t = Shape<start=1,end=2>(x)  e = Sub(t, one)  y = Slice(x, zero, e, one)", ("batch", "s - 1", 6), S),
    ("y = Concat<axis=1>(x, row)", ("batch", "2*s", 6), S),
    ("t = Shape<start=1,end=2>(x)  e = Div(t, two)  y = Slice(x, zero, e, one)", ("batch", "dim_0", 6), S),
    ("t = Shape<start=1,end=2>(x)  e = Min(t, three)  y = Slice(x, zero, e, one)", ("batch", 3, 6), S),
    ("t = Shape<start=1,end=2>(x)  e = Mul(t, t)  k = Concat<axis=0>(one, e)  z = Expand(c, k)  n = ReduceSum(z)  "
     "y = Mul(x, n)", ("batch", "s", 6), S),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "expected", "sizes"), CASES)
def test_a_dimension_is_what_explains_all_runs(
    nodes: str, expected: tuple[Dim, ...], sizes: dict[str, int], tmp_path: Path
) -> None:
    nodes = nodes.replace("row", "x")
    text = f"g (float[N,s,6] x) => (float[{','.join('?' * len(expected))}] y) {{ {nodes}  q = Mul(y, w) }}"
    text = text.replace("] y) {", "] y, float[?,?,?] v) {").replace("q = Mul(y, w)", "v = Mul(x, w)")
    constants = {**ONES, "six": np.array([6]), "minus": np.array([-1]), "c": random(1, 1), "w": random(6)}
    forward = export_file(save(text, tmp_path / "m.onnx", **constants), dimensions=sizes)
    for model in (forward.infer, forward.train):
        assert dims(model.graph.outputs[0]) == expected
        for node in model.graph:
            for value in node.outputs:
                assert value.shape is not None, value
                assert not any(d is None or str(d).startswith("unk") for d in dims(value)), value


def test_equal_measurements_have_equal_names(tmp_path: Path) -> None:
    """Half of s, rounded down, is no sum of products; where it comes up again it is the same dimension."""
    text = """g (float[N,s,6] x) => (float[?,?,?] y) {
        t = Shape<start=1,end=2>(x)
        e = Div(t, two)
        a = Slice(x, zero, e, one)
        b = Slice(x, e, t, one)
        c = Slice(b, zero, e, one)
        d = Add(a, c)
        y = Mul(d, w)
    }"""
    path = save(text, tmp_path / "m.onnx", w=random(6), **ONES)
    graph = export_file(path, dimensions=S).infer.graph
    by_name = {v.name: dims(v)[1] for n in graph for v in n.outputs if len(dims(v)) == 3}
    assert by_name["a"] == by_name["c"] == by_name["d"] == by_name["y"] == "dim_0"
    assert by_name["b"] == "dim_1"


def test_a_model_with_a_smallest_size_is_measured_near_its_default(tmp_path: Path) -> None:
    """Six convolutions without padding take nothing below 13."""
    layers = "".join(f"h{i + 1} = Conv(h{i}, k)  " for i in range(6)).replace("h0", "x")
    text = f"g (float[N,1,s] x) => (float[?,?] y) {{ {layers} z = Shape<end=1>(h6)  m = Concat<axis=0>(z, minus) "
    text += " y = Reshape(h6, m) }"
    path = save(text, tmp_path / "m.onnx", k=random(1, 1, 3), minus=np.array([-1]))
    graph = export_file(path, dimensions={"s": 40}).infer.graph
    assert dims(graph.outputs[0]) == ("batch", "s - 12")


def test_reshapes_of_several_symbolic_dimensions_copy_them(tmp_path: Path) -> None:
    """Heads are split and joined without shape arithmetic at run time."""
    text = """g (float[N,s,6] x) => (float[?,?,6] y) {
        h = MatMul(x, w)
        t = Shape<start=0,end=2>(x)
        k = Concat<axis=0>(t, heads)
        a = Reshape<allowzero=1>(h, k)
        b = Transpose<perm=[0, 2, 1, 3]>(a)
        c = Softmax(b)
        d = Transpose<perm=[0, 2, 1, 3]>(c)
        m = Concat<axis=0>(t, width)
        y = Reshape(d, m)
    }"""
    path = save(text, tmp_path / "m.onnx", w=random(6, 6), heads=np.array([2, 3]), width=np.array([6]))
    graph = export_file(path, dimensions=S).train.graph
    assert [n.op_type for n in graph] == ["MatMul", "Reshape", "Transpose", "Softmax", "Transpose", "Reshape"]
    targets = [n.inputs[1].const_value.numpy().tolist() for n in graph if n.op_type == "Reshape"]
    assert targets == [[0, 0, 2, 3], [0, 0, 6]]


@pytest.fixture
def simple(tmp_path: Path) -> ir.Model:
    text = "g (float[N,3] x) => (float[N,2] y) { h = MatMul(x, w)  y = Tanh(h) }"
    return export_file(save(text, tmp_path / "m.onnx", w=random(3, 2))).infer


def test_a_mask_of_a_composed_shape_is_drawn(tmp_path: Path) -> None:
    """Dropout over (batch*s, 4): the host draws as many numbers as the sizes of the session make."""
    text = """g (float[N,s,6] x) => (float[N,4] y) {
        f = Reshape(x, flat)
        h = MatMul(f, w)
        d = Dropout(h, ratio)
        t = Shape<start=0,end=2>(x)
        k = Concat<axis=0>(t, four)
        r = Reshape(d, k)
        y = ReduceMean<keepdims=0>(r, one)
    }"""
    constants = {"w": random(6, 4), "flat": np.array([-1, 6]), "four": np.array([4]), "ratio": np.float32(0.5)}
    path = save(text, tmp_path / "m.onnx", **constants, one=ONES["one"])
    artifact = onnxft.export(path, directory=tmp_path / "made", dimensions={"s": 5}, batch_size=3)
    (mask,) = read_manifest(artifact).graph("train").named("random")
    assert mask.shape == ("batch*s", 4)
    for size in (5, 2):
        with TrainSession(artifact, threads=1, dimensions={"s": size}) as session:
            batch = {"x": random(3, size, 6), "labels": np.array([0, 1, 3])}
            losses = [session.step(batch, lr=0.05).loss for _ in range(20)]
            assert losses[-1] < losses[0]


def test_nothing_is_run_where_all_is_known(simple: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "opened", None)
    assert complete_shapes(simple, {}) == {}
    set_dims(simple.graph[0].outputs[0], ["12*batch - 1", 2])  # as an exporter names it
    assert complete_shapes(simple, {}) == {}


def test_names_that_inference_made_up_are_replaced(simple: ir.Model) -> None:
    (h,) = simple.graph[0].outputs
    set_dims(h, ["unk__3", 2])
    assert complete_shapes(simple, {}) == {"h": ("batch", 2)}
    assert dims(h) == ("batch", 2)


@pytest.mark.parametrize("wrong", [(None, 3), ("batch", None, 2)])
def test_inference_that_contradicts_the_run_is_an_error(wrong: tuple[Dim, ...], simple: ir.Model) -> None:
    set_dims(simple.graph[0].outputs[0], wrong)
    with pytest.raises(ModelError, match=r"'h' has the shape \['batch', 2\] when it is run"):
        complete_shapes(simple, {})


def test_too_many_symbolic_dimensions_are_refused(tmp_path: Path) -> None:
    text = "g (float[N,a,b,c,d,e] x) => (float[?] y) { h = Mul(x, w)  s = Shape(h)  n = ReduceProd(s)  "
    text += "y = Reshape(h, n) }"
    path = save(text, tmp_path / "m.onnx", w=random(1, 1))
    with pytest.raises(ModelError, match="6 symbolic dimensions"):
        export_file(path, dimensions=dict.fromkeys("abcde", 2))
