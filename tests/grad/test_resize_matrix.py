"""The matrix that stands for a Resize along one axis gives what ONNX Runtime's own Resize gives."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from checking import IR_VERSION, run_runtime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxft.errors import GradientError
from onnxft.grad.backward import backward
from onnxft.grad.rules.resize import matrix, repeats, resized_axes
from onnxft.graph.builder import add_input, builder
from onnxft.graph.shapes import static_dims

FLOAT = ir.DataType.FLOAT
LENGTHS = (1, 2, 5, 10, 13, 31, 49, 64)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip
MODES = {
    **{f"nearest {rounding}": {"mode": "nearest", "nearest_mode": rounding} for rounding in ROUNDINGS},
    "linear": {"mode": "linear"},
    "linear antialias": {"mode": "linear", "antialias": 1},
    "linear antialias inside": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "cubic": {"mode": "cubic"},
    "cubic inside": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    "cubic antialias": {"mode": "cubic", "antialias": 1},
}


class Resizes:
    """A graph of Resize nodes, each with its matrices beside it."""

    def __init__(self):
        self.op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="resizes"))
        self.found = []

    def add(self, shape, roi=None, scales=None, sizes=None, **attrs):
        x = self.op.initializer(ir.tensor(values(shape)), name=f"x{len(self.found)}")
        y = self.op.Resize(x, roi, scales, sizes, **attrs)
        over = resized_axes(y.producer())
        self.found.append((y.producer(), x, over))
        self.op.builder.graph.outputs.append(y)
        self.op.builder.graph.outputs.extend(matrix(self.op, y.producer(), v, x) for v in over)

    def run(self):
        """(node, axes, x, y, matrices) for each Resize, computed without folding."""
        proto = ir.serde.serialize_model(ir.Model(self.op.builder.graph, ir_version=IR_VERSION))
        results = iter(run_runtime(proto, {}).values())
        for node, x, over in self.found:
            y = next(results)
            yield node, over, values(static_dims(x)), y, [next(results) for _ in over]


def values(shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def by_matrices(x, over, matrices):
    for v, m in zip(over, matrices, strict=True):
        x = np.moveaxis(np.moveaxis(x, v.axis, -1) @ m.astype(np.float64), -1, v.axis)
    return x


def assert_agreement(resizes):
    # 1e-5: float32 sums of up to 16 products of values of size 1; another position read would show as 1.
    for node, over, x, y, matrices in resizes.run():
        np.testing.assert_allclose(by_matrices(x, over, matrices), y, rtol=0, atol=1e-5, err_msg=f"{node} {over}")
        for v, m in zip(over, matrices, strict=True):
            if repeats(node, v):
                np.testing.assert_array_equal(m, np.repeat(np.eye(v.size), v.outputs // v.size, axis=1))


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES)
def test_matrix_agrees_with_the_runtime(mode, coordinates):
    resizes = Resizes()
    attrs = MODES[mode] | {"coordinate_transformation_mode": coordinates}
    crop = coordinates == "tf_crop_and_resize"
    lengths = LENGTHS if mode.startswith("nearest") else LENGTHS[::3]  # nearest alone is in danger of rounding
    for size, length in product(lengths, lengths):
        scale = float(np.float32(length / size))
        if (size + length) % 2 or int(scale * size) != int(np.float32(scale) * np.float32(size)):
            shape, roi = (1, 1, 4, size), [0.0, 0.0, 0.1, 0.15, 1.0, 1.0, 0.7, 0.9] if crop else None
            resizes.add(shape, roi, sizes=[1, 1, 3, length], **attrs)
        else:
            shape, roi = (1, 1, size, 6), [0.0, 0.0, -0.1, 0.3, 1.0, 1.0, 0.8, 1.2] if crop else None
            resizes.add(shape, roi, [1.0, 1.0, scale, 1.5], **attrs)
    assert_agreement(resizes)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", MODES)
def test_matrix_agrees_under_a_policy(mode, policy):
    resizes = Resizes()
    for sizes in ([8, 8], [3, 11], [12, 4], [5, 9], [1, 7]):
        attrs = MODES[mode] | {"axes": [2, 3], "keep_aspect_ratio_policy": policy}
        resizes.add((2, 1, 5, 7), sizes=sizes, **attrs)
    assert_agreement(resizes)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_matrix_agrees_where_sizes_are_kept(mode):
    resizes = Resizes()
    region, cropped = [0.0, 0.0, 0.2, 0.0, 1.0, 1.0, 0.8, 1.0], {"coordinate_transformation_mode": "tf_crop_and_resize"}
    for scales in ([1.0, 1.0, 1.2, 1.0], [1.0, 1.0, 1.2, 2.0], [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]):
        if scales != [1.0, 1.0, 1.2, 2.0]:
            resizes.add((2, 3, 4, 5), scales=scales, mode=mode)
        resizes.add((2, 3, 4, 5), region, scales, mode=mode, **cropped)
    for sizes in ([2, 3, 4, 5], [2, 3, 4, 7]):
        resizes.add((2, 3, 4, 5), region, sizes=sizes, mode=mode, **cropped)
    assert_agreement(resizes)


def test_matrix_agrees_over_other_ranks():
    resizes = Resizes()
    for mode in ("nearest", "linear"):
        resizes.add((2, 3, 4, 5, 6), scales=[1.0, 1.0, 1.7, 0.6, 2.5], mode=mode)
        resizes.add((4, 5, 6), scales=[1.7, 0.6, 2.5], mode=mode)
        resizes.add((5, 6), scales=[0.6, 2.5], mode=mode)
    resizes.add((2, 3, 2, 3, 2), scales=[2.0, 0.7, 1.5, 3.0, 2.6], mode="nearest")
    resizes.add((7,), scales=[2.3], mode="nearest")
    assert_agreement(resizes)


def gradient_model(shape, y_shape, **resize):
    """d/dx of the sum of y² with y = Resize(x)."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="gradient"))
    x = add_input(op, "x", FLOAT, shape)
    y = op.Resize(x, None, resize.pop("scales", None), resize.pop("sizes", None), **resize)
    y.shape = ir.Shape(y_shape)  # as exporters record it
    dx = backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x])[x]
    dx.name = "dx"
    op.builder.graph.outputs.append(dx)
    model = ir.Model(op.builder.graph, ir_version=IR_VERSION)
    RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model)


def test_matrices_are_folded_when_the_graph_is_loaded(tmp_path):
    proto = gradient_model(["batch", 3, 6, 5], ["batch", 3, 9, 12], scales=[1.0, 1.0, 1.5, 2.5], mode="linear")
    assert sum(node.op_type == "Resize" for node in proto.graph.node) == 3
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert sum(node.op_type == "Resize" for node in optimized.graph.node) == 1


def test_integer_nearest_has_no_matrix():
    proto = gradient_model(["batch", 3, 6, 5], ["batch", 3, 12, 15], scales=[1.0, 1.0, 2.0, 3.0], mode="nearest")
    assert not any(node.op_type == "MatMul" for node in proto.graph.node)
    assert sum(node.op_type == "ReduceSum" and len(node.input) == 2 for node in proto.graph.node) == 2


def test_axes_that_are_not_resized_may_be_symbolic():
    proto = gradient_model(
        [2, "channels", 6, "width"], [2, "channels", 9, "width"], scales=[1.0, 1.0, 1.5, 1.0], mode="linear"
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 7)).astype(np.float32)
    fixed = gradient_model([2, 3, 6, 7], [2, 3, 9, 7], scales=[1.0, 1.0, 1.5, 1.0], mode="linear")
    np.testing.assert_array_equal(run_runtime(proto, {"x": x})["dx"], run_runtime(fixed, {"x": x})["dx"])


@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.5, 1.0], [1.0, 1.0, 1.0, 2.0]])
def test_a_resized_axis_must_be_static(scales):
    with pytest.raises(GradientError, match="must be static"):
        gradient_model([2, 3, "height", "width"], [2, 3, "h", "w"], scales=scales, mode="linear")


def test_a_size_on_which_runtime_and_shape_inference_differ_is_refused():
    # 49 * float32(64 / 49) is 63.9999... exactly, and 64 in float32.
    with pytest.raises(GradientError, match=r"64 positions, shape inference 63.*Give it sizes"):
        gradient_model([2, 3, 49], [2, 3, 63], scales=[1.0, 1.0, 64 / 49], mode="linear")


def test_a_scale_that_not_every_runtime_heeds_is_refused():
    with pytest.raises(GradientError, match=r"keeps its 4 positions under the scale 1\.2.*Give it sizes"):
        gradient_model([2, 3, 4, 5], [2, 3, 4, 10], scales=[1.0, 1.0, float(np.float32(1.2)), 2.0], mode="linear")


@pytest.mark.parametrize("given", ["scales", "roi"])
def test_what_decides_the_matrix_must_be_constant(given):
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="gradient"))
    x = add_input(op, "x", FLOAT, [2, 3, 6, 5])
    inputs = {"roi": [0.0] * 4 + [1.0] * 4, "scales": [1.0, 1.0, 2.0, 3.0]}
    inputs[given] = add_input(op, given, FLOAT, [len(inputs[given])])
    y = op.Resize(
        x, inputs["roi"], inputs["scales"], mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
    )
    y.shape = ir.Shape([2, 3, 12, 15])
    with pytest.raises(GradientError, match=f"'{given}'.*its rule needs a constant"):
        backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x])
