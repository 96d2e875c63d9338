"""Layer 1: a rule returns one gradient for each input, with its shape and element type, in operators of opset 18."""

from __future__ import annotations

import cases
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checking import build

from onnxft.graph.shapes import dims


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_gradients_have_the_shape_and_type_of_their_inputs(case, dtype):
    if case.float32 and dtype is np.float64:
        pytest.skip(f"ONNX has {case.op} in float32 alone")
    built = build(case, dtype)
    onnx.checker.check_model(built.proto, full_check=True)
    for i, dx in built.dxs.items():
        assert dims(dx) == dims(built.xs[i]), f"input {i}"
        assert dx.dtype == built.xs[i].dtype, f"input {i}"


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_only_operators_that_every_provider_has_are_emitted(case):
    built = build(case, np.float32)
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(built.model.graph) if node is not built.node]
    used = {node.op_type for node in nodes}
    assert not used & {"Size", "If", "Loop", "ScatterND"}
    assert "Scan" not in used or case.op in ("LSTM", "GRU", "RNN")
    assert {node.domain for node in nodes} == {""}
    for op_type in used:
        assert onnx.defs.has(op_type)
        assert onnx.defs.get_schema(op_type, 18).since_version <= 18
