"""The engine: what it adds, cuts and refuses; and refusals that rules make themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, run_runtime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.errors import GradientError
from onnxft.grad.backward import backward, nodes_between
from onnxft.graph.builder import add_input, builder

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def graph():
    return builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="test"))


def gradients(op, loss, xs, inputs, threads=1):
    """Gradients of `loss` as arrays, keyed by the names of `xs`."""
    found = backward(op, loss, xs)
    g = op.builder.graph
    g.outputs.extend(op.Identity(dx) for dx in found.values())
    for x, value in zip(found, g.outputs, strict=True):
        value.name = f"d_{x.name}"
    model = ir.Model(g, ir_version=IR_VERSION)
    RemoveUnusedNodesPass()(model)
    results = run_runtime(ir.serde.serialize_model(model), inputs, threads)
    return {x.name: results[f"d_{x.name}"] for x in found}, model


def loss_of(op, y):
    return op.ReduceSum(y, keepdims=0)


def test_gradients_of_several_uses_are_added():
    op = graph()
    x = add_input(op, "x", FLOAT, [2, 3])
    y = op.Add(op.Mul(x, x), op.Mul(x, 3.0))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    found, _ = gradients(op, loss_of(op, y), [x], {"x": values})
    np.testing.assert_array_equal(found["x"], 2 * values + 3)


def test_one_value_at_two_inputs_of_a_node():
    op = graph()
    x = add_input(op, "x", FLOAT, [3])
    found, _ = gradients(op, loss_of(op, op.Sub(x, x)), [x], {"x": np.ones(3, np.float32)})
    np.testing.assert_array_equal(found["x"], np.zeros(3))


def test_broadcast_operands_are_summed_to_their_own_shape():
    op = graph()
    x, b = add_input(op, "x", FLOAT, [2, 3, 4]), add_input(op, "b", FLOAT, [3, 1])
    inputs = {"x": np.ones((2, 3, 4), np.float32), "b": np.ones((3, 1), np.float32)}
    found, _ = gradients(op, loss_of(op, op.Mul(x, b)), [x, b], inputs)
    np.testing.assert_array_equal(found["b"], np.full((3, 1), 8))


def test_nothing_before_the_first_parameter_is_differentiated():
    op = graph()
    x = add_input(op, "x", FLOAT, [2, 3])
    w = add_input(op, "w", FLOAT, [3, 4])
    features = op.Hardmax(x)  # has no derivative, and is not on the path
    loss = loss_of(op, op.MatMul(features, w))
    assert "Hardmax" not in {node.op_type for node in nodes_between([w], loss)}
    assert list(backward(op, loss, [w])) == [w]


def test_gradients_that_nobody_asked_for_are_pruned():
    op = graph()
    x, w = add_input(op, "x", FLOAT, [2, 3]), add_input(op, "w", FLOAT, [3, 4])
    inputs = {"x": np.ones((2, 3), np.float32), "w": np.ones((3, 4), np.float32)}
    found, model = gradients(op, loss_of(op, op.MatMul(x, w)), [w], inputs)
    np.testing.assert_array_equal(found["w"], np.full((3, 4), 2))
    assert sum(node.op_type == "Gemm" for node in model.graph) == 1


def test_integers_carry_no_gradient():
    op = graph()
    x = add_input(op, "x", FLOAT, [3])
    rounded = op.Cast(op.Cast(x, to=int(INT64)), to=int(FLOAT))
    with pytest.raises(GradientError, match="'x' does not reach the loss along differentiable values"):
        backward(op, loss_of(op, rounded), [x])


def test_a_parameter_that_does_not_reach_the_loss_is_an_error():
    op = graph()
    x, w = add_input(op, "x", FLOAT, [3]), add_input(op, "unused.weight", FLOAT, [3])
    op.Exp(w)
    with pytest.raises(GradientError, match=r"'unused\.weight' does not reach the loss.*Freeze it"):
        backward(op, loss_of(op, op.Exp(x)), [x, w])


def test_a_missing_rule_names_operator_node_and_parameter():
    op = graph()
    w = add_input(op, "conv1.weight", FLOAT, [3, 4])
    y = op.Det(op.MatMul(w, op.Transpose(w)))
    y.producer().name = "head/det"
    with pytest.raises(GradientError) as caught:
        backward(op, y, [w])
    for word in [
        "no rule for 'Det'",
        "needs the inverse of a matrix",
        "node 'head/det'",
        "'conv1.weight'",
        "add a rule: see onnxft/grad/README.md",
    ]:
        assert word in str(caught.value)


def test_an_operator_without_derivative_says_so():
    op = graph()
    w = add_input(op, "w", FLOAT, [3])
    y = op.RandomNormalLike(op.Exp(w))
    y.producer().name = "noise/normal"
    with pytest.raises(GradientError) as caught:
        backward(op, loss_of(op, op.Mul(y, w)), [w])
    for word in ["'RandomNormalLike'", "no derivative by nature", "its result is random", "noise/normal", "'w'"]:
        assert word in str(caught.value)


def _rows(y):
    """`y` with a shape as an exporter would record it where inference gives up."""
    y.shape = ir.Shape(["rows", 3])
    return y


POOL = {"kernel_shape": [2], "strides": [2]}


def _unpooled(op, x):
    y = op.MaxUnpool(*op.MaxPool(x, **POOL, _outputs=2), [2, 3, 7], **POOL)
    y.shape = ir.Shape([2, 3, 7])
    return y


def _batch_norm(op, x):
    c = [add_input(op, name, FLOAT, [3]) for name in ("scale", "bias", "mean", "var")]
    return op.BatchNormalization(x, *c, training_mode=1, _outputs=3)[0]


@pytest.mark.parametrize(
    ("shape", "write", "words"),
    [
        ([2, 3, 4], _batch_norm, "BatchNorm is frozen by default"),
        ([2, 3], lambda op, x: op.Dropout(x, 0.5, op.Cast(1.0, to=9)), "makes the mask an input"),
        ([2, 3], lambda op, x: op.LayerNormalization(x, x, _outputs=3)[1], "reads Mean or InvStdDev"),
        ([2, 3, 6], lambda op, x: op.MaxPool(x, kernel_shape=[2], strides=[3], ceil_mode=1), "starts behind its input"),
        (["batch", "n", "n"], lambda op, x: _rows(op.Einsum(x, equation="bii->bi")), "must be static"),
        (
            [2, 3, 6],
            _unpooled,
            r"\[7\], where its own is \[6\]",
        ),
        ([2, 6, 2], lambda op, x: op.DFT(x, inverse=1, onesided=1), "inverse and onesided"),
        ([2, 3, 6], lambda op, x: op.LpPool(x, kernel_shape=[2], p=0), "has p = 0; its rule needs p >= 1"),
        (["batch", 3], lambda op, x: _rows(op.Slice(x, [0], [9], [0], [2])), "must be static"),
        ([2, 3], lambda op, x: _rows(op.ReduceSum(x, op.Shape(op.ReduceSum(x)))), "needs a constant"),
    ],
)
def test_a_rule_refuses_what_it_cannot_differentiate(shape, write, words):
    op = graph()
    x = add_input(op, "x", FLOAT, shape)
    y = write(op, x)
    with pytest.raises(GradientError, match=words):
        backward(op, loss_of(op, y), [x])


@pytest.mark.parametrize("rows", [2, 300], ids=["small table", "large table"])
def test_repeated_indices_add_up_exactly_with_several_threads(rows):
    op = graph()
    table = add_input(op, "table", FLOAT, [rows, 5])
    indices = add_input(op, "indices", INT64, [1024])
    inputs = {"table": np.zeros((rows, 5), np.float32), "indices": np.ones(1024, np.int64)}
    expected = np.zeros((rows, 5))
    expected[1] = 1024
    found = backward(op, loss_of(op, op.Gather(table, indices)), [table])
    g = op.builder.graph
    g.outputs.append(op.Identity(found[table]))
    proto = ir.serde.serialize_model(ir.Model(g, ir_version=IR_VERSION))
    name = g.outputs[0].name
    for _ in range(20):
        np.testing.assert_array_equal(run_runtime(proto, inputs, threads=2)[name], expected)


def test_the_largest_in_any_order_get_their_gradient():
    op = graph()
    x = add_input(op, "x", FLOAT, [2, 7])
    values = np.random.default_rng(0).permutation(14).reshape(2, 7).astype(np.float32)
    y, _ = op.TopK(x, [3], sorted=0, _outputs=2)
    found, _ = gradients(op, loss_of(op, op.Mul(y, y)), [x], {"x": values})
    largest = values >= np.sort(values, axis=1)[:, -3:-2]
    np.testing.assert_array_equal(found["x"], np.where(largest, 2 * values, 0))


@pytest.mark.parametrize("operator", ["GatherND", "ScatterND"])
def test_repeated_vectors_of_indices_add_up_exactly_with_several_threads(operator):
    op = graph()
    table = add_input(op, "table", FLOAT, [2, 300, 5])
    indices = add_input(op, "indices", INT64, [1024, 2])
    inputs = {"table": np.zeros((2, 300, 5), np.float32), "indices": np.ones((1024, 2), np.int64)}
    if operator == "GatherND":
        y = op.GatherND(table, indices)
    else:  # a maximum that all the updates and the row itself share
        y = op.Mul(op.ScatterND(table, indices, op.Mul(op.GatherND(table, indices), 1.0), reduction="max"), 1025.0)
    expected = np.full((2, 300, 5), 0.0 if operator == "GatherND" else 1025.0)
    expected[1, 1] = 1024 if operator == "GatherND" else 1025
    found = backward(op, loss_of(op, y), [table])
    g = op.builder.graph
    g.outputs.append(op.Identity(found[table]))
    proto = ir.serde.serialize_model(ir.Model(g, ir_version=IR_VERSION))
    name = g.outputs[0].name
    for _ in range(20):
        np.testing.assert_allclose(run_runtime(proto, inputs, threads=2)[name], expected, rtol=1e-6)
