"""The converted graph computes what the graph before it computes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from lowering_attention import ATTENTION, FUSED
from lowering_cases import Lowered, close, converted, fed, model_of, run, unknown_dims
from lowering_tables import ACTIVATIONS, ARITHMETIC, IMAGES, NORMALIZATION, POSITIONS, QUANTIZATION, UPWARD

CASES = [*UPWARD, *ARITHMETIC, *ACTIVATIONS, *NORMALIZATION, *POSITIONS, *IMAGES, *QUANTIZATION, *ATTENTION, *FUSED]

BOTH = ["runtime", "reference"]


@pytest.mark.parametrize(
    ("case", "symbolic"),
    [
        pytest.param(case, symbolic, id=f"{case.name} {'batch' if symbolic else 'static'}")
        for case in CASES
        for symbolic in ([False, True] if case.batch else [False])
    ],
)
def test_converted_equals_original(case: Lowered, symbolic: bool) -> None:
    original = model_of(case, symbolic=symbolic)
    result = converted(original)
    for by in [case.by] if case.by else BOTH:
        expected = run(original, fed(case), by)
        for runner in [case.after] if case.after else BOTH:
            actual = run(result, fed(case), runner)
            assert len(actual) == len(expected)
            for a, e in zip(actual, expected, strict=True):
                close(np.asarray(a), np.asarray(e))
    assert any(node.op_type == case.op and node.domain == case.domain for node in result.graph.node) == case.stays
    assert {node.domain for node in result.graph.node} == {""}
    assert not any(node.op_type == "Size" for node in result.graph.node)
    if not case.unknown:
        assert unknown_dims(result) == []


def positions_symbolic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Attention with names for the batch, the queries, the keys and what is cached."""
    names = {3: "queries", 5: "keys", 2: "past"}
    for value in model.graph.input:
        index, dims = int(value.name[1:]), value.type.tensor_type.shape.dim
        axes = [2 if len(dims) == 4 else 1] if index != 3 else range(max(len(dims) - 2, 0), len(dims))
        for axis in axes if index != 6 else []:
            if dims[axis].dim_value in names:
                dims[axis].dim_param = names[dims[axis].dim_value]
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.Clear()
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_attention_with_symbolic_positions(case: Lowered) -> None:
    original = positions_symbolic(model_of(case, symbolic=True))
    result = converted(original)
    expected = run(model_of(case), fed(case), case.by or "reference")
    for actual, wanted in zip(run(result, fed(case), "runtime"), expected, strict=True):
        close(actual, wanted)
    if len(case.inputs) <= 4 and "short" not in case.note:
        assert unknown_dims(result) == []


ROTATED = [c for c in POSITIONS if c.op == "RotaryEmbedding"]


@pytest.mark.parametrize("case", ROTATED, ids=lambda case: case.name)
def test_rotation_with_symbolic_positions(case: Lowered) -> None:
    original = model_of(case, symbolic=True)
    for value in original.graph.input:
        for dim in value.type.tensor_type.shape.dim[1:-1]:
            if dim.dim_value == 3:
                dim.dim_param = "positions"
        if len(value.type.tensor_type.shape.dim) == 2 and value.name == "x3":
            value.type.tensor_type.shape.dim[1].dim_param = "positions"
    for value in original.graph.output:
        value.type.Clear()
    original = onnx.shape_inference.infer_shapes(original, check_type=True, strict_mode=True)
    result = converted(original)
    (expected,), (actual,) = run(original, fed(case), "runtime"), run(result, fed(case), "runtime")
    close(actual, expected)
    assert unknown_dims(result) == []
