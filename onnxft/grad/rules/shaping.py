"""Operators that only move values: each gradient moves them back."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.products import transposed_product
from onnxft.grad.rules.windows import Window, add_taps
from onnxft.graph.builder import (
    Op,
    flip_axis,
    pad_axis,
    pad_to,
    reshape,
    reshape_like,
    slice_axis,
    static_axis,
    static_ints,
    zeros_like,
)
from onnxft.graph.shapes import dims, normalize_axis, set_dims, static_dims, symbolic_count


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshaping(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = reshape(x)      dx = reshape(dy) to the shape of x"""
    return _gradients(node, reshape_like(op, dy, _x(node)))


@vjp("Transpose")
def transpose(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with axes perm      dx = dy with axes perm^-1, of a weight within the product that dy is"""
    x = _x(node)
    rank = len(dims(x))
    perm = list(node.attributes.get_ints("perm") or reversed(range(rank)))
    if perm == [1, 0] and x.producer() is None and (dx := transposed_product(op, dy)) is not None:
        return (dx,)
    return (op.Transpose(dy, perm=sorted(range(rank), key=lambda axis: perm[axis])),)


@vjp("Expand")
def expand(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x broadcast to a shape      dx = dy (which the engine sums)"""
    return dy, None


@vjp("Concat")
def concat(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = [a b ...] along axis      da = dy[: a], db = dy[a : a + b], ..."""
    axis = static_axis(node, 0)
    if symbolic_count([dims(x)[axis] for x in node.inputs if x is not None]) and len(node.inputs) > 1:
        sizes = op.Concat(*(op.Shape(x, start=axis, end=axis + 1) for x in node.inputs), axis=0)
        parts: Gradients = op.Split(dy, sizes, axis=axis, _outputs=len(node.inputs))  # type: ignore[assignment]
        return parts
    gradients, start = [], 0
    for x in node.inputs:
        assert x is not None
        (size,) = static_dims(x, axis, axis + 1) if len(node.inputs) > 1 else (sys.maxsize,)
        gradients.append(slice_axis(op, dy, axis, start, start + size) if len(node.inputs) > 1 else dy)
        start += size
    return gradients


@vjp("Split")
def split(op: Op, node: ir.Node, *dys: ir.Value | None) -> Gradients:
    """y, z, ... = parts of x along axis      dx = [dy dz ...]"""
    parts = [dy if dy is not None else zeros_like(op, y) for y, dy in zip(node.outputs, dys, strict=True)]
    return _gradients(node, op.Concat(*parts, axis=static_axis(node, 0)) if len(parts) > 1 else parts[0])


@vjp("Slice")
def slice_(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x[start : stop : step]      dx = 0 but for dx[start : stop : step] = dy"""
    x = _x(node)
    count = len(static_ints(node, 3) or ()) or static_dims(node.inputs[1])[0]  # type: ignore[arg-type]
    starts, stops = _numbers(op, node, 1, count), _numbers(op, node, 2, count)
    axes = static_ints(node, 3) or list(range(count))
    steps = static_ints(node, 4) or [1] * len(starts)
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        axis = normalize_axis(axis, len(dims(x)))
        size = dims(x)[axis]
        if step == 1 and not (isinstance(size, int) and isinstance(start, int) and isinstance(stop, int)):
            dy = pad_to(op, dy, x, axis, start)
            continue
        (size,) = static_dims(x, axis, axis + 1)
        if not isinstance(start, int) or not isinstance(stop, int):
            raise GradientError(f"Slice '{node.name}' has the step {step} and bounds of the run: use the step 1")
        positions = range(size)[start:stop:step]
        if step < 0:
            dy, positions = flip_axis(op, dy, axis), positions[::-1]
        window = Window(axis, size, len(positions), stride=positions.step, begin=-positions.start)
        dy = add_taps(op, [dy], window) if len(positions) else zeros_like(op, x)
    return _gradients(node, dy)


def _numbers(op: Op, node: ir.Node, index: int, count: int) -> Sequence[int | ir.Value]:
    """The `count` numbers of an input: integers where they are constant, else values (1,)."""
    value = node.inputs[index]
    assert value is not None
    if ir.convenience.get_const_tensor(value) is not None:
        return static_ints(node, index) or []
    return [value] if count == 1 else [op.Slice(value, [i], [i + 1]) for i in range(count)]


@vjp("Pad")
def pad(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x within a frame      dx = dy without the frame, plus what the frame copied from x

    The frame holds a constant (dvalue = sum of dy over the frame), the edge of x, or x reflected there.
    """
    x = _x(node)
    pads = static_ints(node, 1) or []
    axes = [normalize_axis(a, len(dims(x))) for a in static_ints(node, 3) or range(len(dims(x)))]
    mode = node.attributes.get_string("mode", "constant")
    dx = dy
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if not isinstance(dims(x)[axis], int) and mode == "constant" and min(before, after) >= 0:
            dx = op.Slice(dx, [before], [-after if after else sys.maxsize], [axis])
        elif before or after:
            dx = _unpad(op, dx, axis, before, after, static_dims(x, axis, axis + 1)[0], mode)
    dvalue = op.Sub(op.ReduceSum(dy, keepdims=0), op.ReduceSum(dx, keepdims=0))
    return [dx, None, dvalue, None][: len(node.inputs)]


def _unpad(op: Op, dy: ir.Value, axis: int, before: int, after: int, size: int, mode: str) -> ir.Value:
    """Adjoint of padding one axis of length `size`."""
    dy = pad_axis(op, dy, axis, max(-before, 0), max(-after, 0))  # what negative pads cropped is read by nothing
    before, after = max(before, 0), max(after, 0)
    inner = slice_axis(op, dy, axis, before, before + size)
    if mode == "constant":
        return inner
    head, tail = slice_axis(op, dy, axis, 0, before), slice_axis(op, dy, axis, before + size, before + size + after)
    if mode == "edge":
        head = op.ReduceSum(head, [axis], keepdims=1) if before else head
        tail = op.ReduceSum(tail, [axis], keepdims=1) if after else tail
        offset, before, after = 0, min(before, 1), min(after, 1)
    elif mode == "reflect":
        head = flip_axis(op, head, axis) if before else head
        tail = flip_axis(op, tail, axis) if after else tail
        offset = 1
    else:
        raise GradientError(f"Pad with mode '{mode}' has no rule; use constant, edge or reflect")
    if before:
        inner = op.Add(inner, pad_axis(op, head, axis, offset, size - offset - before))
    if after:
        inner = op.Add(inner, pad_axis(op, tail, axis, size - offset - after, offset))
    return inner


@vjp("CenterCropPad")
def center_crop_pad(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x cropped or padded at both ends to a shape      dx = dy cropped or padded back

    An odd difference leaves its half more at the end, both ways, so each undoes the other.
    """
    x = _x(node)
    rank = len(dims(x))
    axes = [normalize_axis(axis, rank) for axis in node.attributes.get_ints("axes") or range(rank)]
    sizes = [dims(x)[axis] for axis in axes]
    target = sizes if symbolic_count(sizes) == 0 else op.Gather(op.Shape(x), axes)
    dx = op.CenterCropPad(dy, target, axes=axes)
    set_dims(dx, dims(x))
    return dx, None


@vjp("ReverseSequence")
def reverse_sequence(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with its first lengths[b] values along time_axis reversed      dx = dy reversed in the same way"""
    batch_axis, time_axis = node.attributes.get_int("batch_axis", 1), node.attributes.get_int("time_axis", 0)
    return op.ReverseSequence(dy, node.inputs[1], batch_axis=batch_axis, time_axis=time_axis), None


@vjp("Tile")
def tile(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x repeated along each axis      dx = sum of the repeats of dy"""
    x = _x(node)
    repeats = static_ints(node, 1) or []
    for axis, times in enumerate(repeats):
        if times != 1:
            shape = list(dims(dy))
            dy = reshape(op, dy, [*shape[:axis], times, dims(x)[axis], *shape[axis + 1 :]])
            dy = op.ReduceSum(dy, [axis], keepdims=0)
    return dy, None


@vjp("DepthToSpace")
def depth_to_space(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = blocks of channels spread over space      dx = SpaceToDepth(dy), in the order of mode"""
    x = _x(node)
    block, crd = node.attributes.get_int("blocksize"), node.attributes.get_string("mode", "DCR") == "CRD"
    batch, (c, h, w) = dims(x)[0], static_dims(x, 1)
    split = reshape(op, dy, [batch, c // block**2, h, block, w, block])
    order = [0, 1, 3, 5, 2, 4] if crd else [0, 3, 5, 1, 2, 4]
    return (reshape(op, op.Transpose(split, perm=order), dims(x)),)


@vjp("SpaceToDepth")
def space_to_depth(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = blocks of space stacked as channels      dx = DepthToSpace(dy)"""
    return (op.DepthToSpace(dy, blocksize=node.attributes.get_int("blocksize")),)


@vjp("Trilu")
def trilu(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = triangle of x from diagonal k      dx = the same triangle of dy"""
    upper = node.attributes.get_int("upper", 1)
    return _gradients(node, op.Trilu(dy, *node.inputs[1:], upper=upper))


def _x(node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    assert x is not None
    return x


def _gradients(node: ir.Node, dx: ir.Value) -> Gradients:
    """Shapes, axes and sizes, where they are inputs, have no gradient."""
    return (dx, *[None] * (len(node.inputs) - 1))
