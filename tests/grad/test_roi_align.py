"""What RoiAlign's rule refuses, and regions whose number is only known at run time."""

from __future__ import annotations

import cases_roi_align
import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, run_runtime

from onnxft.errors import GradientError
from onnxft.grad.backward import backward
from onnxft.graph.builder import add_input, builder


def differentiate(regions, **attributes):
    """d/dx of the sum of y² with y = RoiAlign(x), as a model."""
    op = builder(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="regions"))
    x = add_input(op, "x", ir.DataType.FLOAT, ["batch", 3, 4, 5])
    rois = add_input(op, "rois", ir.DataType.FLOAT, [regions, 4])
    pictures = add_input(op, "pictures", ir.DataType.INT64, [regions])
    y = op.RoiAlign(x, rois, pictures, output_height=2, output_width=3, **attributes)
    y.shape = ir.Shape([regions, 3, 2, 3])
    dx = op.Identity(backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), [x])[x])
    dx.name = "dx"
    op.builder.graph.outputs.append(dx)
    return ir.serde.serialize_model(ir.Model(op.builder.graph, ir_version=IR_VERSION))


def test_samples_that_follow_the_region_are_refused():
    with pytest.raises(GradientError, match=r"sampling_ratio = 0.*Give it a sampling_ratio"):
        differentiate(5)


def test_the_mode_max_is_refused():
    with pytest.raises(GradientError, match=r"runtimes differ in what they take the maximum of\. Use avg"):
        differentiate(5, sampling_ratio=2, mode="max")


def test_regions_may_be_symbolic():
    inputs = {
        "x": np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32),
        "rois": cases_roi_align.ROIS.astype(np.float32),
        "pictures": cases_roi_align.PICTURES,
    }
    fixed, symbolic = (
        run_runtime(differentiate(regions, sampling_ratio=2), inputs)["dx"] for regions in (5, "regions")
    )
    np.testing.assert_array_equal(symbolic, fixed)
    fewer = inputs | {"rois": inputs["rois"][:2], "pictures": inputs["pictures"][:2]}
    assert run_runtime(differentiate("regions", sampling_ratio=2), fewer)["dx"].shape == (2, 3, 4, 5)
