"""Layer 3: on ONNX Runtime in float32 the gradient equals torch's, ties and bounds included."""

from __future__ import annotations

import cases
import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, build, feeds, forward, forward_in_torch, read, run_runtime, torch_gradients

RELATIVE = 1e-4


def assert_agreement(case, *, symbolic):
    found = run_runtime(build(case, np.float32, symbolic=symbolic).proto, feeds(case, np.float32))
    for i, expected in torch_gradients(case).items():
        actual = found[f"dx{i}"]
        assert actual.shape == expected.shape, f"input {i}"
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=f"input {i}")


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_runtime_and_torch_compute_the_same(case):
    op, _, outputs = forward(case, np.float32)
    graph = op.builder.graph
    graph.outputs.extend(read(case, outputs))
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=IR_VERSION))
    found = run_runtime(model, feeds(case, np.float32))
    for (name, y), expected in zip(found.items(), forward_in_torch(case), strict=True):
        assert y.shape == expected.shape, name
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(y, expected, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=name)


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_runtime_agrees_with_torch(case):
    assert_agreement(case, symbolic=False)


@pytest.mark.parametrize("case", cases.BATCHED, ids=lambda case: case.name)
def test_runtime_agrees_with_torch_under_a_symbolic_batch(case):
    assert_agreement(case, symbolic=True)
