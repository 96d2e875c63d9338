"""Element by element, reductions, transforms: what changed or came after opset 18."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.graph.builder import Op, cast_like, constant, pad_axis, slice_axis
from onnxft.graph.lowering.registry import (
    Rewritten,
    constant_ints,
    dtype_of,
    given,
    inputs_of,
    refusal,
    rewrites,
    shape_of,
    static_dim,
)
from onnxft.graph.shapes import normalize_axis

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@rewrites("Cast", "CastLike", since=19)
def cast(op: Op, node: ir.Node) -> Rewritten:
    """`saturate` and `round_mode` speak of 8-bit floats alone"""
    for name in ("saturate", "round_mode"):
        node.attributes.pop(name, None)
    return None


@rewrites("CumProd", since=26)
def cum_prod(op: Op, node: ir.Node) -> Rewritten:
    """y_i = x_0 ... x_i; products of 2, 4, 8, ... neighbours, so log₂(size) steps"""
    x = given(node, 0)
    (axis,) = constant_ints(node, 1) or [0]
    axis = normalize_axis(axis, len(shape_of(node, x)))
    size = static_dim(node, x, axis)
    backwards = bool(node.attributes.get_int("reverse", 0))
    one = constant(op, 1, x)

    def moved(y: ir.Value, steps: int) -> ir.Value:
        if backwards:
            return pad_axis(op, slice_axis(op, y, axis, steps, size), axis, 0, steps, one)
        return pad_axis(op, slice_axis(op, y, axis, 0, size - steps), axis, steps, 0, one)

    y = moved(x, 1) if node.attributes.get_int("exclusive", 0) else x
    steps = 1
    while steps < size:
        y = op.Mul(y, moved(y, steps))
        steps *= 2
    return op.Identity(y) if y is x else y


@rewrites("Mod", since=28)
def mod(op: Op, node: ir.Node) -> Rewritten:
    """y = a - floor(a / b) b of floats, from r = fmod(a, b): b is added where r has the other sign"""
    a, b = given(node, 0), given(node, 1)
    if node.attributes.get_int("fmod", 0) or not dtype_of(node, a).is_floating_point():
        return None
    r = op.Mod(a, b, fmod=1)
    return op.Where(op.Less(op.Mul(op.Sign(r), op.Sign(b)), 0.0), op.Add(r, b), r)


@rewrites("IsInf", since=20)
def is_inf(op: Op, node: ir.Node) -> Rewritten:
    """Opset 18 asks it of float32 and float64 alone"""
    x = given(node, 0)
    if dtype_of(node, x) not in _NARROW:
        return None
    attributes = {k: node.attributes.get_int(k, 1) for k in ("detect_negative", "detect_positive")}
    return op.IsInf(op.Cast(x, to=int(ir.DataType.FLOAT)), **attributes)


@rewrites("ReduceMax", "ReduceMin", since=20)
def reduce_extreme(op: Op, node: ir.Node) -> Rewritten:
    """Of booleans: in uint8"""
    x, axes = inputs_of(node, 2)
    assert x is not None
    if dtype_of(node, x) != ir.DataType.BOOL:
        return None
    attributes = {k: node.attributes.get_int(k, v) for k, v in (("keepdims", 1), ("noop_with_empty_axes", 0))}
    number = op.Cast(x, to=int(ir.DataType.UINT8))
    y = getattr(op, node.op_type)(*([number] if axes is None else [number, axes]), **attributes)
    return op.Cast(y, to=int(ir.DataType.BOOL))


@rewrites("DFT", since=20)
def dft(op: Op, node: ir.Node) -> Rewritten:
    """The axis was an attribute"""
    x, length, _ = inputs_of(node, 3)
    assert x is not None
    rank = len(shape_of(node, x))
    (axis,) = constant_ints(node, 2) or [-2]
    inverse, onesided = (node.attributes.get_int(k, 0) for k in ("inverse", "onesided"))
    axis = normalize_axis(axis, rank)
    inputs = [x] if length is None else [x, length]
    return op.DFT(*inputs, axis=axis, inverse=inverse, onesided=onesided)


@rewrites("Range", since=27)
def range_(op: Op, node: ir.Node) -> Rewritten:
    """Of narrow floats: in float32"""
    start = given(node, 0)
    stash = node.attributes.pop("stash_type", None)
    if dtype_of(node, start) not in _NARROW:
        return None
    if stash is not None and stash.as_int() != int(ir.DataType.FLOAT):
        raise refusal(
            node,
            f"counts in {ir.DataType(stash.as_int())}, which opset 18 cannot",
            "Export it with stash_type=1",
        )
    y = op.Range(*(op.Cast(given(node, i), to=int(ir.DataType.FLOAT)) for i in range(3)))
    return cast_like(op, y, start)


@rewrites("SpaceToDepth", since=28)
def space_to_depth(op: Op, node: ir.Node) -> Rewritten:
    """(N, C, h·b, w·b) -> (N, C·b·b, h, w); opset 18 has the order block, channel (DCR) alone"""
    if node.attributes.get_string("mode", "DCR") == "DCR":
        node.attributes.pop("mode", None)
        return None
    x, b = given(node, 0), node.attributes.get_int("blocksize")
    channels, height, width = (static_dim(node, x, axis) for axis in (1, 2, 3))
    parts = op.Reshape(x, [-1, channels, height // b, b, width // b, b])
    y = op.Transpose(parts, perm=[0, 1, 3, 5, 2, 4])
    return op.Reshape(y, [-1, channels * b * b, height // b, width // b])
