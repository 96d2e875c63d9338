"""Exported `gradients` graphs on the reference evaluator in float64: a rule that is slightly wrong cannot hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from onnxft.manifest_file import read_manifest

ROWS = 3
WEIGHTS = np.array([1.0, 0.25, 2.0], np.float32)


@pytest.mark.parametrize(
    ("model", "loss"), [("mlp", "cross_entropy"), ("mlp_regression", "mse"), ("convnet", "cross_entropy")]
)
def test_gradients_equal_torch_in_float64(model: str, loss: str, exported: Callable[..., Path]) -> None:
    artifact = exported(model, dtype="float64", loss=loss)
    graph = read_manifest(artifact).graphs["gradients"]
    module, (example,) = getattr(models, model)()
    module = module.double().eval()
    rng = np.random.default_rng(12)
    x = rng.standard_normal((ROWS, *example.shape[1:]))
    (label,) = graph.named("label")
    shape = [ROWS, *(int(d) for d in label.shape[1:])]
    labels = rng.integers(0, 5, shape) if loss == "cross_entropy" else rng.standard_normal(shape)

    (data,) = graph.named("input")
    state = {name: p.detach().numpy() for name, p in module.named_parameters()}
    offset = {name: rng.standard_normal(p.shape) for name, p in state.items()}  # accumulators that are not empty
    feeds = {data.name: x, "labels": labels, "sample_weights": WEIGHTS}
    feeds |= {p.name: state[p.parameter] for p in graph.named("parameter")}
    feeds |= {p.name: offset[p.parameter] for p in graph.named("accumulator")}
    assert {p.dtype for p in graph.inputs if p.role in ("input", "parameter", "accumulator")} == {"float64"}
    found = ReferenceEvaluator(onnx.load(artifact / graph.file)).run(None, feeds)
    values = dict(zip(graph.outputs, found, strict=True))

    output, target = module(torch.tensor(x)), torch.tensor(labels)
    function = torch.nn.functional.cross_entropy if loss == "cross_entropy" else torch.nn.functional.mse_loss
    each = function(output, target, reduction="none")
    total = (torch.tensor(WEIGHTS, dtype=torch.float64).reshape(-1, *[1] * (each.ndim - 1)) * each).sum()
    total.backward()
    np.testing.assert_allclose(next(v for p, v in values.items() if p.role == "loss_sum"), total.item(), rtol=1e-9)
    compared = 0
    for port, value in values.items():
        if port.role == "gradient":
            expected = module.get_parameter(port.parameter).grad.numpy()
            error = np.abs(value - offset[port.parameter] - expected).max() / np.abs(expected).max()
            assert error <= 1e-9, f"{port.parameter}: {error:.1e}"
            compared += 1
    assert compared == len(state)
