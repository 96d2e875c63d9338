"""Another differentiator of ONNX graphs, the package onnx-ad, gives the same gradients where it gives right ones."""

from __future__ import annotations

import cases
import numpy as np
import onnx_ir as ir
import pytest
from checking import IR_VERSION, build, feeds, forward, read, run_runtime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

onnx_ad = pytest.importorskip("onnx_ad", reason="onnx-ad is not installed: pip install onnx-ad==0.3.0")

RELATIVE = 1e-4
REFUSED = {
    "AveragePool": ("ceil_mode=1", "auto_pad="),
    "BatchNormalization": ("with training_mode",),
    "Conv": ("a grouped Conv is not differentiated with respect to its weight", "auto_pad="),
    "ConvTranspose": ("not differentiated with respect to its weight", "auto_pad="),
    "Einsum": ("without the ellipsis", "only with a leading ellipsis", "a repeated index in one operand"),
    "GatherND": ("with batch_dims",),
    "GRU": ("with sequence_lens",),
    "LSTM": ("with sequence_lens", "with input_forget"),
    "LpPool": ("ceil_mode=1", "auto_pad="),
    "MaxPool": ("auto_pad=",),
    "Pad": ("only constant-mode",),
    "Pow": ("integer exponent",),
    "RNN": ("with sequence_lens",),
    "Resize": ("keep_aspect_ratio_policy",),
    "ScatterElements": ("only 'none' and 'add'",),
    "ScatterND": ("only 'none' and 'add'",),
    "Slice": ("a step other than 1", "only with a constant 'starts'"),
}
"""Uses that onnx-ad 0.3.0 refuses: operator -> words of its reasons."""

END_PADS = "it writes ConvTranspose with output_shape, from which the runtime derives pads of its own"
NO_SLOPE = "it takes the operator for one without derivative in this input"
NOT_RUN = "its graph does not run"
DIVIDED = "it divides by zero: NaN or infinity"
CHOICE = "it makes another choice than torch"
DIFFERENT = (
    ("AveragePool", "pads=[1, 2]$", END_PADS),
    ("AveragePool", "pads=[0, 1, 1, 1, 0, 1]$", END_PADS),
    ("BatchNormalization", "epsilon=1e-05$", NO_SLOPE),
    ("BatchNormalization", "epsilon=0.001$", NO_SLOPE),
    ("Clip", "crossed bounds", "it gives the lower bound a part, though the result is the upper one"),
    ("Clip", "at its bounds", CHOICE),
    ("Conv", "pads=[2, 0] last position unread", END_PADS),
    ("Conv", "padding wider than the kernel", END_PADS),
    ("Conv", "a stride wider than the kernel", END_PADS),
    ("Conv", "asymmetric pads", END_PADS),
    ("Conv", "pads=[1, 0, 1, 0, 1, 0]", END_PADS),
    ("GlobalMaxPool", "ties", CHOICE),
    ("GRU", "2x9x2-2x9x3 hidden_size=3,direction=bidirectional,linear_before_reset=1", "wrong without a bias"),
    ("GridSample", "2x8x10x2 mode=bilinear,padding_mode=border", "beside the border it gives other numbers"),
    ("GridSample", "2x8x10x2 mode=bilinear,padding_mode=reflection", "beside the border it gives other numbers"),
    ("GridSample", "2x9x13x2 mode=bilinear,padding_mode=border", "beside the border it gives other numbers"),
    ("GridSample", "2x9x13x2 mode=bilinear,padding_mode=reflection", "beside the border it gives other numbers"),
    ("GridSample", "one row", NOT_RUN),
    ("LpNormalization", "zero vector", DIVIDED),
    ("LpPool", "strides=[2],pads=[1, 0]", END_PADS),
    ("LpPool", "p=2 zeros", DIVIDED),
    ("LpPool", "p=3 zeros", DIVIDED),
    ("Max", "tie", CHOICE),
    ("Min", "tie", CHOICE),
    ("OneHot", "", NO_SLOPE),
    ("PRelu", "at the kink", CHOICE),
    ("Pad", "trained value, axes given", NO_SLOPE),
    ("Pad", "mode=constant [0, -1", NOT_RUN),
    ("Pad", "mode=constant [2, -1", NOT_RUN),
    ("Pad", "trained value, negative pads", NOT_RUN),
    ("Pow", "zeros", DIVIDED),
    ("ReduceL2", "zero norm", DIVIDED),
    ("Resize", "scales=[2.0] one axis", "it ends with an IndexError"),
    ("ReduceProd", "zero", DIVIDED),
)
"""Uses for which onnx-ad 0.3.0 gives other numbers: operator, part of the name of the case ($: its end), cause.

For all but the ties and bounds `test_calculus` shows by finite differences that ours are right.
"""


def marked(case):
    reasons = [reason for op, part, reason in DIFFERENT if case.op == op and part in f"{case.name}$"]
    marks = (
        [pytest.mark.xfail(reason=reasons[0], strict=True, raises=(AssertionError, Fail, IndexError))]
        if reasons
        else []
    )
    return pytest.param(case, id=case.name, marks=marks)


def reverse(case):
    """The model of onnx-ad: inputs x<i>, adj_y<i> (..., 1), outputs adj_x<i> (..., 1)."""
    op, _, outputs = forward(case, np.float32)
    graph = op.builder.graph
    for i, y in enumerate(read(case, outputs)):
        y.name = f"y{i}"
        graph.outputs.append(y)
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=IR_VERSION))
    inputs = [f"x{i}" for i in case.differentiated()]
    return onnx_ad.reverse(model, inputs=inputs, outputs=[y.name for y in graph.outputs], layout="onnx")


@pytest.mark.parametrize("case", [marked(case) for case in cases.ALL])
def test_onnx_ad_gives_the_same_gradient_or_refuses_for_a_known_reason(case):
    try:
        adjoint = reverse(case)
    except onnx_ad.UnsupportedOperator as refusal:
        assert any(words in str(refusal) for words in REFUSED.get(case.op, ())), refusal
        return
    fed = feeds(case, np.float32)
    seeds = {v.name: v for v in adjoint.graph.input if v.name.startswith("adj_y")}
    for name, value in seeds.items():
        dtype = ir.DataType(value.type.tensor_type.elem_type).numpy()
        fed[name] = fed[name.replace("adj_y", "dy")][..., None].astype(dtype)
    theirs = run_runtime(adjoint, fed)
    ours = run_runtime(build(case, np.float32).proto, fed)
    for i in case.differentiated():
        found, expected = ours[f"dx{i}"], theirs[f"adj_x{i}"][..., 0]
        scale = max(float(np.abs(found).max(initial=0.0, where=np.isfinite(found))), 1e-3)
        np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=RELATIVE * scale, err_msg=f"input {i}")
