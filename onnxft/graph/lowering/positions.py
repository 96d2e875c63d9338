"""Rotary positions and the cache of keys and values."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.lowering.registry import Rewritten, given, inputs_of, places, refusal, rewrites, shape_of, static_dim
from onnxft.graph.shapes import normalize_axis, set_dims


@rewrites("RotaryEmbedding", since=23)
def rotary_embedding(op: Op, node: ir.Node) -> Rewritten:
    """(y₁, y₂) = (cos x₁ - sin x₂, sin x₁ + cos x₂); x (B, H, S, D) or (B, S, H·D), cos (B, S, D / 2)

    x₁ and x₂ are the halves of a head, or its even and odd places where it is interleaved.
    """
    x, cos, sin = (given(node, i) for i in range(3))
    positions = inputs_of(node, 4)[3]
    shape = shape_of(node, x)
    if len(shape) == 3:
        heads = node.attributes.get_int("num_heads", 0)
        if heads <= 0:
            raise refusal(node, "has a three-dimensional input without num_heads", "Export it with num_heads")
        size, head_axis = static_dim(node, x, 2) // heads, 2
        rows = op.Reshape(x, [0, 0, heads, size])
        set_dims(rows, [*shape[:2], heads, size])
    else:
        size, head_axis = static_dim(node, x, 3), 1
        rows = x
    turned = node.attributes.get_int("rotary_embedding_dim", 0) or size
    if positions is not None:
        cos, sin = op.Gather(cos, positions, axis=0), op.Gather(sin, positions, axis=0)
    cos, sin = op.Unsqueeze(cos, [head_axis]), op.Unsqueeze(sin, [head_axis])
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    half = turned // 2
    if interleaved:
        first, second = (op.Slice(rows, [start], [turned], [3], [2]) for start in (0, 1))
    else:
        first, second = (op.Slice(rows, [start], [start + half], [3]) for start in (0, half))
    real = op.Sub(op.Mul(cos, first), op.Mul(sin, second))
    imaginary = op.Add(op.Mul(sin, first), op.Mul(cos, second))
    if interleaved:
        pairs = op.Concat(op.Unsqueeze(real, [-1]), op.Unsqueeze(imaginary, [-1]), axis=-1)
        y = op.Reshape(pairs, [0, 0, 0, turned])
        parts = [y]
    else:
        parts = [real, imaginary]
    if turned < size:
        parts.append(op.Slice(rows, [turned], [size], [3]))
    y = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=-1)
    if len(shape) == 3:
        y = op.Reshape(y, [0, 0, shape[2]])
    set_dims(y, shape)
    return y


@rewrites("TensorScatter", since=24)
def tensor_scatter(op: Op, node: ir.Node) -> Rewritten:
    """cache[b, ..., start[b] + s, ...] = update[b, ..., s, ...], modulo the size of the cache where it is circular"""
    cache, update = given(node, 0), given(node, 1)
    start = inputs_of(node, 3)[2]
    shape = shape_of(node, update)
    rank = len(shape)
    axis = normalize_axis(node.attributes.get_int("axis", -2), rank)
    index = places(op, node, update, axis, [i for i in range(rank) if i != axis])
    if start is not None:
        index = op.Add(index, op.Reshape(start, [-1] + [1] * (rank - 1)))
    if node.attributes.get_string("mode", "linear") == "circular":
        index = op.Mod(index, op.Shape(cache, start=axis, end=axis + 1))
    y = op.ScatterElements(cache, op.Expand(index, op.Shape(update)), update, axis=axis)
    set_dims(y, shape_of(node, cache))
    return y
