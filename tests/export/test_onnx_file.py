"""A bare ONNX file as a source: what becomes of its inputs, weights, names and behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx_models import MLP, mlp_weights, random, save, save_mlp

import onnxft
from onnxft.api import plan
from onnxft.errors import ConfigError, ModelError, OnnxftError
from onnxft.exporters.onnx_file import export_file
from onnxft.files import sha256
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims
from onnxft.manifest_file import read_manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


def kinds(forward: Forward) -> dict[str, str]:
    return {t.name: t.kind if t.used else "unused" for t in forward.tensors}


def input_shapes(forward: Forward) -> dict[str, tuple[int | str | None, ...]]:
    return {str(v.name): dims(v) for v in forward.infer.graph.inputs}


def ops(forward: Forward, which: str) -> list[str]:
    return [node.op_type for node in getattr(forward, which).graph]


@pytest.mark.parametrize("source", [Path, str])
def test_a_path_is_a_source_and_the_file_is_left_as_it_is(source: Any, path: Path, tmp_path: Path) -> None:
    before = sha256(save_mlp(path))
    artifact = onnxft.export(source(path), directory=tmp_path / "made", trainable=["fc2_*"])
    manifest = read_manifest(artifact)
    assert [p.name for p in manifest.parameters] == ["fc2_weight", "fc2_bias"]
    assert (manifest.batch_size, manifest.frozen_parameters, manifest.loss.num_classes) == (16, 7 * 11 + 11, 5)
    assert sha256(path) == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["net.onnx"]


def test_the_name_is_that_of_the_file(path: Path) -> None:
    assert plan(save_mlp(path)).forward.name == "net"


def test_the_example_says_how_many_rows(path: Path) -> None:
    assert export_file(save_mlp(path), random(4, 7)).example_rows == 4
    assert export_file(path, {"x": random(6, 7)}).example_rows == 6


WEIGHTS: list[tuple[str, dict[str, np.ndarray], dict[str, str]]] = [
    ("y = MatMul(x, onnx::MatMul_12)", {"onnx::MatMul_12": random(3, 2)}, {"onnx::MatMul_12": "parameter"}),
    ("h = Mul(x, s)  y = MatMul(h, w)", {"w": random(3, 2), "s": np.float32(2)}, {"w": "parameter"}),
    ("h = MatMul(x, w)  y = Add(h, b)", {"w": random(3, 2), "b": random(1)}, {"w": "parameter", "b": "parameter"}),
    # One read twice is one tensor; two equal ones are two.
    ("h = MatMul(x, w)  g = Add(h, b)  y = Mul(g, b)", {"w": random(3, 2), "b": random(2)},
     {"w": "parameter", "b": "parameter"}),
    ("h = MatMul(x, w)  g = Add(h, a)  y = Mul(g, b)",
     {"w": random(3, 2), "a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, dict.fromkeys("wab", "parameter")),
    ("y = MatMul(x, w)", {"w": random(3, 2), "left": random(4)}, {"w": "parameter", "left": "unused"}),
    ("h = MatMul(x, w)  y = BatchNormalization(h, s, b, m, v)",
     {"w": random(3, 2), "s": random(2), "b": random(2), "m": random(2), "v": np.ones(2, np.float32)},
     {"w": "parameter", "s": "parameter", "b": "parameter", "m": "buffer", "v": "buffer"}),
    # Bounds, however many axes they have, are settings.
    ("h = MatMul(x, w)  y = Clip(h, low)", {"w": random(3, 2), "low": np.float32(-1)}, {"w": "parameter"}),
    ("k = Constant<value = float[3,2] {1, 2, 3, 4, 5, 6}>()  y = MatMul(x, k)", {}, {"k": "parameter"}),
    ("k = Constant<value = float[1] {2}>()  h = MatMul(x, w)  y = Mul(h, k)", {"w": random(3, 2)}, {"w": "parameter"}),
    ("k = Constant<value_floats = [1.0, 2.0]>()  h = MatMul(x, w)  y = Mul(h, k)", {"w": random(3, 2)},
     {"w": "parameter", "k": "parameter"}),
    ("i = Constant<value = int64[1] {1}>()  h = MatMul(x, w)  g = ReduceSum(h, i)  y = Concat<axis=1>(g, g)",
     {"w": random(3, 2)}, {"w": "parameter"}),
    ("d = DequantizeLinear(q, s, z)  h = MatMul(x, d)  y = Add(h, b)",
     {"q": np.arange(6, dtype=np.int8).reshape(3, 2), "s": np.float32(0.1), "z": np.int8(0), "b": random(2)},
     {"b": "parameter"}),
    ("d = DequantizeLinear<axis=1>(q, s, z)  h = MatMul(x, d)  y = Add(h, b)",
     {"q": np.arange(6, dtype=np.int8).reshape(3, 2), "s": random(2) ** 2, "z": np.zeros(2, np.int8), "b": random(2)},
     {"b": "parameter"}),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights", "expected"), WEIGHTS)
def test_which_constants_are_weights(
    nodes: str, weights: dict[str, np.ndarray], expected: dict[str, str], path: Path
) -> None:
    quoted = nodes.replace("onnx::MatMul_12", "w0")
    save(f"g (float[N,3] x) => (float[N,2] y) {{ {quoted} }}", path)
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["onnx::MatMul_12" if n == "w0" else n for n in node.input]
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.save(model, path)
    forward = export_file(path)
    assert kinds(forward) == expected
    graph = forward.infer.graph
    for name, array in weights.items():
        if expected.get(name) in ("parameter", "buffer"):
            np.testing.assert_array_equal(graph.initializers[name].const_value.numpy(), array)


def test_a_model_without_float_weights_is_refused(path: Path) -> None:
    save("g (float[N,3] x) => (float[N,3] y) { y = Mul(x, s) }", path, s=np.float32(2))
    with pytest.raises(ModelError, match="no floating-point weights"):
        export_file(path)


def test_initializers_that_are_inputs_too_are_weights(path: Path) -> None:
    text = "g (float[N,3] x, float[3,2] w) => (float[N,2] y) { y = MatMul(x, w) }"
    forward = export_file(save(text, path, opset=18, ir_version=3, w=random(3, 2)))
    assert forward.inputs == ("x",)
    assert kinds(forward) == {"w": "parameter"}


def test_reserved_names_are_renamed_with_a_note(path: Path) -> None:
    text = """g (float[N,3] labels, float[N,2] step) => (float[N,2] loss_sum, float[N,2] z) {
        v_Add_1 = MatMul(labels, constant_1)
        random.0 = Add(v_Add_1, step)
        loss_sum = Tanh(random.0)
        z = Neg(random.0)
    }""".replace("random.0", "random0")
    forward = export_file(save(text, path, constant_1=random(3, 2)))
    assert forward.inputs == ("labels_input", "step_input")
    assert forward.outputs == ("model/loss_sum", "z")
    assert forward.notes == (
        "the model input 'labels' is called 'labels_input' here",
        "the model input 'step' is called 'step_input' here",
        "the tensor 'constant_1' is called 'model/constant_1' here",
        "the model output 'loss_sum' is called 'model/loss_sum' here",
    )
    assert "v_Add_1" not in {v.name for node in forward.train.graph for v in node.outputs}
    assert kinds(forward) == {"model/constant_1": "parameter"}


def test_a_file_may_have_every_name_that_training_uses(path: Path, tmp_path: Path) -> None:
    """Its values are called as the build half calls its own: the graphs are right all the same."""
    text = """g (float[N,3] x) => (float[N,2] v_Mul_9) {
        v_Add_1 = Add(x, constant_0)
        v_Gemm_2 = Gemm(v_Add_1, step, weight_sum)
        const_1d_0 = Tanh(v_Gemm_2)
        v_Mul_9 = Mul(const_1d_0, labels)
    }"""
    weights = {"constant_0": random(3), "step": random(3, 2), "weight_sum": random(2), "labels": random(2)}
    artifact = onnxft.export(save(text, path, **weights), directory=tmp_path / "made", batch_size=4)
    x = random(4, 3, seed=1)
    (expected,) = ort.InferenceSession(path).run(None, {"x": x})
    with onnxft.TrainSession(artifact, threads=1) as session:
        np.testing.assert_allclose(session.predict({"x": x})["model/v_Mul_9"], expected, rtol=1e-5)
        losses = [session.step({"x": x, "labels": np.array([0, 1, 1, 0])}, lr=0.05).loss for _ in range(5)]
    assert losses[-1] < losses[0]


def test_names_that_were_asked_for(path: Path) -> None:
    forward = export_file(save_mlp(path), input_names=["features"], output_names=["scores"])
    assert (forward.inputs, forward.outputs, forward.notes) == (("features",), ("scores",), ())


NAMES: list[tuple[dict[str, Any], str]] = [
    ({"input_names": ["a", "b"]}, "input_names has 2 names for 1 inputs"),
    ({"output_names": []}, "output_names has 0 names for 1 outputs"),
    ({"input_names": ["fc1_weight"]}, "the input name 'fc1_weight' is also that of a parameter"),
    ({"output_names": ["x"]}, "the output name 'x' is also that of an input"),
]


@pytest.mark.parametrize(("options", "words"), NAMES)
def test_wrong_names_are_errors(options: dict[str, Any], words: str, path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        export_file(save_mlp(path), **options)


# ----- dimensions -----

TOKENS = """
g (int64[N,sequence] ids, float[N,sequence] mask) => (float[N,4] y) {
    e = Gather(table, ids)
    m = Unsqueeze(mask, axis)
    k = Mul(e, m)
    s = ReduceSum<keepdims=0>(k, axis1)
    y = MatMul(s, w)
}
"""
TOKEN_WEIGHTS = {
    "table": random(6, 3), "w": random(3, 4), "axis": np.array([2]), "axis1": np.array([1]),
}  # fmt: skip


def test_an_open_dimension_takes_the_size_that_was_given(path: Path, tmp_path: Path) -> None:
    save(TOKENS, path, **TOKEN_WEIGHTS)
    artifact = onnxft.export(path, directory=tmp_path / "made", dimensions={"sequence": 6}, batch_size=2)
    manifest = read_manifest(artifact)
    assert manifest.dimensions == {"sequence": 6}
    batch = {"ids": np.ones((2, 6), np.int64), "mask": np.ones((2, 6), np.float32), "labels": np.array([0, 3])}
    with onnxft.TrainSession(artifact, threads=1) as session:
        assert session.dimensions == {"batch": 2, "sequence": 6}
        session.step(batch, lr=0.1)
    with onnxft.TrainSession(artifact, threads=1, dimensions={"sequence": 3}) as session:
        session.step({**batch, "ids": batch["ids"][:, :3], "mask": batch["mask"][:, :3]}, lr=0.1)


def test_an_open_dimension_takes_the_size_of_the_example(path: Path) -> None:
    example = (np.zeros((3, 8), np.int64), np.ones((3, 8), np.float32))
    forward = export_file(save(TOKENS, path, **TOKEN_WEIGHTS), example)
    assert (forward.dimensions, forward.example_rows) == ({"sequence": 8}, 3)
    assert export_file(path, example, dimensions={"sequence": 5}).dimensions == {"sequence": 5}


SHAPES = [
    ("N, 3", ("batch", 3), {}),
    ("rows, 3, h", ("batch", 3, "h"), {"h": 4}),
    ("rows, 3, batch", ("batch", 3, "x_2"), {"x_2": 4}),
    ("rows, 3, ?", ("batch", 3, "x_2"), {"x_2": 4}),
    ("rows, 3, ?, ?", ("batch", 3, "x_2", "x_3"), {"x_2": 4, "x_3": 5}),
    ("?, 3", ("batch", 3), {}),
    ("rows, 3, rows", ("batch", 3, "batch"), {}),
    ("rows, 3, dim_0", ("batch", 3, "dim_0"), {"dim_0": 4}),
]


@pytest.mark.parametrize(("shape", "expected", "sizes"), SHAPES)
def test_dimensions_have_names(shape: str, expected: tuple[int | str, ...], sizes: dict[str, int], path: Path) -> None:
    rank = len(expected)
    text = f"g (float[{shape}] x) => (float[{','.join('?' * rank)}] y) {{ y = Mul(x, w) }}"
    forward = export_file(save(text, path, w=random(3, *[1] * (rank - 2))), dimensions=sizes)
    assert input_shapes(forward) == {"x": expected}
    assert dims(forward.infer.graph.outputs[0]) == expected


def test_a_sum_as_a_name_becomes_a_plain_name(path: Path) -> None:
    model = onnx.load(save("g (float[N,3,a] x, float[N,3,b] z) => (float[N,3,a] y) { h = Mul(x, w)  y = Add(h, z) }",
                           path, w=random(3, 1)))  # fmt: skip
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[2].dim_param = "past + 1"
    onnx.save(model, path)
    forward = export_file(path, dimensions={"x_2": 4})
    assert input_shapes(forward) == {"x": ("batch", 3, "x_2"), "z": ("batch", 3, "x_2")}


DIMENSIONS: list[tuple[Mapping[str, int], type[OnnxftError], list[str]]] = [
    ({}, ModelError, ["'sequence' of ids, mask", "--dimension sequence=64", "dimensions={'sequence': 64}"]),
    ({"sequnce": 4}, ConfigError, ["no open dimension 'sequnce'", "Did you mean 'sequence'?"]),
    ({"sequence": 0}, ConfigError, ["'sequence' is 0", "at least 1"]),
    ({"batch": 4, "sequence": 4}, ConfigError, ["no open dimension 'batch'"]),
]


@pytest.mark.parametrize(("sizes", "error", "words"), DIMENSIONS)
def test_dimensions_that_do_not_fit(
    sizes: dict[str, int], error: type[OnnxftError], words: list[str], path: Path
) -> None:
    with pytest.raises(error) as err:
        plan(save(TOKENS, path, **TOKEN_WEIGHTS), dimensions=sizes)
    for word in words:
        assert word in str(err.value)


EXAMPLES: list[tuple[Any, str]] = [
    (np.zeros((2, 4)), "1 example inputs were given, the model takes ids, mask"),
    ({"ids": np.zeros((2, 4)), "musk": np.zeros((2, 4))}, "'musk' differs. Did you mean 'mask'?|'mask' differs"),
    ((np.zeros((2, 4)), np.zeros((3, 4))), "equally many rows"),
    ((np.zeros(()), np.zeros(())), "equally many rows"),
]


@pytest.mark.parametrize(("example", "words"), EXAMPLES)
def test_examples_that_do_not_fit(example: Any, words: str, path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        export_file(save(TOKENS, path, **TOKEN_WEIGHTS), example)


INPUTS = [
    ("float[N,3] x, float t", "input 't' is a scalar"),
    ("float[N,3] x, seq(float[N,3]) t", "input 't' is no tensor of numbers"),
    ("float[N,3] x, string[N] t", "input 't' is no tensor of numbers"),
    ("float[N,M,3] x, float[M,3] t", "'M' is the first dimension of one input, .* but a later one of 'x'"),
    ("float[N,3] x, float[3] t", "the inputs have different first dimensions"),
]


@pytest.mark.parametrize(("inputs", "words"), INPUTS)
def test_inputs_without_a_batch_are_refused(inputs: str, words: str, path: Path) -> None:
    save(f"g ({inputs}) => (float[N,2] y) {{ y = MatMul(x, w) }}", path, w=random(3, 2))
    with pytest.raises(ModelError, match=words):
        export_file(path)


# ----- a batch that the file has fixed -----

FIXED = [
    (1, "y = MatMul(x, w)", {}),
    (4, "y = MatMul(x, w)", {}),
    (1, "a = Reshape(x, s)  b = Reshape(a, t)  y = MatMul(b, w)", {"s": [1, 3, 1], "t": [1, -1]}),
    (2, "a = Reshape(x, s)  b = MatMul(a, u)  c = Reshape(b, t)  y = MatMul(c, w)",
     {"s": [6, 1], "t": [2, -1], "u": random(1, 1)}),
    (1, "k = Constant<value = int64[2] {1, 3}>()  a = Reshape(x, k)  y = MatMul(a, w)", {}),
    (1, "k = Reshape(w, s)  y = MatMul(x, k)", {"s": [3, 2]}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "nodes", "constants"), FIXED)
def test_a_fixed_batch_is_opened(rows: int, nodes: str, constants: dict[str, Any], path: Path, tmp_path: Path) -> None:
    weights = {n: np.asarray(v) for n, v in constants.items()}
    save(f"g (float[{rows},3] x) => (float[{rows},2] y) {{ {nodes} }}", path, w=random(3, 2), **weights)
    artifact = onnxft.export(path, directory=tmp_path / "made")
    manifest = read_manifest(artifact)
    assert manifest.batch_size == rows
    x = random(rows, 3)
    (expected,) = ort.InferenceSession(path).run(None, {"x": x})
    infer = ort.InferenceSession(artifact / "infer.onnx")
    (found,) = infer.run(None, {"x": np.concatenate([x, x, x])})
    np.testing.assert_allclose(found, np.concatenate([expected] * 3), rtol=1e-5)


def test_opening_a_batch_is_noted(path: Path) -> None:
    save("g (float[1,3] x) => (float[1,2] y) { y = MatMul(x, w) }", path, w=random(3, 2))
    assert export_file(path).notes == ("the file fixes the batch to 1; here it is open",)


STUCK = [
    ("c = Concat<axis=1>(x, one)  y = MatMul(c, w)", {"one": random(1, 1), "w": random(4, 2)}),
    ("m = ReduceMean<keepdims=1>(x, a)  d = Sub(x, m)  e = Add(x, d)  y = MatMul(e, w)",
     {"a": np.array([0]), "w": random(3, 2)}),
    ("h = MatMul(x, w)  y = ReduceMean<keepdims=0>(h)", {"w": random(3, 2)}),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "weights"), STUCK)
def test_a_batch_that_cannot_be_opened_is_an_error(nodes: str, weights: dict[str, np.ndarray], path: Path) -> None:
    y = "float y" if "keepdims=0" in nodes else "float[?,?] y"
    save(f"g (float[1,3] x) => ({y}) {{ {nodes} }}", path, **weights)
    with pytest.raises(ModelError) as err:
        export_file(path)
    assert "is fixed to 1 and cannot be opened" in str(err.value)
    assert "a dynamic first dimension" in str(err.value)


# ----- behaviour -----

DROPPED = "g (float[N,3] x) => (float[N,2] y) { h = MatMul(x, w)  y = Dropout(h, r) }"


@pytest.mark.parametrize(
    ("ratio", "dropout", "kept"), [(0.4, True, True), (0.4, False, False), (0.0, True, False)]
)  # fmt: skip
def test_dropout_is_active_in_training_only(ratio: float, dropout: bool, kept: bool, path: Path) -> None:
    forward = export_file(save(DROPPED, path, w=random(3, 2), r=np.float32(ratio)), dropout=dropout)
    assert "Dropout" not in ops(forward, "infer")
    assert forward.outputs == ("y",)
    assert [v.name for v in forward.train.graph.outputs] == ["y"]
    assert ("Dropout" in ops(forward, "train")) == kept


def test_dropout_of_a_file_trains_with_a_mask(path: Path, tmp_path: Path) -> None:
    text = "g (float[N,3] x) => (float[N,2] y) { a = Dropout(x)  h = MatMul(a, w)  y = Dropout(h, r) }"
    save(text, path, w=random(3, 2), r=np.float32(0.25))
    artifact = onnxft.export(path, directory=tmp_path / "made", batch_size=4)
    drawn = read_manifest(artifact).graph("train").named("random")
    assert sorted((p.shape, p.distribution.ratio) for p in drawn if p.distribution) == [
        (("batch", 2), 0.25), (("batch", 3), 0.5),
    ]  # fmt: skip
    with onnxft.TrainSession(artifact, threads=1) as session:
        batch = {"x": random(4, 3), "labels": np.array([0, 1, 0, 1])}
        assert np.isfinite(session.step(batch, lr=0.1).loss)
        np.testing.assert_allclose(session.predict({"x": batch["x"]})["y"], batch["x"] @ session.parameters["w"], 1e-5)


TRAINING = [
    ("h = MatMul(x, w)  y = Dropout(h, r, t)", r"Dropout '.*' \(output 'y'\) is in training mode"),
    ("h = MatMul(x, w)  y, m, v = BatchNormalization<training_mode=1>(h, b, b, b, b)", "is in training mode"),
    ("h = MatMul(x, w)  n = RandomNormalLike(h)  y = Add(h, n)", "draws random numbers in inference"),
]


@pytest.mark.parametrize(("nodes", "words"), TRAINING)
def test_a_file_in_training_mode_is_refused(nodes: str, words: str, path: Path) -> None:
    weights = {"w": random(3, 2), "b": np.ones(2, np.float32), "r": np.float32(0.5), "t": np.array(True)}
    save(f"g (float[N,3] x) => (float[N,2] y) {{ {nodes} }}", path, **weights)
    with pytest.raises(ModelError, match=words):
        export_file(path)


def test_an_operator_of_another_domain_is_named(path: Path) -> None:
    model = onnx.load(save(MLP, path, **mlp_weights()))
    model.graph.node[1].CopyFrom(helper.make_node("Gelu", ["h1"], ["h2"], name="act", domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"Gelu 'act' \(output 'h2'\) belongs to the domain 'com.microsoft'"):
        export_file(path)


OPSETS: list[tuple[int, str, dict[str, np.ndarray]]] = [
    (13, "h = MatMul(x, w)  m = ReduceMean<axes=[1], keepdims=1>(h)  y = Sub(h, m)", {}),
    (17, "h = MatMul(x, w)  y = LayerNormalization(h, s)", {"s": random(2)}),
    (17, "h = Dropout(x, r)  a = MatMul(h, w)  m = ReduceMax<axes=[1]>(a)  y = Sub(a, m)", {"r": np.float32(0.5)}),
    (20, "h = MatMul(x, w)  y = Gelu(h)", {}),
    (21, "h = MatMul(x, w)  y = Dropout(h, r)", {"r": np.float32(0.5)}),
]


@pytest.mark.parametrize(("opset", "nodes", "weights"), OPSETS)
def test_a_file_of_another_opset_is_trained(
    opset: int, nodes: str, weights: dict[str, np.ndarray], path: Path, tmp_path: Path
) -> None:
    text = f"g (float[N,3] x) => (float[N,2] y) {{ {nodes} }}"
    save(text, path, opset=opset, ir_version=10 if opset > 20 else 8, w=random(3, 2), **weights)
    artifact = onnxft.export(path, directory=tmp_path / "made", batch_size=4)
    assert len(read_manifest(artifact).graph("train").named("random")) == ("Dropout" in nodes)
    x = random(4, 3, seed=1)
    (expected,) = ort.InferenceSession(path).run(None, {"x": x})
    with onnxft.TrainSession(artifact, threads=1) as session:
        np.testing.assert_allclose(session.predict({"x": x})["y"], expected, rtol=1e-4, atol=1e-6)
        for _ in range(3):
            session.step({"x": x, "labels": np.array([0, 1, 1, 0])}, lr=0.05)
        assert np.abs(session.predict({"x": x})["y"] - expected).max() > 1e-3


def test_functions_of_the_file_are_inlined(path: Path) -> None:
    model = onnx.load(save(MLP, path, **mlp_weights()))
    opset = helper.make_opsetid("", 18)
    body = [helper.make_node("Tanh", ["a"], ["b"])]
    model.functions.append(helper.make_function("own", "Act", ["a"], ["b"], body, [opset]))
    model.graph.node[1].CopyFrom(helper.make_node("Act", ["h1"], ["h2"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert ops(export_file(path), "train") == ["Gemm", "Tanh", "Gemm"]


REFUSED = [
    ("g (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", "the runtime refuses the model"),
    ("g (float[N,4] x) => (float[N,2] y) { y = MatMul(x, missing) }", "the runtime refuses the model"),
    ("g (float[N,4] x) => (float[N,2] y) { y = NoSuchOperator(x, w) }", "the runtime refuses the model"),
    ("g (float[N,4] x) => (seq(float[N,2]) y) { h = MatMul(x, w)  y = SequenceConstruct(h) }", "'y' is no tensor"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_model_that_does_not_run_is_an_error(text: str, words: str, path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        export_file(save(text, path, w=random(4, 2)))


def test_hidden_states_need_another_loss(path: Path) -> None:
    text = "g (float[N,3] x) => (float[N] s, float[N,2] y) { y = MatMul(x, w)  s = ReduceSum<keepdims=0>(y, a) }"
    save(text, path, w=random(3, 2), a=np.array([1]))
    with pytest.raises(ModelError, match=r"cross entropy reads logits .* the output 's' has \['batch'\]"):
        plan(path)
    assert plan(path, loss_output="y").loss.num_classes == 2
