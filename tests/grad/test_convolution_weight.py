"""Every variant of the weight gradient gives torch's numbers, and the choice among them follows the shape."""

from __future__ import annotations

import cases_convolution
import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, feeds, run_runtime, torch_gradients

from onnxft.grad.rules import convolution_weight
from onnxft.grad.rules.windows import Window, windows
from onnxft.graph.builder import add_input, builder
from onnxft.graph.shapes import static_dims

CONVS = [case for case in cases_convolution.CASES if case.op == "Conv"]


def weight_gradient(variant, case):
    """dw of a case by the variant, from x<i> and dy0."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="variant"))
    fed = feeds(case, np.float32)
    x, w = (add_input(op, name, ir.DataType.FLOAT, fed[name].shape) for name in ("x0", "x1"))
    y = op.Conv(x, w, **case.attrs)
    dy = add_input(op, "dy0", ir.DataType.FLOAT, fed["dy0"].shape)
    over = windows(y.producer(), x, y, static_dims(w, 2))
    dw = op.Identity(variant(op, x, dy, w, over, case.attrs["group"]))
    dw.name = "dw"
    op.builder.graph.outputs.append(dw)
    return run_runtime(ir.serde.serialize_model(ir.Model(op.builder.graph, ir_version=IR_VERSION)), fed)["dw"]


def fits(variant, case):
    _, w, *_ = case.inputs
    depthwise = "depthwise", "depthwise_by_rows", "weight_by_matrix"
    if variant.__name__ in depthwise:
        return case.attrs["group"] == w[0] and w[1] == 1
    if variant is convolution_weight.pointwise_at_once:
        return case.note == "pointwise"
    if variant is convolution_weight.taps_at_once:
        return case.attrs["group"] == 1
    return True


@pytest.mark.parametrize(
    ("variant", "case"),
    [
        pytest.param(variant, case, id=f"{variant.__name__} {case.name}")
        for variant in convolution_weight.VARIANTS
        for case in CONVS
        if fits(variant, case)
    ],
)
def test_variant_agrees_with_torch(variant, case):
    expected = torch_gradients(case)[1]
    np.testing.assert_allclose(weight_gradient(variant, case), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "size", "kernel", "stride", "group", "name"),
    [
        ((64, 64, 3, 3), 28, 3, 1, 1, "product_per_tap"),
        ((256, 192, 3, 3), 9, 3, 1, 1, "taps_at_once"),
        ((256, 192, 1, 1), 13, 1, 2, 1, "taps_at_once"),
        ((256, 192, 3, 3), 9, 3, 1, 2, "product_per_tap"),
        ((32, 3, 1, 1), 128, 1, 1, 1, "product_per_tap"),
        ((32, 3, 3, 3), 128, 3, 2, 1, "product_of_taps"),
        ((1152, 192, 1, 1), 8, 1, 1, 1, "pointwise_at_once"),
        ((256, 64, 1, 1), 56, 1, 1, 1, "product_per_tap"),
        ((256, 64, 1, 1), 56, 1, 2, 1, "product_per_tap"),
        ((672, 1, 5, 5), 12, 5, 1, 672, "weight_by_matrix"),
        ((672, 1, 5, 5), 13, 5, 1, 672, "depthwise_by_rows"),
        ((32, 1, 3, 3), 192, 3, 2, 32, "depthwise_by_rows"),
        ((32, 1, 3, 3), 193, 3, 2, 32, "depthwise"),
        ((64, 1, 3, 3), 8, 3, 1, 32, "product_of_taps"),
    ],
)
def test_choice_follows_the_shape(shape, size, kernel, stride, group, name):
    outputs = (size - kernel) // stride + 1
    over = [Window(axis, size, outputs, kernel, stride) for axis in (2, 3)]
    assert convolution_weight.choose(shape, over, group).__name__ == name
