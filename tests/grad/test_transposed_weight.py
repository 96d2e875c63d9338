"""A weight that is read transposed: its gradient is one product, against finite differences and torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checking import IR_VERSION, run_runtime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder

DOUBLE = ir.DataType.DOUBLE
ROWS, INNER, COLUMNS = 3, 5, 4

PRODUCTS = {
    "W^T on the right": ({}, (ROWS, INNER), (COLUMNS, INNER), lambda x, w: x @ w.T),
    "W^T on the left": ({"left": 1}, (INNER, ROWS), (INNER, COLUMNS), lambda x, w: w.T @ x),
    "transA": ({"transA": 1}, (INNER, ROWS), (COLUMNS, INNER), lambda x, w: x.T @ w.T),
    "transB": ({"transB": 1}, (ROWS, INNER), (INNER, COLUMNS), lambda x, w: x @ w),
    "transA and transB": ({"transA": 1, "transB": 1}, (INNER, ROWS), (INNER, COLUMNS), lambda x, w: x.T @ w),
    "left, both": ({"left": 1, "transA": 1, "transB": 1}, (ROWS, INNER), (COLUMNS, INNER), lambda x, w: w @ x.T),
    "alpha": ({"alpha": -2.5}, (ROWS, INNER), (COLUMNS, INNER), lambda x, w: -2.5 * (x @ w.T)),
}


def built(case: str) -> tuple[ir.Model, dict[str, np.ndarray[Any, Any]]]:
    """loss = sum(dy * product), dx and dw; and inputs of unequal sizes."""
    attributes, of_x, of_w, compute = PRODUCTS[case]
    options = dict(attributes)
    left = options.pop("left", 0)
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=of_x), rng.normal(size=of_w)
    inputs = {"x": x, "w": w, "dy": rng.normal(size=compute(x, w).shape)}
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="test"))
    values = {name: add_input(op, name, DOUBLE, list(value.shape)) for name, value in inputs.items()}
    factors = values["x"], op.Transpose(values["w"], perm=[1, 0])
    y = op.Gemm(*(reversed(factors) if left else factors), **options)
    loss = op.ReduceSum(op.Mul(y, values["dy"]), keepdims=0)
    found = backward(op, loss, [values["x"], values["w"]])
    return finished(op, {"loss": loss, "dx": found[values["x"]], "dw": found[values["w"]]}), inputs


def finished(op: Op, outputs: dict[str, ir.Value]) -> ir.Model:
    for name, value in outputs.items():
        result = op.Identity(value)
        result.name = name
        op.builder.graph.outputs.append(result)
    model = ir.Model(op.builder.graph, ir_version=IR_VERSION)
    RemoveUnusedNodesPass()(model)
    return model


@pytest.mark.parametrize("case", PRODUCTS)
def test_gradients_of_both_factors(case: str) -> None:
    model, inputs = built(case)
    proto = ir.serde.serialize_model(model)
    found = run_runtime(proto, inputs)

    def loss(name: str, change: np.ndarray[Any, Any]) -> float:
        return float(run_runtime(proto, {**inputs, name: inputs[name] + change})["loss"])

    tensors = {name: torch.tensor(value, requires_grad=name != "dy") for name, value in inputs.items()}
    (PRODUCTS[case][3](tensors["x"], tensors["w"]) * tensors["dy"]).sum().backward()
    for name in ("x", "w"):
        direction = np.random.default_rng(4).normal(size=inputs[name].shape)
        slope = (loss(name, direction) - loss(name, -direction)) / 2  # exact but for rounding: the loss is linear in it
        assert slope == pytest.approx(float((found[f"d{name}"] * direction).sum()), rel=1e-10)
        np.testing.assert_allclose(found[f"d{name}"], tensors[name].grad.numpy(), rtol=1e-12, atol=1e-14)
    transposes = [n for n in model.graph if n.op_type == "Transpose"]
    assert [n.inputs[0].name for n in transposes if n.inputs[0] is not None] == ["w"]


def square(*, frozen: bool, leaf: bool) -> list[str]:
    """Operators of which the gradient of a square weight is made: product with x, which may be a constant."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="test"))
    w, x = add_input(op, "w", DOUBLE, [3, 3]), add_input(op, "x", DOUBLE, [3, 3])
    factor = op.Constant(value=ir.tensor(np.eye(3))) if frozen else x
    factor.shape, factor.dtype = ir.Shape([3, 3]), DOUBLE
    read = w if leaf else op.Tanh(w)
    loss = op.ReduceSum(op.Mul(op.Gemm(factor, op.Transpose(read, perm=[1, 0])), x), keepdims=0)
    model = finished(op, {"dw": backward(op, loss, [w])[w]})
    return [n.op_type for n in model.graph]


@pytest.mark.parametrize(
    ("frozen", "leaf", "transposes"),
    [(False, True, 0), (True, True, 1), (False, False, 1)],
    ids=["a weight", "in a product with a constant, which OpenVINO would take for its transpose", "what is no weight"],
)
def test_where_the_gradient_is_transposed_apart(frozen: bool, leaf: bool, transposes: int) -> None:
    assert square(frozen=frozen, leaf=leaf).count("Transpose") == transposes
