"""A further reader of a trained grouped weight gets a weight of its own, and the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.graph.builder import add_input, builder
from onnxft.graph.shapes import dims
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session
from onnxft.step.shared_weights import separate_shared_weights

CASES: list[tuple[str, list[int], dict[str, Any]]] = [
    ("Conv", [6, 1, 3, 2], {"group": 6, "pads": [1, 0, 2, 1]}),
    ("Conv", [6, 1, 3, 2], {"group": 6, "strides": [2, 3], "dilations": [2, 1]}),
    ("Conv", [8, 3, 2, 2], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("Conv", [8, 3, 2, 2], {"group": 2, "auto_pad": "SAME_LOWER"}),
    ("Conv", [8, 3, 3, 1], {"group": 2, "auto_pad": "VALID", "kernel_shape": [3, 1]}),
    ("ConvTranspose", [6, 4, 3, 2], {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
]


@pytest.mark.parametrize(("kind", "shape", "attributes"), CASES)
def test_results_are_the_same_and_no_weight_is_read_twice(
    kind: str, shape: list[int], attributes: dict[str, Any]
) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="shared")
    op = builder(graph)
    x, w = (
        add_input(op, "x", ir.DataType.FLOAT, ["batch", 6, 9, 7]),
        add_input(op, "w", ir.DataType.FLOAT, shape),
    )
    for i in range(3):
        y = getattr(op, kind)(op.Mul(x, float(i + 1)), w, **attributes)
        y.name = f"y{i}"
        graph.outputs.append(y)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 6, 9, 7)).astype(np.float32), "w": rng.random(shape, np.float32)}

    def run() -> list[Any]:
        model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
        return list(open_session(model, Execution("cpu", threads=1)).session.run(None, feeds))

    before, shapes = run(), [dims(y) for y in graph.outputs]
    separate_shared_weights(op)
    readers = [node for node in graph if node.op_type == kind]
    assert len({node.inputs[1] for node in readers}) == len(readers) == 3
    assert shapes == [dims(y) for y in graph.outputs]
    for own, other in zip(run(), before, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readers", [1, 2])
def test_dense_weights_and_single_readers_stay(readers: int) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="dense")
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, ["batch", 2, 9, 7])
    w = add_input(op, "w", ir.DataType.FLOAT, [4, 2 if readers > 1 else 1, 3, 3])
    for _ in range(readers):
        graph.outputs.append(op.Conv(x, w, group=1 if readers > 1 else 2))
    separate_shared_weights(op)
    assert all(node.inputs[1] is w for node in graph)
