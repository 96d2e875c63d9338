"""Recurrent layers with padding, as no exporter writes them: both forms of the walk on every provider.

Without peepholes: the LSTM of OpenVINO 2025.4 leaves them out, forwards already and silently.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.grad.backward import backward
from onnxft.grad.rules.recurrent_walk import UNROLLED
from onnxft.graph.builder import add_input, builder
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session

BATCH, INPUTS, HIDDEN = 3, 4, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def gradients_model(op_type: str, time: int) -> tuple[bytes, dict[str, np.ndarray], list[str]]:
    """The gradients of the sum of y² and of the squares of the last states, the feeds, and the outputs."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name=op_type)
    op, rng, g = builder(graph), np.random.default_rng(0), GATES[op_type] * HIDDEN
    shapes: dict[str, list[int]] = {
        "x": [time, BATCH, INPUTS], "w": [2, g, INPUTS], "r": [2, g, HIDDEN], "b": [2, 2 * g], "h": [2, BATCH, HIDDEN],
    }  # fmt: skip
    if op_type == "LSTM":
        shapes["c"] = [2, BATCH, HIDDEN]
    feeds: dict[str, np.ndarray] = {k: rng.uniform(-0.9, 0.9, s).astype(np.float32) for k, s in shapes.items()}
    xs = {name: add_input(op, name, ir.DataType.FLOAT, shape) for name, shape in shapes.items()}
    lens = add_input(op, "lens", ir.DataType.INT32, [BATCH])
    x, w, r, b, *states = xs.values()
    ys = getattr(op, op_type)(
        x, w, r, b, lens, *states, hidden_size=HIDDEN, direction="bidirectional", _outputs=3 if op_type == "LSTM" else 2
    )
    loss = op.Sum(*[op.ReduceSum(op.Mul(y, y), keepdims=0) for y in ys])
    found = backward(op, loss, list(xs.values()))
    for name, value in (*((f"y{i}", y) for i, y in enumerate(ys)), *((f"d{n}", found[v]) for n, v in xs.items())):
        value.name = name
        graph.outputs.append(value)
    model = ir.Model(graph, ir_version=10)
    names = [str(v.name) for v in graph.outputs]
    return bytes(ir.to_proto(model).SerializeToString()), feeds | {"lens": np.array([2, time, 4], np.int32)}, names


@pytest.mark.parametrize("time", [5, UNROLLED + 3], ids=["written out", "scan"])
@pytest.mark.parametrize("op_type", GATES)
def test_gradients_equal_those_of_the_cpu(op_type: str, time: int, provider: str) -> None:
    model, feeds, names = gradients_model(op_type, time)
    expected = open_session(model, Execution("cpu", threads=1)).session.run(names, feeds)
    found = open_session(model, Execution(provider, threads=2)).session.run(names, feeds)
    for name, own, other in zip(names, found, expected, strict=True):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max(), name
