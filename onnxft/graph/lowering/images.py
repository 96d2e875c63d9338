"""Pooling, padding, resizing and sampling: what changed or came after opset 18."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, constant
from onnxft.graph.lowering.registry import (
    Rewritten,
    constant_ints,
    given,
    inputs_of,
    integers,
    refusal,
    rewrites,
    shape_of,
    static_dim,
)
from onnxft.graph.shapes import normalize_axis, set_dims


@rewrites("AveragePool", since=19)
def average_pool(op: Op, node: ir.Node) -> Rewritten:
    """With gaps between its taps: a convolution with ones for each channel, over the number of taps that count"""
    gaps = node.attributes.pop("dilations", None)
    if gaps is None or all(d == 1 for d in gaps.as_ints()):
        return None
    x = given(node, 0)
    kernel = list(node.attributes.get_ints("kernel_shape"))
    rank = len(kernel)
    strides = list(node.attributes.get_ints("strides", [1] * rank))
    channels = static_dim(node, x, 1)
    windows = [
        _window(node, static_dim(node, x, 2 + i), kernel[i], strides[i], gap, i) for i, gap in enumerate(gaps.as_ints())
    ]
    counts = np.ones((1, 1))
    for _, _, count in windows:
        counts = np.multiply.outer(counts, count)
    w = constant(op, np.ones((channels, 1, *kernel)), x)
    pads = [before for before, _, _ in windows] + [after for _, after, _ in windows]
    y = op.Conv(x, w, group=channels, dilations=list(gaps.as_ints()), strides=strides, pads=pads)
    return op.Div(y, constant(op, counts, x))


def _window(node: ir.Node, size: int, taps: int, stride: int, gap: int, axis: int) -> tuple[int, int, np.ndarray]:
    """Of one axis: the padding before, that after (as far as a window reaches), how many taps count at each place."""
    reach = (taps - 1) * gap + 1
    rank = len(node.attributes.get_ints("kernel_shape"))
    pads = list(node.attributes.get_ints("pads", [0] * (2 * rank)))
    if node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        raise refusal(
            node,
            "is padded to the same size and has gaps between its taps, which runtimes do not agree on",
            "Export it with explicit pads",
        )
    before, after = pads[axis], pads[axis + rank]
    steps = (size + before + after - reach) / stride
    number = (math.ceil(steps) if node.attributes.get_int("ceil_mode", 0) else math.floor(steps)) + 1
    if node.attributes.get_int("ceil_mode", 0) and (number - 1) * stride >= size + before:
        number -= 1  # a window must not begin in the padding after
    places_of = np.arange(number)[:, None] * stride + np.arange(taps) * gap - before
    inside = (places_of >= 0) & (places_of < size)
    if node.attributes.get_int("count_include_pad", 0):
        inside = (places_of >= -before) & (places_of < size + after)
    return before, max((number - 1) * stride + reach - size - before, 0), inside.sum(axis=1)


@rewrites("Pad", since=19)
def pad(op: Op, node: ir.Node) -> Rewritten:
    """`wrap` takes from the other end: y[i] = x[(i - before) mod size]"""
    if node.attributes.get_string("mode", "constant") != "wrap":
        return None
    x = given(node, 0)
    rank = len(shape_of(node, x))
    pads = constant_ints(node, 1) or []
    axes = [normalize_axis(a, rank) for a in constant_ints(node, 3) or range(rank)]
    y = x
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        size = shape_of(node, x)[axis]
        if before == after == 0:
            continue
        if isinstance(size, int):
            y = op.Gather(y, integers(op, np.arange(-before, size + after) % size), axis=axis)
        else:
            length = op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0])
            index = op.Range(integers(op, -before), op.Add(length, after), integers(op, 1))
            y = op.Gather(y, op.Mod(index, length), axis=axis)
    return op.Identity(y) if y is x else y


@rewrites("Resize", since=19)
def resize(op: Op, node: ir.Node) -> Rewritten:
    """`half_pixel_symmetric` is `half_pixel` where the size is scaled to a whole number"""
    mode = "coordinate_transformation_mode"
    if node.attributes.get_string(mode, "half_pixel") != "half_pixel_symmetric":
        return None
    x = given(node, 0)
    scales = inputs_of(node, 3)[2]
    tensor = None if scales is None else ir.convenience.get_const_tensor(scales)
    if scales is not None and tensor is None:
        raise refusal(node, "has scales that are computed at run time", "Export it with constant scales or sizes")
    factors = [] if tensor is None else [float(s) for s in tensor.numpy().reshape(-1)]
    axes = node.attributes.get_ints("axes", range(len(factors)))
    for axis, factor in zip(axes, factors, strict=True):
        if not float(factor).is_integer() and not (static_dim(node, x, axis) * factor).is_integer():
            raise refusal(
                node,
                f"is half_pixel_symmetric with scale {factor:g} of {static_dim(node, x, axis)}, no whole number",
                "Export it with sizes, or with coordinate_transformation_mode='half_pixel'",
            )
    node.attributes[mode] = ir.AttrString(mode, "half_pixel")
    return None


@rewrites("GridSample", since=20)
def grid_sample(op: Op, node: ir.Node) -> Rewritten:
    """The names of the modes"""
    if len(shape_of(node, given(node, 0))) != 4:
        raise refusal(node, "samples other than pictures, which opset 18 cannot", "Freeze or cut the graph before it")
    mode = node.attributes.get_string("mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
    return None


@rewrites("AffineGrid", since=20)
def affine_grid(op: Op, node: ir.Node) -> Rewritten:
    """y = places θᵀ; θ (N, 2, 3) -> (N, H, W, 2), or θ (N, 3, 4) -> (N, D, H, W, 3)"""
    theta = given(node, 0)
    sizes = _known_sizes(node, given(node, 1))[2:]
    align = bool(node.attributes.get_int("align_corners", 0))
    lines = [_line(size, align) for size in sizes]
    grid = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(sizes)], axis=-1)
    flat = constant(op, grid.reshape(-1, len(sizes) + 1), theta)
    y = op.MatMul(flat, op.Transpose(theta, perm=[0, 2, 1]))
    y = op.Reshape(y, [0, *sizes, len(sizes)])
    set_dims(y, [shape_of(node, theta)[0], *sizes, len(sizes)])
    return y


def _line(size: int, align: bool) -> np.ndarray:
    """Centres from -1 to 1, or of equal cells between them."""
    if align and size > 1:
        return np.linspace(-1, 1, size)
    return (2 * np.arange(size) + 1) / size - 1  # a single place is the middle


def _known_sizes(node: ir.Node, size: ir.Value) -> Sequence[int]:
    """A size (N, C, ...) whose places are constants, though its batch may be joined to them at run time."""
    tensor = ir.convenience.get_const_tensor(size)
    if tensor is not None:
        return [int(n) for n in tensor.numpy()]
    producer = size.producer()
    pieces: list[int] = []
    if producer is not None and producer.op_type == "Concat":
        for i, piece in enumerate(producer.inputs):
            known = None if piece is None else ir.convenience.get_const_tensor(piece)
            if known is None and i == 0 and piece is not None and shape_of(node, piece) == (1,):
                pieces.append(0)  # the batch; theta has it too
            elif known is not None:
                pieces.extend(int(n) for n in known.numpy())
    rank = shape_of(node, size)[0]
    if len(pieces) != rank:
        raise refusal(node, "has a size that is computed at run time", "Export the model with fixed picture sizes")
    return pieces
