"""Resize: linear in its input, and one axis after another.

Along one axis y[o] = sum over i of x[i] * m[i, o]. The matrix m (size, outputs) is what the same Resize makes of
the unit vectors, and is written into the graph as that: so it has the coordinates of the runtime that takes the
step, to the last bit of its rounding (by which nearest decides what it reads). Runtimes fold it as they load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, cast_like, reshape, slice_axis, static_array, static_ints, swap_last_two
from onnxft.graph.shapes import Dim, dims, normalize_axis, static_dims, symbolic_count

HALF_PIXEL = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
CROP = "tf_crop_and_resize"
WHOLE = (0.0, 1.0)


@dataclass(frozen=True)
class Resized:
    """One axis as it is resized."""

    axis: int
    size: int
    outputs: int
    scale: float | None
    """None where the size is given instead."""
    wanted: int
    """The size that is given; with keep_aspect_ratio_policy `outputs` may be another."""
    guide: tuple[int, int]
    """Size and wanted size of the axis whose ratio keep_aspect_ratio_policy gives to all; (1, 1) without it."""
    region: tuple[float, float]
    """Start and end of what tf_crop_and_resize reads."""


@vjp("Resize")
def resize(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y[o] = sum over i of x[i] * m[i, o]      dx[i] = sum over o of m[i, o] * dy[o],  axis by axis

    Where nearest repeats each value, dx = sum of the repeats of dy. roi has no gradient.
    """
    for v in sorted(resized_axes(node), key=lambda v: v.size / v.outputs):  # what shrinks most comes first
        dy = _sum_repeats(op, dy, v) if repeats(node, v) else _product(op, dy, matrix(op, node, v, dy), v)
    return (dy, *[None] * (len(node.inputs) - 1))


def resized_axes(node: ir.Node) -> list[Resized]:
    """The axes that a Resize changes; GradientError where one of them is not static."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    axes = [normalize_axis(axis, len(dims(x))) for axis in node.attributes.get_ints("axes") or range(len(dims(x)))]
    roi = static_array(node, 1) if _mode(node) == CROP else None
    scales = static_array(node, 2)
    if scales is not None and scales.size == 0:  # how older exporters say that sizes are given
        scales = None
    wanted, guide = _aspect(node, axes) if scales is None else (None, (1, 1))
    found = []
    for i, axis in enumerate(axes):
        scale = None if scales is None else float(scales[i])
        region = WHOLE if roi is None else (float(roi[i]), float(roi[i + len(axes)]))
        same = dims(x)[axis] == dims(y)[axis] is not None and guide[0] == guide[1]
        if region != WHOLE or not (same if scale is None else scale == 1):
            (size,), (outputs,) = static_dims(x, axis, axis + 1), static_dims(y, axis, axis + 1)
            if scale is not None:
                _check_scale(node, axis, size, outputs, scale)
            found.append(Resized(axis, size, outputs, scale, outputs if wanted is None else wanted[i], guide, region))
    return found


def _check_scale(node: ir.Node, axis: int, size: int, outputs: int, scale: float) -> None:
    """GradientError where runtimes, or a runtime and shape inference, take a scale in different ways."""
    length = int(np.float32(size) * np.float32(scale))
    if length != outputs:
        raise GradientError(
            f"axis {axis} of Resize '{node.name}' has {size} positions and the scale {scale:.9g}: runtimes make "
            f"{length} positions, shape inference {outputs}, by rounding. Give it sizes instead of scales."
        )
    if size == outputs and scale != 1 and _changes_shape(node) and _mode(node) != CROP:
        raise GradientError(
            f"axis {axis} of Resize '{node.name}' keeps its {size} positions under the scale {scale:.9g}: OpenVINO "
            "(2025.4) leaves such an axis alone, the CPU provider does not. Give it sizes instead of scales."
        )


def _aspect(node: ir.Node, axes: Sequence[int]) -> tuple[list[int] | None, tuple[int, int]]:
    """The sizes that are given and the `guide` among them where a policy changes them, else None and (1, 1)."""
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    x, wanted = node.inputs[0], static_ints(node, 3) if policy != "stretch" else None
    assert x is not None
    if wanted is None:
        return None, (1, 1)
    sizes = [static_dims(x, axis, axis + 1)[0] for axis in axes]
    decides = min if policy == "not_larger" else max
    return wanted, decides(zip(sizes, wanted, strict=True), key=lambda pair: pair[1] / pair[0])


def repeats(node: ir.Node, v: Resized) -> bool:
    """Whether nearest copies each value as often as its integer scale says, however coordinates are rounded."""
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    by_floor = _mode(node) == "asymmetric" and rounding == "floor"
    by_rounding = _mode(node) in HALF_PIXEL and rounding.startswith("round")
    scale = v.outputs / v.size if v.scale is None else v.scale
    exact = v.guide == (1, 1) and v.outputs == v.size * scale and scale.is_integer()
    return nearest and (by_floor or by_rounding) and exact


def matrix(op: Op, node: ir.Node, v: Resized, like: ir.Value) -> ir.Value:
    """m (size, outputs) with the element type of `like`

    The unit vectors are rows of pictures, since some modes are for pictures alone. Where the axis keeps its size
    and others do not, the pictures grow too: runtimes copy what keeps its shape as a whole, whatever the scales.
    """
    numbers = op.initializer(ir.tensor(np.arange(v.size)), name=f"units_{len(op.builder.graph.initializers)}")
    units = cast_like(op, op.Equal(reshape(op, numbers, [1, v.size, 1, 1]), numbers), like)
    rows, wanted_rows = v.guide
    if rows > 1:
        units = op.Expand(units, [1, 1, rows, 1])
    elif v.outputs == v.size and _changes_shape(node):
        wanted_rows = 2
    attributes = {name: a.value for name, a in node.attributes.items()}
    attributes |= {"axes": [2, 3], "extrapolation_value": 0.0}
    roi = [0.0, v.region[0], 1.0, v.region[1]] if _mode(node) == CROP else None
    scales = None if v.scale is None else [float(wanted_rows), v.scale]
    sizes = [wanted_rows, v.wanted] if v.scale is None else None
    m = op.Resize(units, roi, scales, sizes, **attributes)
    return reshape(op, slice_axis(op, m, 2, 0, 1), [v.size, v.outputs])


def _product(op: Op, dy: ir.Value, m: ir.Value, v: Resized) -> ir.Value:
    """(..., outputs, ...) -> (..., size, ...)"""
    shape = dims(dy)
    before, after = shape[: v.axis], shape[v.axis + 1 :]
    if not after:
        return op.MatMul(dy, swap_last_two(op, m))
    flat: Dim = after[0]
    if len(after) > 1:
        flat = None if symbolic_count(after) else math.prod(static_dims(dy, v.axis + 1))
    dx = op.MatMul(m, reshape(op, dy, [*before, v.outputs, flat]))
    return reshape(op, dx, [*before, v.size, *after])


def _sum_repeats(op: Op, dy: ir.Value, v: Resized) -> ir.Value:
    """(..., size * times, ...) -> (..., size, ...)"""
    before, after = dims(dy)[: v.axis], dims(dy)[v.axis + 1 :]
    rows = reshape(op, dy, [*before, v.size, v.outputs // v.size, *after])
    return op.ReduceSum(rows, [v.axis + 1], keepdims=0)


def _mode(node: ir.Node) -> str:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def _changes_shape(node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    return x is not None and dims(x) != dims(y)
