"""Layer 3: on ONNX Runtime in float32 the gradient equals torch's, ties and bounds included."""

from __future__ import annotations

import cases
import numpy as np
import pytest
from checking import build, feeds, run_runtime, torch_gradients

RELATIVE = 1e-4


def assert_agreement(case, *, symbolic):
    found = run_runtime(build(case, np.float32, symbolic=symbolic).proto, feeds(case, np.float32))
    for i, expected in torch_gradients(case).items():
        actual = found[f"dx{i}"]
        assert actual.shape == expected.shape, f"input {i}"
        scale = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=f"input {i}")


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_runtime_agrees_with_torch(case):
    assert_agreement(case, symbolic=False)


@pytest.mark.parametrize("case", cases.BATCHED, ids=lambda case: case.name)
def test_runtime_agrees_with_torch_under_a_symbolic_batch(case):
    assert_agreement(case, symbolic=True)
