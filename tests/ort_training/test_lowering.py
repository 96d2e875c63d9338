"""Lowering to what onnxruntime-training differentiates correctly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from ort_training_models import CASES, HEAD, make_forward

from onnxft.errors import GradientError, ModelError, OnnxftError, SelectionError
from onnxft.generators.ort_training.lowering import lower
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.forward import Forward, Tensor
from onnxft.manifest import BATCH


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0])


def forward_of(build: Callable[[Op, ir.Value, ir.Value], ir.Value], opset: int = 18) -> Forward:
    """A model of one scale `w` (4,) over x (batch, 4), built by `build(op, x, w)`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="small")
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, (BATCH, 4))
    w = op.initializer(ir.tensor(np.linspace(0.5, 2, 4, dtype=np.float32)), name="w")
    y = build(op, x, w)
    y.name = "logits"
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    return Forward("small", model, model, (Tensor("w", (4,), "float32", "parameter"),), ("x",), ("logits",))


# ----- lowering -----


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (HEAD, ["Conv", "Mul", "Add", "Relu", "MaxPool", "Flatten", "Gemm"]),
        (
            (*HEAD, "1.bias"),
            ["Conv", "Mul", "Add", "Reshape", "Mul", "Reshape", "Add", "Relu", "MaxPool", "Flatten", "Gemm"],
        ),
    ],
)
def test_batch_norm_is_decomposed(trained: tuple[str, ...], expected: list[str]) -> None:
    forward = make_forward(CASES["convnet_sgd"])
    before = ir.to_proto(forward.train).SerializeToString()
    model = lower(forward.train, trained, "logits")
    assert op_types(model) == expected
    assert ("1.running_var" in model.graph.initializers, "1.bias" in model.graph.initializers) == (
        False,
        "1.bias" in trained,
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(0).standard_normal((5, 2, 4, 6), np.float32)
    np.testing.assert_allclose(run(model, x), run(forward.train, x), rtol=1e-4, atol=1e-5)
    assert ir.to_proto(forward.train).SerializeToString() == before, "the forward graph was changed"


def test_batch_norm_that_is_the_output_keeps_its_name() -> None:
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    forward = forward_of(
        lambda op, x, w: op.BatchNormalization(
            x, w, *(op.initializer(ir.tensor(a), name=n) for n, a in (("b", zeros), ("m", zeros + 3), ("v", ones * 2)))
        )
    )
    model = lower(forward.train, ["w"], "logits")
    assert [v.name for v in model.graph.outputs] == ["logits"]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(run(model, x), run(forward.train, x), rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "outputs"),
    [
        (lambda op, x, w: op.LayerNormalization(x, w, w, axis=-1), 3),
        (lambda op, x, w: op.Dropout(op.Mul(x, w), 0.5, op.initializer(ir.tensor(True), name="training")), 2),
        (lambda op, x, w: op.Mul(x, w), 1),
    ],
)
def test_outputs_that_the_gradient_builder_reads_are_there(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value], outputs: int
) -> None:
    node = list(lower(forward_of(build).train, ["w"], "logits").graph)[-1]
    assert len(node.outputs) == outputs
    assert len({v.name for v in node.outputs} - {""}) == outputs


def test_added_outputs_take_no_name_of_the_model() -> None:
    """Exporters number their nodes: layer_norm, layer_norm_1, layer_norm_2."""

    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        for name in ("norm", "norm_1", "norm_2", "norm_1_1"):
            x = op.LayerNormalization(x, w, w, axis=-1)
            x.name = name
        return op.Mul(x, w)

    model = lower(forward_of(build).train, ("w",), "logits")
    names = [v.name for node in model.graph for v in node.outputs]
    assert len(names) == len(set(names)) == 4 * 3 + 1


def test_versions_are_those_that_the_package_reads() -> None:
    forward = forward_of(lambda op, x, w: op.Mul(x, w))
    forward.train.ir_version = 13
    assert lower(forward.train, ["w"], "logits").ir_version == 10
    with pytest.raises(ModelError, match=r"opset 22; onnxruntime-training 1\.19\.2 reads at most 21"):
        lower(forward_of(lambda op, x, w: op.Mul(x, w), opset=22).train, ["w"], "logits")


def test_a_model_too_large_for_its_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxft.generators.ort_training.lowering.limits.MAX_BYTES", 15)
    with pytest.raises(ModelError, match=r"have 16 bytes; .* hold at most 15"):
        lower(forward_of(lambda op, x, w: op.Mul(x, w)).train, ["w"], "logits")


@pytest.mark.parametrize(
    ("build", "trainable", "output", "error", "words"),
    [
        (lambda op, x, w: op.Mul(x, w), [], "logits", SelectionError, "no parameter is selected"),
        (lambda op, x, w: op.Mul(x, w), ["ww"], "logits", SelectionError, "'ww' is no parameter.*Did you mean 'w'"),
        (lambda op, x, w: op.Mul(x, w), ["w"], "logit", ModelError, "no output 'logit'.*Did you mean 'logits'"),
        (lambda op, x, w: op.Relu(x), ["w"], "logits", SelectionError, "'w' does not reach the output 'logits'"),
        (
            lambda op, x, w: op.Mul(x, op.Cast(op.initializer(ir.tensor([1, 2, 3, 4]), name="n"), to=1)),
            ["n"],
            "logits",
            SelectionError,
            "'n' has the element type INT64; .* float32",
        ),
        (
            lambda op, x, w: op.BatchNormalization(x, w, w, w, w, training_mode=1, _outputs=3)[0],
            ["w"],
            "logits",
            GradientError,
            "is in training mode",
        ),
        (
            lambda op, x, w: op.BatchNormalization(x, w, w, w, op.Abs(w)),
            ["w"],
            "logits",
            GradientError,
            "computed at run time",
        ),
    ],
)
def test_what_cannot_be_lowered_is_named(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value],
    trainable: list[str],
    output: str,
    error: type[OnnxftError],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        lower(forward_of(build).train, trainable, output)


# ----- native rules -----


def test_a_node_without_a_right_gradient_calls_a_function_that_has_one() -> None:
    model = lower(forward_of(lambda op, x, w: op.Atan(op.Mul(x, w))).train, ["w"], "logits")
    assert [(n.domain, n.op_type) for n in model.graph] == [("", "Mul"), ("onnxft.forward", "Atan_0")]
    forward, gradient = (model.functions[domain, "Atan_0", ""] for domain in ("onnxft.forward", "onnxft.gradient"))
    assert [n.op_type for n in forward] == ["Atan"]
    assert [v.name for v in gradient.inputs] == ["I0", "GO0"]
    assert [v.name for v in gradient.outputs] == ["GI0"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_the_inputs_of_a_call_begin_with_those_that_have_a_gradient() -> None:
    """The package takes the k-th gradient of a definition for that of input k, whatever its name."""
    model = lower(forward_of(lambda op, x, w: op.Pow(op.Abs(x), w)).train, ["w"], "logits")
    call = list(model.graph)[-1]
    assert [v.name for v in call.inputs] == ["w", "v_Abs_0"]
    assert [v.name for v in model.functions["onnxft.gradient", "Pow_0", ""].outputs] == ["GI0"]


def test_what_no_gradient_passes_is_left_as_it_is() -> None:
    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        y = op.Mul(x, w)
        return op.Where(op.IsNaN(y), x, y)

    assert op_types(lower(forward_of(build).train, ["w"], "logits")) == ["Mul", "IsNaN", "Where"]


def test_a_gradient_may_read_an_output_that_nothing_else_reads() -> None:
    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        weights, steps = (op.Expand(w, [1, 16, 4]), op.Unsqueeze(x, [0]))
        y, h, _ = op.LSTM(steps, weights, weights, hidden_size=4, _outputs=3)
        y.name = ""
        h.shape = ir.Shape([1, BATCH, 4])
        return op.Squeeze(h, [0])

    call = next(n for n in lower(forward_of(build).train, ["w"], "logits").graph if n.domain == "onnxft.forward")
    assert all(v.name for v in call.outputs)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda op, x, w: op.Hardmax(op.Mul(x, w)), "'Hardmax' .* has no derivative by nature"),
        (
            lambda op, x, w: op.Mul(x, op.Det(op.Mul(op.Unsqueeze(w, [0]), op.Unsqueeze(w, [1])))),
            "no rule for 'Det' .*yet",
        ),
        (
            lambda op, x, w: op.ConcatFromSequence(op.SequenceConstruct(op.Mul(x, w)), axis=0),
            "no rule for 'ConcatFromSequence' .*lies between 'w' and the loss",
        ),
    ],
)
def test_what_no_rule_knows_is_refused_before_the_worker_runs(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value], words: str
) -> None:
    with pytest.raises(GradientError, match=words):
        lower(forward_of(build).train, ["w"], "logits")


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_control_flow_on_the_path_is_refused(kind: str) -> None:
    def build(op: Op, x: ir.Value, w: ir.Value) -> ir.Value:
        y = op.Mul(x, w)
        node = ir.Node("", kind, [y], name="flow")  # its body is not looked at
        node.outputs[0].type, node.outputs[0].shape = y.type, y.shape
        op.builder.graph.append(node)
        return op.Relu(node.outputs[0])

    with pytest.raises(GradientError, match=rf"no rule for '{kind}' \(node 'flow'.*its body is a graph of its own"):
        lower(forward_of(build).train, ["w"], "logits")


# ----- forms -----


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda op, x, w: op.ReduceSum(op.Mul(x, w), noop_with_empty_axes=1), ["Mul", "Identity"]),
        (lambda op, x, w: op.ReduceSum(op.Mul(x, w), [0], noop_with_empty_axes=1), ["Mul", "ReduceSum_0"]),
    ],
)
def test_forms_that_its_kernels_do_not_run_are_others(
    build: Callable[[Op, ir.Value, ir.Value], ir.Value], expected: list[str]
) -> None:
    assert op_types(lower(forward_of(build).train, ["w"], "logits")) == expected


def test_a_slice_of_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'Slice' .* takes nothing \(shape \['batch', 0\]\)"):
        lower(forward_of(lambda op, x, w: op.Slice(op.Mul(x, w), [9], [12], [1])).train, ["w"], "logits")
