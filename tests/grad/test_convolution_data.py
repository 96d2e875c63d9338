"""Every variant of the data gradient gives torch's numbers, and the choice among them follows the shape."""

from __future__ import annotations

import cases_convolution
import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, feeds, run_runtime, torch_gradients

from onnxft.grad.rules import convolution_data, convolution_matrix
from onnxft.grad.rules.windows import Window, windows
from onnxft.graph.builder import add_input, builder
from onnxft.graph.shapes import static_dims

CONVS = [case for case in cases_convolution.CASES if case.op == "Conv"]


def over_of(case):
    """The windows of a case."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="windows"))
    x, w = (add_input(op, name, ir.DataType.FLOAT, case.inputs[i]) for i, name in enumerate("xw"))
    y = op.Conv(x, w, **case.attrs)
    return windows(y.producer(), x, y, static_dims(w, 2))


def data_gradient(variant, case, frozen):
    """dx of a case by the variant, from x1 and dy0."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="variant"))
    fed = feeds(case, np.float32)
    dy = add_input(op, "dy0", ir.DataType.FLOAT, fed["dy0"].shape)
    w = op.initializer(ir.tensor(fed.pop("x1")), name="x1") if frozen else add_input(op, "x1", dy.dtype, case.inputs[1])
    dx = op.Identity(variant(op, dy, w, over_of(case), case.attrs["group"]))
    dx.name = "dx"
    op.builder.graph.outputs.append(dx)
    return run_runtime(ir.serde.serialize_model(ir.Model(op.builder.graph, ir_version=IR_VERSION)), fed)["dx"]


def fits(variant, case):
    if variant is convolution_data.data_by_conv:
        return convolution_data.runs_backwards(over_of(case))
    if variant is convolution_matrix.data_by_matrix:
        return case.inputs[1][1] == 1 and case.attrs["group"] == case.inputs[1][0]
    return True


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("variant", "case"),
    [
        pytest.param(variant, case, id=f"{variant.__name__} {case.name}")
        for variant in convolution_data.VARIANTS
        for case in CONVS
        if fits(variant, case)
    ],
)
def test_variant_agrees_with_torch(variant, case, frozen):
    expected = torch_gradients(case)[0]
    found = data_gradient(variant, case, frozen)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("shape", "size", "kernel", "stride", "group", "frozen", "name"),
    [
        ((64, 32, 3, 3), 28, 3, 1, 1, False, "data_by_conv"),
        ((64, 32, 3, 3), 28, 3, 2, 1, False, "data_by_conv_transpose"),
        ((64, 8, 3, 3), 28, 3, 2, 4, False, "data_by_conv_transpose"),
        ((96, 1, 3, 3), 64, 3, 1, 96, False, "data_by_conv"),
        ((96, 1, 3, 3), 64, 3, 2, 96, False, "data_by_conv_transpose"),
        ((96, 1, 3, 3), 64, 3, 2, 96, True, "data_by_conv_transpose"),
        ((672, 1, 5, 5), 12, 5, 1, 672, False, "data_by_matrix"),
        ((672, 1, 5, 5), 12, 5, 1, 672, True, "data_by_conv"),
        ((672, 1, 5, 5), 11, 5, 2, 672, True, "data_by_matrix"),
        ((64, 1, 3, 3), 6, 3, 1, 32, False, "data_by_conv_transpose"),
        ((64, 1, 3, 3), 6, 3, 1, 32, True, "data_by_conv"),
        ((1, 1, 3, 3), 6, 3, 1, 1, False, "data_by_conv"),
    ],
)
def test_choice_follows_the_shape(shape, size, kernel, stride, group, frozen, name):
    outputs = (size - kernel) // stride + 1
    over = [Window(axis, size, outputs, kernel, stride) for axis in (2, 3)]
    assert convolution_data.choose(shape, over, group, frozen).__name__ == name


def test_a_trained_weight_in_groups_is_not_the_one_of_the_forward_convolution():
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="apart")
    op = builder(graph)
    w = add_input(op, "w", ir.DataType.FLOAT, [6, 2, 3, 2])
    over = [Window(2, 7, 3, kernel=3, stride=2), Window(3, 6, 3, kernel=2, stride=2)]
    own, around = convolution_data.apart(op, w, over, 3)
    assert own is not w
    assert static_dims(own) == (6, 2, 4, 2)
    assert [v.kernel for v in around] == [4, 2]
    assert convolution_data.apart(op, w, over, 1) == (w, over)
    frozen = op.initializer(ir.tensor(np.ones((6, 2, 3, 2), np.float32)), name="frozen")
    assert convolution_data.apart(op, frozen, over, 3) == (frozen, over)
