"""Gelu, in whatever order its factors stand: one operator while it is differentiated, and one for the CPU provider."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder
from onnxft.graph.gelu import gather_gelu, order_gelu, spread_gelu
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import set_dims

ROOT = math.sqrt(2.0)
Form = Callable[[Op, ir.Value], ir.Value]


def with_inner(op: Op, x: ir.Value) -> ir.Value:
    """What lies within is read once more."""
    inner = op.Add(op.Erf(op.Div(x, ROOT)), 1.0)
    return op.Add(op.Mul(op.Mul(x, inner), 0.5), inner)


FORMS: dict[str, tuple[Form, bool]] = {
    # name: how it is written, whether it is recognized
    "x times, half": (lambda op, x: op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, ROOT)), 1.0)), 0.5), True),
    "half x times": (lambda op, x: op.Mul(op.Mul(x, 0.5), op.Add(op.Erf(op.Div(x, ROOT)), 1.0)), True),
    "half of the sum": (lambda op, x: op.Mul(x, op.Mul(op.Add(op.Erf(op.Mul(x, 1 / ROOT)), 1.0), 0.5)), True),
    "divided by two": (lambda op, x: op.Div(op.Mul(op.Add(op.Erf(op.Mul(x, 1 / ROOT)), 1.0), x), 2.0), True),
    "x over two": (lambda op, x: op.Mul(op.Add(op.Erf(op.Div(x, ROOT)), 1.0), op.Div(x, 2.0)), True),
    "another root": (lambda op, x: op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, 1.4)), 1.0)), 0.5), False),
    "another half": (lambda op, x: op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, ROOT)), 1.0)), 0.4), False),
    "another one": (lambda op, x: op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, ROOT)), 0.9)), 0.5), False),
    "another factor": (lambda op, x: op.Mul(op.Mul(op.Neg(x), op.Add(op.Erf(op.Div(x, ROOT)), 1.0)), 0.5), False),
    "squared": (lambda op, x: op.Mul(op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, ROOT)), 1.0)), x), 0.5), False),
    "over the sum": (lambda op, x: op.Div(op.Mul(x, 0.5), op.Add(op.Erf(op.Div(x, ROOT)), 1.1)), False),
    "read within": (with_inner, False),
}


@pytest.mark.parametrize("name", FORMS)
def test_values_and_gradients_stay(name: str) -> None:
    form, known = FORMS[name]
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, [3, 5])
    y = form(op, x)
    set_dims(y, [3, 5])
    gather_gelu(graph)
    gathered = [node for node in graph if node.op_type == "Gelu"]
    assert len(gathered) == known
    y = gathered[0].outputs[0] if known else y
    loss = op.ReduceSum(op.Mul(y, y), keepdims=0)
    dx = op.Identity(backward(op, loss, [x])[x])
    graph.outputs.extend([loss, dx])
    spread_gelu(op)
    for node in gathered:
        graph.remove(node, safe=True)
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    value = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32) * 2
    found, gradient = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": value})
    if known:
        reference = torch.from_numpy(value).requires_grad_()
        expected = (torch.nn.functional.gelu(reference) ** 2).sum()
        expected.backward()
        assert reference.grad is not None
        np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, reference.grad.numpy(), rtol=1e-5, atol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", FORMS)
def test_the_runtime_knows_the_order(name: str, tmp_path: Path) -> None:
    form, known = FORMS[name]
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=name)
    op = builder(graph)
    y = form(op, add_input(op, "x", ir.DataType.FLOAT, [3, 5]))
    y.name = "y"
    set_dims(y, [3, 5])
    graph.outputs.append(y)
    value = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32) * 2

    def run(kept: Path) -> np.ndarray:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(kept)
        whole = ir.Model(graph, ir_version=IR_VERSION)
        RemoveUnusedNodesPass()(whole)
        model = ir.to_proto(whole).SerializeToString()
        (result,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(["y"], {"x": value})
        return np.asarray(result)

    before = run(tmp_path / "before.onnx")
    order_gelu(graph)
    graph.sort()
    after = run(tmp_path / "after.onnx")
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    kept = [node.op_type for node in onnx.load(tmp_path / "after.onnx").graph.node]
    assert ("Gelu" in kept) == known
