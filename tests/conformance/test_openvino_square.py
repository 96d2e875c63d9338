"""A frozen square weight that is read on the way forth and, transposed, on the way back, on every provider.

OpenVINO 2025.4 takes the two for one constant: the gradient that passes through such a layer was that of W, not of its
transpose, silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session

ROWS, IN = 5, 16


def product(op: Op, kind: str, x: ir.Value, w: ir.Value, other: ir.Value) -> ir.Value:
    """x (rows, in) by w, as exporters write it."""
    match kind:
        case "MatMul":
            return op.MatMul(x, w)
        case "MatMul of a Transpose":
            return op.MatMul(x, op.Transpose(w, perm=[1, 0]))
        case "Gemm":
            return op.Gemm(x, w)
        case "Gemm transB":
            return op.Gemm(x, w, transB=1)
        case "Gemm transA":
            return op.Gemm(op.Transpose(x, perm=[1, 0]), w, transA=1)
        case "of a product":
            return op.MatMul(x, op.Mul(w, other))
    raise AssertionError(kind)


def gradients_model(
    x_shape: Sequence[int], w_shape: Sequence[int], layer: Callable[[Op, ir.Value, ir.Value, ir.Value], ir.Value]
) -> bytes:
    """y and d/dx of the sum of y² with y = layer(x, w, another constant of that shape)."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="square")
    op, rng = builder(graph), np.random.default_rng(0)
    x = add_input(op, "x", ir.DataType.FLOAT, x_shape)
    w, other = (
        op.builder.initializer(ir.tensor(rng.standard_normal(w_shape).astype(np.float32)), name=n) for n in ("w", "o")
    )
    y = layer(op, x, w, other)
    found = backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x])
    for value, name in ((y, "y"), (found[x], "dx")):
        value.name = name
        graph.outputs.append(value)
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


@pytest.mark.parametrize("out", [IN, IN - 5], ids=["square", "oblong"])
@pytest.mark.parametrize(
    "kind", ["MatMul", "MatMul of a Transpose", "Gemm", "Gemm transB", "Gemm transA", "of a product"]
)
def test_gradients_through_a_product_equal_those_of_the_cpu(kind: str, out: int, provider: str) -> None:
    shape = (out, IN) if kind in ("MatMul of a Transpose", "Gemm transB") else (IN, out)
    check((ROWS, IN), gradients_model((ROWS, IN), shape, lambda op, x, w, o: product(op, kind, x, w, o)), provider)


@pytest.mark.parametrize("out", [6, 4], ids=["square", "oblong"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (2, 2)])
def test_gradients_through_a_transposed_convolution_equal_those_of_the_cpu(
    kernel: int, stride: int, out: int, provider: str
) -> None:
    def layer(op: Op, x: ir.Value, w: ir.Value, other: ir.Value) -> ir.Value:
        return op.Tanh(op.ConvTranspose(x, w, strides=[stride] * 2, pads=[kernel // 2] * 4))

    shape = (3, 6, 9, 8)
    check(shape, gradients_model(shape, (6, out, kernel, kernel), layer), provider)


def check(shape: Sequence[int], model: bytes, provider: str) -> None:
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    expected = open_session(model, Execution("cpu", threads=1)).session.run(["y", "dx"], feeds)
    found = open_session(model, Execution(provider, threads=1)).session.run(["y", "dx"], feeds)
    for name, own, other in zip(("y", "dx"), found, expected, strict=True):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max(), name
