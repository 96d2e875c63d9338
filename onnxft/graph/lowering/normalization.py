"""Normalisation newer than opset 18, and the kinds that runtimes fuse."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.graph.builder import Op, cast_like, constant, per_channel, reshape_like
from onnxft.graph.lowering.registry import (
    MICROSOFT,
    Rewritten,
    dtype_of,
    given,
    inputs_of,
    refusal,
    rewrites,
    shape_of,
    static_dim,
    wanted,
)
from onnxft.graph.shapes import normalize_axis


@rewrites("GroupNormalization", since=21)
def group_normalization(op: Op, node: ir.Node) -> Rewritten:
    """y = scale (x - mean) / √(var + ε) + bias over the channels of a group and their places; scale (channels,)"""
    x, scale, bias = (given(node, i) for i in range(3))
    groups = node.attributes.get_int("num_groups")
    wide = _stash(op, node, x)
    parts = _groups(op, node, wide, groups)
    ones, zeros = constant(op, [1.0] * groups, wide), constant(op, [0.0] * groups, wide)
    y = op.InstanceNormalization(parts, ones, zeros, epsilon=node.attributes.get_float("epsilon", 1e-5))
    y = cast_like(op, reshape_like(op, y, x), x)
    return op.Add(op.Mul(y, per_channel(op, scale, x)), per_channel(op, bias, x))


@rewrites("GroupNormalization", since=18, until=20)
def group_normalization_by_group(op: Op, node: ir.Node) -> Rewritten:
    """The deprecated form: scale (groups,), bias (groups,)"""
    x, scale, bias = (given(node, i) for i in range(3))
    parts = _groups(op, node, x, node.attributes.get_int("num_groups"))
    y = op.InstanceNormalization(parts, scale, bias, epsilon=node.attributes.get_float("epsilon", 1e-5))
    return reshape_like(op, y, x)


@rewrites("RMSNormalization", since=23)
def rms_normalization(op: Op, node: ir.Node) -> Rewritten:
    """y = scale x / √(mean(x²) + ε) over the axes from `axis` on"""
    return _rms(op, node, given(node, 0), given(node, 1), 1e-5)[0]


@rewrites("SimplifiedLayerNormalization")
@rewrites("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(op: Op, node: ir.Node) -> Rewritten:
    """RMSNormalization with 1 / √(mean(x²) + ε) as a second output"""
    y, inverse = _rms(op, node, given(node, 0), given(node, 1), 1e-5)
    return [y, inverse][: len(node.outputs)]


@rewrites("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(op: Op, node: ir.Node) -> Rewritten:
    """y = LayerNormalization(x + skip + bias); inputs x, skip, scale, beta, bias"""
    x, skip, _, beta, bias = inputs_of(node, 5)
    total = _total(op, x, skip, bias)
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    y = op.LayerNormalization(*[v for v in (total, given(node, 2), beta) if v is not None], axis=-1, epsilon=epsilon)
    return _skip_outputs(node, y, total)


@rewrites("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(op: Op, node: ir.Node) -> Rewritten:
    """y = RMSNormalization(x + skip + bias); inputs x, skip, scale, bias"""
    x, skip, _, bias = inputs_of(node, 4)
    total = _total(op, x, skip, bias)
    return _skip_outputs(node, _rms(op, node, total, given(node, 2), 1e-12)[0], total)


def _rms(op: Op, node: ir.Node, x: ir.Value, scale: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
    """(y, 1 / √(mean(x²) + ε)); the statistics are taken in the stash type."""
    rank = len(shape_of(node, x))
    axes = list(range(normalize_axis(node.attributes.get_int("axis", -1), rank), rank))
    wide = _stash(op, node, x)
    square = op.ReduceMean(op.Mul(wide, wide), axes, keepdims=1)
    root = op.Sqrt(op.Add(square, node.attributes.get_float("epsilon", epsilon)))
    return op.Mul(cast_like(op, op.Div(wide, root), scale), scale), op.Reciprocal(root)


def _stash(op: Op, node: ir.Node, x: ir.Value) -> ir.Value:
    """`x` as the first stage takes it: a narrow float is widened to the stash type, a wide one stays."""
    stash = ir.DataType(node.attributes.get_int("stash_type", 1))
    return op.Cast(x, to=int(stash)) if stash.itemsize > dtype_of(node, x).itemsize else x


def _groups(op: Op, node: ir.Node, x: ir.Value, groups: int) -> ir.Value:
    """`x` (batch, channels, ...) as (batch, groups, channels / groups · places)."""
    channels = static_dim(node, x, 1)
    if channels % groups:
        raise refusal(node, f"has {channels} channels for {groups} groups", "Choose a divisor of the channels")
    size: int = channels // groups
    for d in shape_of(node, x)[2:]:
        size = size * d if isinstance(d, int) and size > 0 else -1
    return op.Reshape(x, [0, groups, size])


def _total(op: Op, *parts: ir.Value | None) -> ir.Value:
    first, *others = [part for part in parts if part is not None]
    for part in others:
        first = op.Add(first, part)
    return first


def _skip_outputs(node: ir.Node, y: ir.Value, total: ir.Value) -> Rewritten:
    """y, mean, inverse deviation, sum: runtimes leave out the middle two."""
    if wanted(node, 1) or wanted(node, 2):
        raise refusal(
            node, "hands on its mean or deviation, which is not lowered", "Export without runtime optimizations"
        )
    return [y, None, None, total][: len(node.outputs)]
