"""The graph of the role `average` against torch's lerp, in both precisions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.step.build import _average_graph
from onnxft.step.select import select
from onnxft.step.step_graph import StepGraph

SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "b.scale": ()}


def average_graph(dtype: str, frozen: tuple[str, ...] = ()) -> StepGraph:
    """It needs nothing of a model but the names of its parameters."""
    empty = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": OPSET}), ir_version=IR_VERSION)
    tensors = tuple(Tensor(name, shape, dtype, "parameter") for name, shape in SHAPES.items())
    forward = Forward("m", empty, empty, tensors, (), ())
    return _average_graph(forward, select(forward, ("*",), frozen))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("decay", [0.0, 0.25, 0.9, 0.9999])
def test_six_updates_equal_torch(decay: float, dtype: str, tolerance: float) -> None:
    graph, rng = average_graph(dtype), np.random.default_rng(3)
    run = ReferenceEvaluator(ir.to_proto(graph.model)).run
    averages = {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}
    expected = {name: torch.tensor(value) for name, value in averages.items()}
    for _ in range(6):
        parameters = {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}
        feeds = {f"{name}.average": value for name, value in averages.items()}
        feeds |= parameters | {"average_weight": np.array(1 - decay, dtype)}
        found = dict(zip([p.parameter for p in graph.outputs], run(None, feeds), strict=True))
        averages = {name: np.asarray(found[name]) for name in SHAPES}
        for name, p in parameters.items():
            expected[name].lerp_(torch.tensor(p), 1 - decay)
            assert averages[name].dtype == np.dtype(dtype)
            np.testing.assert_allclose(averages[name], expected[name].numpy(), rtol=tolerance, atol=tolerance)


def test_frozen_parameters_have_no_average() -> None:
    graph = average_graph("float32", frozen=("a.*",))
    assert [(p.name, p.role) for p in graph.inputs] == [
        ("b.scale", "parameter"), ("average_weight", "average_weight"), ("b.scale.average", "average"),
    ]  # fmt: skip
    assert [(p.name, p.role, p.parameter) for p in graph.outputs] == [("b.scale.average.new", "average", "b.scale")]
