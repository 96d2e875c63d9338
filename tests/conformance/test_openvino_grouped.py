"""A grouped convolution with a trained weight in front of a frozen BatchNorm, on every provider.

OpenVINO 2025.4 moves the constant per-channel product behind such a convolution into its weight, and a
ConvTranspose of the same weight then reads the scaled one: the data gradient comes out scaled, silently.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder
from onnxft.runtime.sessions import open_session

CASES = {
    # name: (channels in, channels out, group, kernel, stride, padding)
    "depthwise stride 2": (6, 6, 6, 5, 2, 2),
    "depthwise stride 1": (6, 6, 6, 3, 1, 1),
    "depthwise 1x1": (6, 6, 6, 1, 1, 0),
    "depthwise 1x1 stride 2": (6, 6, 6, 1, 2, 0),
    "groups stride 2": (6, 8, 2, 3, 2, 1),
    "groups 1x1": (6, 8, 2, 1, 1, 0),
    "groups stride 3": (4, 6, 2, 2, 3, 0),
    "dense stride 2": (5, 8, 1, 3, 2, 1),
    "dense 1x1": (5, 8, 1, 1, 1, 0),
}


def gradients_model(channels: int, out: int, group: int, kernel: int, stride: int, padding: int) -> bytes:
    """d/dx and d/dw of the sum of (conv(x * a, w) * c + b)²."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="grouped")
    op = builder(graph)
    rng = np.random.default_rng(0)
    x = add_input(op, "x", ir.DataType.FLOAT, [3, channels, 9, 8])
    w = add_input(op, "w", ir.DataType.FLOAT, [out, channels // group, kernel, kernel])

    def constant(name: str, size: int) -> ir.Value:
        values = rng.uniform(1.5, 3, (1, size, 1, 1)).astype(np.float32)
        return op.builder.initializer(ir.tensor(values), name=name)

    y = op.Conv(op.Mul(x, constant("a", channels)), w, group=group, strides=[stride] * 2, pads=[padding] * 4)
    y = op.Add(op.Mul(y, constant("c", out)), constant("b", out))
    found = backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x, w])
    for value, name in ((found[x], "dx"), (found[w], "dw")):
        value.name = name
        graph.outputs.append(value)
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_cpu(case: str, provider: str) -> None:
    channels, out, group, kernel, _, _ = CASES[case]
    model, rng = gradients_model(*CASES[case]), np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((3, channels, 9, 8)).astype(np.float32),
        "w": rng.standard_normal((out, channels // group, kernel, kernel)).astype(np.float32),
    }
    expected = open_session(model, "cpu", threads=1).session.run(["dx", "dw"], feeds)
    found = open_session(model, provider, threads=1).session.run(["dx", "dw"], feeds)
    for name, own, other in zip(("dx", "dw"), found, expected, strict=True):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max(), name
