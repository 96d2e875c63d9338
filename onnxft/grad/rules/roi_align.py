"""RoiAlign: regions of pictures, each read at regular points and pooled to one size.

Legend: N pictures, C channels, H and W of x, R regions, P and Q rows and columns of y, S samples along a bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.sampling import Tap, linear_taps, within
from onnxft.graph.builder import Op, constant, expand_like, reshape, slice_axis, zeros_like
from onnxft.graph.shapes import Dim, dims, static_dims


@vjp("RoiAlign")
def roi_align(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum over the samples of a bin, and the four pixels of each, of w * x / S²      dx += w * dy / S²

    Regions have no gradient, as in torchvision.
    """
    x, rois, batch_indices = node.inputs
    assert x is not None and rois is not None and batch_indices is not None
    if node.attributes.get_string("mode", "avg") != "avg":
        # CPU provider 1.32: the largest w * x of all pixels; OpenVINO 2025.4: the largest sample.
        raise GradientError(
            f"RoiAlign '{node.name}' has the mode max, and runtimes differ in what they take the maximum of. Use avg."
        )
    s = node.attributes.get_int("sampling_ratio", 0)
    if s <= 0:
        raise GradientError(
            f"RoiAlign '{node.name}' has sampling_ratio = 0: the number of samples then follows the size of each "
            "region, known at run time, and its rule needs a fixed one. Give it a sampling_ratio, 2 for instance."
        )
    n, r, (c, h, w), (p, q) = dims(x)[0], dims(rois)[0], static_dims(x, 1), static_dims(dy, 2)
    k = 4 * s * s
    rows, columns = _taps(op, node, rois, 1, p, s, h), _taps(op, node, rois, 0, q, s, w)
    picture = reshape(op, op.Mul(op.Cast(batch_indices, to=int(ir.DataType.INT64)), h * w), [r, 1, 1, 1, 1])
    indices, weights = [], []
    for row in rows:
        for column in columns:
            down, across = [r, p, s, 1, 1], [r, 1, 1, q, s]
            place = op.Add(op.Mul(reshape(op, row.position, down), w), reshape(op, column.position, across))
            weight = op.Mul(reshape(op, row.weight, down), reshape(op, column.weight, across))
            indices.append(_by_bin(op, op.Add(picture, place), [1, r, p, q, s * s]))
            weights.append(_by_bin(op, weight, [1, r, p, q, s * s]))
    index, weight = op.Concat(*indices, axis=4), op.Concat(*weights, axis=4)  # (1, R, P, Q, k)
    pixels = reshape(op, op.Transpose(x, perm=[1, 0, 2, 3]), [c, n * h * w if isinstance(n, int) else None])
    update = op.Mul(reshape(op, op.Transpose(dy, perm=[1, 0, 2, 3]), [c, r, p, q, 1]), op.Mul(weight, 1.0 / (s * s)))
    count = r * p * q * k if isinstance(r, int) else None
    index = reshape(op, expand_like(op, index, update), [c, count])
    dx = op.ScatterElements(zeros_like(op, pixels), index, reshape(op, update, [c, count]), axis=1, reduction="add")
    return op.Transpose(reshape(op, dx, [c, n, h, w]), perm=[1, 0, 2, 3]), None, None


def _taps(op: Op, node: ir.Node, rois: ir.Value, axis: int, bins: int, samples: int, size: int) -> list[Tap]:
    """The two taps of each sample along x (axis 0) or y (axis 1) of regions (R, 4), with shape (R, bins * samples)

    Samples from -1 to 0 and from size - 1 to size read the border, those farther out nothing.
    """
    half_pixel = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scaled = op.Mul(rois, node.attributes.get_float("spatial_scale", 1.0))
    scaled = op.Sub(scaled, 0.5) if half_pixel else scaled
    start = slice_axis(op, scaled, 1, axis, axis + 1)
    length = op.Sub(slice_axis(op, scaled, 1, axis + 2, axis + 3), start)
    length = length if half_pixel else op.Max(length, constant(op, [[1.0]], length))
    at = (np.arange(bins * samples) + 0.5) / (bins * samples)
    c = op.Add(start, op.Mul(length, constant(op, at[None], length)))
    near = op.And(op.GreaterOrEqual(c, -1.0), op.LessOrEqual(c, float(size)))
    taps = [within(op, tap, size) for tap in linear_taps(op, op.Clip(c, 0.0, float(size - 1)))]
    return [replace(tap, weight=op.Where(near, tap.weight, 0.0)) for tap in taps]


def _by_bin(op: Op, v: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    """(R, P, S, Q, S) -> (1, R, P, Q, S²)"""
    return reshape(op, op.Transpose(v, perm=[0, 1, 3, 2, 4]), shape)
