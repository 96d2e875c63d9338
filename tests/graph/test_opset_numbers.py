"""The converted graph computes what the graph before it computes."""

from __future__ import annotations

import numpy as np
import pytest
from lowering_attention import ATTENTION, FUSED
from lowering_cases import Lowered, close, converted, fed, model_of, run, unknown_dims
from lowering_tables import ACTIVATIONS, ARITHMETIC, IMAGES, NORMALIZATION, POSITIONS, QUANTIZATION, UPWARD

CASES = [*UPWARD, *ARITHMETIC, *ACTIVATIONS, *NORMALIZATION, *POSITIONS, *IMAGES, *QUANTIZATION, *ATTENTION, *FUSED]

BOTH = ["runtime", "reference"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "batch"])
def test_converted_equals_original(case: Lowered, symbolic: bool) -> None:
    if symbolic and not case.batch:
        pytest.skip("no axis of this case is a batch")
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
