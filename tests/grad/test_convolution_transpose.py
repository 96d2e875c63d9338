"""Where runtimes, or a runtime and shape inference, take a ConvTranspose in different ways, its rule refuses it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnxft.errors import GradientError
from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder


def differentiate(kernel, length, **attrs):
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="transposed"))
    x = add_input(op, "x", ir.DataType.FLOAT, [2, 3, 5])
    w = add_input(op, "w", ir.DataType.FLOAT, [3, 4, kernel])
    y = op.ConvTranspose(x, w, strides=[2], **attrs)
    y.shape = ir.Shape([2, 4, length])
    return backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x, w])


@pytest.mark.parametrize(
    ("kernel", "length", "attrs"),
    [
        (3, 10, {"output_shape": [10]}),
        (4, 10, {"output_shape": [10]}),
        (4, 9, {"output_shape": [9], "auto_pad": "SAME_UPPER"}),
        (4, 9, {"output_shape": [9], "auto_pad": "SAME_LOWER"}),
        (4, 10, {"output_shape": [10], "auto_pad": "VALID"}),
        (2, 10, {"output_shape": [10], "pads": [1, 0]}),
        (3, 11, {"output_padding": [1], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_pads_that_are_not_the_same_everywhere_are_refused(kernel, length, attrs):
    with pytest.raises(GradientError, match=r"runtimes differ in the pads of ConvTranspose.*pads and output_padding"):
        differentiate(kernel, length, **attrs)


@pytest.mark.parametrize(
    ("kernel", "length", "attrs"),
    [
        (2, 10, {"output_shape": [10]}),
        (3, 12, {"output_shape": [12]}),
        (4, 10, {"output_shape": [10], "auto_pad": "SAME_UPPER"}),
        (3, 10, {"output_shape": [10], "output_padding": [1], "auto_pad": "SAME_LOWER"}),
        (3, 10, {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_pads_that_are_the_same_everywhere_are_taken(kernel, length, attrs):
    assert len(differentiate(kernel, length, **attrs)) == 2


def test_output_padding_as_large_as_the_stride_is_refused():
    with pytest.raises(GradientError, match="output_padding as large as its stride"):
        differentiate(3, 13, output_padding=[2])
