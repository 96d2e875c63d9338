"""Products, convolutions and BERT layers that ONNX Runtime and optimum fuse (domain com.microsoft)."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, constant, swap_last_two
from onnxft.graph.lowering.attention import split_heads
from onnxft.graph.lowering.registry import (
    MICROSOFT,
    Rewritten,
    given,
    inputs_of,
    places,
    refusal,
    rewrites,
    shape_of,
    static_dim,
    wanted,
)
from onnxft.graph.shapes import set_dims

_ACTIVATIONS = {
    # activation: names of its parameters, in the order of activation_params
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "Softsign": (),
    "HardSwish": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}
_UNFUSED = "Export the model without runtime optimizations"


@rewrites("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(op: Op, node: ir.Node) -> Rewritten:
    """y = α a b, each transposed in its last two axes where asked for"""
    if any(node.attributes.get_int(k, 0) for k in ("transBatchA", "transBatchB")):
        raise refusal(node, "transposes batch axes", _UNFUSED)
    a, b = given(node, 0), given(node, 1)
    if node.attributes.get_int("transA", 0) and len(shape_of(node, a)) > 1:
        a = swap_last_two(op, a)
    if node.attributes.get_int("transB", 0) and len(shape_of(node, b)) > 1:
        b = swap_last_two(op, b)
    alpha = node.attributes.get_float("alpha", 1.0)
    y = op.MatMul(a, b)
    return y if alpha == 1.0 else op.Mul(y, alpha)


@rewrites("FusedGemm", domain=MICROSOFT)
def fused_gemm(op: Op, node: ir.Node) -> Rewritten:
    """y = activation(Gemm(a, b, c))"""
    options = {k: a for k, a in node.attributes.items() if k in ("alpha", "beta", "transA", "transB")}
    y = op.Gemm(*node.inputs, **{k: a.value for k, a in options.items()})
    parameters = [
        node.attributes.get_float(f"activation_{k}") for k in ("alpha", "beta") if f"activation_{k}" in node.attributes
    ]
    return _activated(op, node, y, parameters)


@rewrites("FusedConv", domain=MICROSOFT)
def fused_conv(op: Op, node: ir.Node) -> Rewritten:
    """y = activation(Conv(x, w, b) + z)"""
    x, w, b, z = inputs_of(node, 4)
    options = {k: a.value for k, a in node.attributes.items() if not k.startswith("activation")}
    y = op.Conv(*[v for v in (x, w, b) if v is not None], **options)
    if z is not None:
        y = op.Add(y, z)
    return _activated(op, node, y, list(node.attributes.get_floats("activation_params", [])))


def _activated(op: Op, node: ir.Node, x: ir.Value, parameters: list[float]) -> ir.Value:
    name = node.attributes.get_string("activation", "")
    if not name:
        return x
    if name == "Clip":
        low, high = parameters
        return op.Clip(x, constant(op, low, x), constant(op, high, x))
    if name not in _ACTIVATIONS:
        raise refusal(node, f"has the unknown activation '{name}'", _UNFUSED)
    return getattr(op, name)(x, **dict(zip(_ACTIVATIONS[name], parameters, strict=False)))  # type: ignore[no-any-return]


@rewrites("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(op: Op, node: ir.Node) -> Rewritten:
    """y = LayerNormalization(s), s = words[ids] + positions[0, 1, ...] + segments[segment ids]; number of tokens; s"""
    ids, segment_ids, words, table, segments, scale, beta, mask, positions = inputs_of(node, 9)
    assert words is not None and table is not None and ids is not None
    if positions is None:
        positions = places(op, node, ids, 1, [0])
    total = op.Add(op.Gather(words, ids, axis=0), op.Gather(table, positions, axis=0))
    if segments is not None and segment_ids is not None:
        total = op.Add(total, op.Gather(segments, segment_ids, axis=0))
    y = op.LayerNormalization(total, scale, beta, axis=-1, epsilon=node.attributes.get_float("epsilon", 1e-12))
    number = None
    if wanted(node, 1):
        # Without a mask the number is 0, as the runtime has it.
        none = op.Expand(constant(op, [0], ids), op.Shape(ids, start=0, end=1))
        number = none if mask is None else op.ReduceSum(mask, [1], keepdims=0)
    return [y, number, total][: len(node.outputs)]


@rewrites("Attention", domain=MICROSOFT)
def bert_attention(op: Op, node: ir.Node) -> Rewritten:
    """q, k, v = x w + b in one product; y = softmax(q kᵀ · scale + bias) v; x (B, S, E), w (E, 3 H D)"""
    x, w, b, mask, past, bias, length = inputs_of(node, 7)
    assert x is not None and w is not None
    if past is not None or length is not None or node.attributes.get_int("do_rotary", 0) > 0 or wanted(node, 1):
        raise refusal(node, "keeps keys and values or rotates them", _UNFUSED)
    heads = node.attributes.get_int("num_heads")
    width = static_dim(node, w, 1)
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", [])) or [width // 3] * 3
    joined = op.MatMul(x, w)
    if b is not None:
        joined = op.Add(joined, b)
    set_dims(joined, [*shape_of(node, x)[:2], width])
    parts = op.Split(joined, sizes, axis=2, _outputs=3)
    q, k, v = (split_heads(op, node, part, heads) for part in parts)  # type: ignore[attr-defined]
    scale = node.attributes.get_float("scale", 0.0) or 1.0 / math.sqrt(sizes[0] // heads)
    scores = op.MatMul(op.Mul(q, scale), op.Transpose(k, perm=[0, 1, 3, 2]))
    for part in (_mask_bias(op, node, x, mask), _causal_bias(op, node, x), bias):
        if part is not None:
            scores = op.Add(scores, part)
    y = op.Transpose(op.MatMul(op.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = op.Reshape(y, [0, 0, sizes[2]])
    set_dims(y, [*shape_of(node, x)[:2], sizes[2]])
    return [y, None][: len(node.outputs)]


def _mask_bias(op: Op, node: ir.Node, x: ir.Value, mask: ir.Value | None) -> ir.Value | None:
    """0 or `mask_filter_value`, from a mask (B, S) or (B, S, S) of 0 and 1, or from the number of tokens (B,)."""
    if mask is None:
        return None
    match len(shape_of(node, mask)):
        case 1:
            # Also (2 B,) and (3 B + 2,) are written; the batch tells them apart.
            if shape_of(node, mask)[0] != shape_of(node, x)[0]:
                raise refusal(node, f"has a mask index {list(shape_of(node, mask))}, not one number a row", _UNFUSED)
            count = op.Reshape(op.Cast(mask, to=int(ir.DataType.INT64)), [-1, 1])
            seen = op.Unsqueeze(op.Less(places(op, node, x, 1), count), [1, 2])
        case 2:
            seen = op.Unsqueeze(op.Greater(mask, 0), [1, 2])
        case 3:
            seen = op.Unsqueeze(op.Greater(mask, 0), [1])
        case rank:
            raise refusal(node, f"has a mask of rank {rank}", _UNFUSED)
    low = constant(op, node.attributes.get_float("mask_filter_value", -10000.0), x)
    return op.Where(seen, constant(op, 0.0, x), low)


def _causal_bias(op: Op, node: ir.Node, x: ir.Value) -> ir.Value | None:
    if not node.attributes.get_int("unidirectional", 0):
        return None
    at = places(op, node, x, 1)
    seen = op.LessOrEqual(at, places(op, node, x, 1, [1]))
    return op.Where(seen, constant(op, 0.0, x), constant(op, float(np.finfo(np.float32).min), x))
