"""Scalars beside tensors with an axis of 1 take their rank, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import dims
from onnxft.step.scalars import raise_scalars


@pytest.mark.parametrize(
    ("shape", "other", "raised"),
    [
        ((5, 3, 1, 1), (), (1, 1, 1, 1)),
        ((5, 3, 1), (1,), (1, 1, 1)),
        ((7, 1), (), (1, 1)),
        (("batch", 1), (), (1, 1)),
        ((5, 3, 1, 1), (1, 1, 1, 1), None),
        ((5, 3, 1, 1), (3, 1, 1), None),
        ((5, 3), (), None),
        ((5, 1, 3), (), (1, 1, 1)),
        ((5, 1, 3), (5, 1, 1), None),
        ((1,), (), (1,)),
        ((), (), None),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_raise_scalars(
    shape: tuple[int | str, ...], other: tuple[int, ...], raised: tuple[int, ...] | None, swapped: bool
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x, s = add_input(op, "x", ir.DataType.FLOAT, shape), add_input(op, "s", ir.DataType.FLOAT, other)
    first = op.Sub(s, x) if swapped else op.Sub(x, s)
    graph.outputs.extend([first, op.Mul(x, s)])
    raise_scalars(op)
    model = ir.Model(graph, ir_version=IR_VERSION)
    graph.sort()
    reshapes = [node for node in graph if node.op_type == "Reshape"]
    assert len(reshapes) == (raised is not None)  # one for both of its readers
    given = reshapes[0].outputs[0] if reshapes else s
    assert dims(given) == (other if raised is None else raised)
    assert given in first.producer().inputs
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal([4 if d == "batch" else d for d in shape]).astype(np.float32),
        "s": rng.standard_normal(other).astype(np.float32),
    }
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, feeds)
    difference = feeds["x"] - feeds["s"]
    assert np.array_equal(found[0], -difference if swapped else difference)
    assert np.array_equal(found[1], feeds["x"] * feeds["s"])
    assert [f.shape for f in found] == [difference.shape] * 2
