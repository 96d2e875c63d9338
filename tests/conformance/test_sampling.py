"""Gradients of GridSample, RoiAlign and Resize on every provider equal those of the CPU provider."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.grad.backward import backward
from onnxft.graph.builder import Op, add_input, builder
from onnxft.runtime.execution import Execution
from onnxft.runtime.sessions import open_session

FLOAT = ir.DataType.FLOAT
SHAPE = (2, 3, 6, 7)
GRID = np.random.default_rng(2).uniform(-1.6, 1.6, (2, 5, 4, 2)).astype(np.float32)
ROIS = np.array([[0.3, 0.4, 4.1, 3.2], [1.2, -0.9, 3.3, 5.1], [-3.5, 1.1, 6.9, 5.8]], np.float32)
PICTURES = np.array([1, 0, 1])
HALF, FLOOR = {"coordinate_transformation_mode": "half_pixel"}, {"nearest_mode": "floor"}
ASYMMETRIC, CORNERS = ({"coordinate_transformation_mode": mode} for mode in ("asymmetric", "align_corners"))

Write = Callable[[Op, ir.Value], tuple[ir.Value, list[ir.Value]]]


def grid_sample(mode: str, padding: str, align: int) -> Write:
    def write(op: Op, x: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
        grid = add_input(op, "grid", FLOAT, GRID.shape)
        return op.GridSample(x, grid, mode=mode, padding_mode=padding, align_corners=align), [x, grid]

    return write


def regions(op: Op, x: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
    rois, pictures = (op.initializer(ir.tensor(v), name=n) for n, v in (("rois", ROIS), ("pictures", PICTURES)))
    return op.RoiAlign(x, rois, pictures, output_height=2, output_width=3, sampling_ratio=2), [x]


def resize(scales: list[float] | None = None, sizes: list[int] | None = None, **attributes: object) -> Write:
    return lambda op, x: (op.Resize(x, None, scales, sizes, **attributes), [x])


CASES: dict[str, Write] = {
    **{
        f"grid {mode} {padding} {align}": grid_sample(mode, padding, align)
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    },
    "regions": regions,
    "nearest blocks": resize([1.0, 1.0, 2.0, 3.0], mode="nearest", **FLOOR, **ASYMMETRIC),
    "nearest ratio": resize(sizes=[2, 3, 10, 4], mode="nearest", **FLOOR, **ASYMMETRIC),
    "nearest half": resize(sizes=[2, 3, 13, 5], mode="nearest", **HALF),
    "linear": resize([1.0, 1.0, 2.0, 1.5], mode="linear", **HALF),
    "linear corners": resize(sizes=[2, 3, 9, 5], mode="linear", **CORNERS),
    "linear antialias": resize(sizes=[2, 3, 4, 3], mode="linear", antialias=1, exclude_outside=1, **HALF),
    "cubic": resize(sizes=[2, 3, 8, 11], mode="cubic", **HALF),
}


def gradients_model(case: str) -> tuple[bytes, list[str]]:
    """y and the gradients of the sum of y², with their names."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="sampling")
    op = builder(graph)
    y, xs = CASES[case](op, add_input(op, "x", FLOAT, SHAPE))
    found = backward(op, op.ReduceSum(op.Mul(y, y), keepdims=0), xs)
    names = ["y", *(f"d{x.name}" for x in xs)]
    for name, value in zip(names, (op.Identity(v) for v in (y, *found.values())), strict=True):
        value.name = name
        graph.outputs.append(value)
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()), names


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_cpu(case: str, provider: str) -> None:
    model, names = gradients_model(case)
    feeds = {"x": np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)}
    feeds |= {"grid": GRID} if "dgrid" in names else {}
    expected = open_session(model, Execution("cpu", threads=1)).session.run(names, feeds)
    found = open_session(model, Execution(provider, threads=1)).session.run(names, feeds)
    for name, own, other in zip(names, found, expected, strict=True):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max(), name
