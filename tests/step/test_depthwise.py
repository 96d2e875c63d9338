"""Trained depthwise convolutions over few positions become products, and give the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxft.graph.builder import add_input, builder
from onnxft.graph.normalize import IR_VERSION, OPSET
from onnxft.graph.shapes import dims, set_dims
from onnxft.step.depthwise import multiply_depthwise


@pytest.mark.parametrize(
    ("weight", "shape", "outputs", "attributes", "left"),
    [
        ((6, 1, 5, 3), (6, 3), (5, 3), {"pads": [1, 1, 2, 1]}, []),
        ((6, 1, 3, 3), (5, 4), (3, 2), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, []),
        ((6, 1, 3), (6,), (2,), {"dilations": [2]}, []),
        ((6, 1, 3, 3), (6, 5), (4, 3), {}, []),
        ((6, 1, 3, 3), (6, 7), (4, 5), {}, ["Conv"]),  # more than two positions a tap
        ((12, 1, 3, 3), (5, 4), (3, 2), {}, ["Conv"]),  # two filters a channel
        ((6, 3, 3, 3), (5, 4), (3, 2), {}, ["Conv"]),  # several channels a group
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_multiply_depthwise(
    weight: tuple[int, ...],
    shape: tuple[int, ...],
    outputs: tuple[int, ...],
    attributes: dict[str, list[int]],
    left: list[str],
    bias: bool,
) -> None:
    channels = 6
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x = add_input(op, "x", ir.DataType.FLOAT, ["batch", channels, *shape])
    w = add_input(op, "w", ir.DataType.FLOAT, weight)
    given = [x, w, *([add_input(op, "b", ir.DataType.FLOAT, weight[:1])] if bias else [])]
    y = op.Conv(*given, group=channels // weight[1], **attributes)
    set_dims(y, ["batch", weight[0], *outputs])
    graph.outputs.append(y)
    before = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    multiply_depthwise(op, [w])
    assert dims(graph.outputs[0]) == ("batch", weight[0], *outputs)
    if left:
        assert graph.outputs[0] is y
    else:
        assert not y.uses()
        graph.remove(y.producer())
    assert [node.op_type for node in graph if node.op_type == "Conv"] == left
    after = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    rng = np.random.default_rng(2)
    feeds = {v.name: rng.standard_normal([4 if d == "batch" else d for d in dims(v)]).astype(np.float32) for v in given}
    first, second = (
        ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0] for model in (before, after)
    )
    assert second.shape == (4, weight[0], *outputs)
    assert np.abs(first - second).max() <= 1e-6 * np.abs(first).max()
