"""Attention 23 to 28 as products and a softmax.

B batch, H query heads, G key heads, S query positions, T key positions, D size of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.graph.builder import Op, cast_like, constant, dims_equal
from onnxft.graph.lowering.registry import (
    Rewritten,
    dtype_of,
    given,
    inputs_of,
    places,
    refusal,
    rewrites,
    shape_of,
    static_dim,
    wanted,
)
from onnxft.graph.shapes import Dim, set_dims

RAW, CAPPED, BIASED, PROBABILITIES = range(4)
"""What the fourth output is (`qk_matmul_output_mode`)."""


@rewrites("Attention", since=23)
def attention(op: Op, node: ir.Node) -> Rewritten:
    """y = softmax(cap(q kᵀ · scale) + bias) v; q (B, H, S, D) or (B, S, H·D), H a multiple of G"""
    mask, past_key, past_value, valid = inputs_of(node, 7)[3:]
    packed = len(shape_of(node, given(node, 0))) == 3
    q, k, v = (_heads(op, node, i) for i in range(3))
    present_key = op.Concat(past_key, k, axis=2) if past_key is not None else k
    present_value = op.Concat(past_value, v, axis=2) if past_value is not None else v
    scores = Scores(op, node, q, present_key)
    raw = scores.products()
    capped = _capped(op, raw, node.attributes.get_float("softcap", 0.0))
    bias = scores.bias(mask, past_key, valid)
    biased = capped if bias is None else op.Add(capped, bias)
    dead = live = None
    if bias is not None and scores.rows_may_be_dead:
        # A row that may attend to nothing gives 0; its scores stay finite so that its gradient is 0 too.
        dead = op.Equal(op.ReduceMax(bias, [-1], keepdims=1), constant(op, -math.inf, bias))
        live = op.Add(capped, op.Where(dead, constant(op, 0.0, bias), bias))
    p = _softmax(op, node, biased if live is None else live)
    y = scores.weighted(p, present_value)
    if dead is not None:
        y = op.Where(dead, constant(op, 0.0, y), y)
    if packed:
        y = _packed(op, node, y)
    shown = None
    if wanted(node, 3):
        mode = node.attributes.get_int("qk_matmul_output_mode", RAW)
        if mode == PROBABILITIES and dead is not None:
            p = op.Where(dead, constant(op, 0.0, p), p)
        shown = {RAW: raw, CAPPED: capped, BIASED: biased, PROBABILITIES: p}[mode]
    return [y, present_key, present_value, shown][: len(node.outputs)]


@dataclass
class Scores:
    """The scores (B, H, S, T) of one node, whose key heads may each serve several query heads."""

    op: Op
    node: ir.Node
    q: ir.Value
    k: ir.Value
    rows_may_be_dead: bool = False
    """Whether a mask may forbid a query every key."""

    def __post_init__(self) -> None:
        """Sizes."""
        self.heads, self.size = (static_dim(self.node, self.q, axis) for axis in (1, 3))
        self.key_heads = static_dim(self.node, self.k, 1)
        self.queries, self.keys = shape_of(self.node, self.q)[2], shape_of(self.node, self.k)[2]
        if self.heads % self.key_heads:
            raise refusal(
                self.node, f"has {self.heads} query heads for {self.key_heads} key heads", "Choose a multiple"
            )

    def products(self) -> ir.Value:
        """q kᵀ · scale"""
        scale = self.node.attributes.get_float("scale", 1.0 / math.sqrt(self.size))
        q = self.q if scale == 1.0 else self.op.Mul(self.q, scale)
        y = self.op.MatMul(self._grouped(q), self.op.Transpose(self.k, perm=[0, 1, 3, 2]))
        return self._ungrouped(y, self.keys)

    def weighted(self, p: ir.Value, v: ir.Value) -> ir.Value:
        """p v"""
        y = self.op.MatMul(self._grouped(p), v)
        return self._ungrouped(y, shape_of(self.node, v)[3])

    def bias(self, mask: ir.Value | None, past_key: ir.Value | None, valid: ir.Value | None) -> ir.Value | None:
        """What is added to the scores: 0 and -inf of everything that forbids, and a mask of floats."""
        op, node = self.op, self.node
        if mask is not None:
            mask = self._full_length(mask)
        allowed = [m for m in [mask] if m is not None and m.dtype == ir.DataType.BOOL]
        causal = bool(node.attributes.get_int("is_causal", 0))
        left, right = (node.attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right"))
        ahead = 0 if causal else None if right < 0 else right
        if causal and right >= 0:
            ahead = min(0, right)
        behind = None if left < 0 else left
        self.rows_may_be_dead = mask is not None or valid is not None or ahead not in (None, 0) or behind is not None
        if ahead is not None or behind is not None:
            distance = self._distance(past_key, valid)
            # ahead: j - i <= ahead; behind: i - j <= behind
            if ahead is not None:
                allowed.append(op.LessOrEqual(distance, ahead))
            if behind is not None:
                allowed.append(op.GreaterOrEqual(distance, -behind))
        if valid is not None:
            allowed.append(op.Less(places(op, node, self.k, 2), op.Reshape(valid, [-1, 1, 1, 1])))
        total = None
        if allowed:
            every = allowed[0]
            for other in allowed[1:]:
                every = op.And(every, other)
            total = op.Where(every, constant(op, 0.0, self.q), constant(op, -math.inf, self.q))
        if mask is not None and mask.dtype != ir.DataType.BOOL:
            mask = cast_like(op, mask, self.q)
            total = mask if total is None else op.Add(total, mask)
        return total

    def _distance(self, past_key: ir.Value | None, valid: ir.Value | None) -> ir.Value:
        """j - (i + offset) for query i and key j: (S, T), or (B, 1, S, T) where `valid` (B,) gives the offset."""
        op, node = self.op, self.node
        distance = op.Sub(places(op, node, self.k, 2, [0]), places(op, node, self.q, 2, [1]))
        if past_key is not None:
            past = shape_of(node, past_key)[2]
            return op.Sub(distance, past if isinstance(past, int) else op.Shape(past_key, start=2, end=3))
        if valid is not None:
            queries = self.queries if isinstance(self.queries, int) else op.Shape(self.q, start=2, end=3)
            return op.Sub(distance, op.Reshape(op.Sub(valid, queries), [-1, 1, 1, 1]))
        return distance

    def _full_length(self, mask: ir.Value) -> ir.Value:
        """A mask that ends before the keys forbids the rest."""
        op, shape = self.op, shape_of(self.node, mask)
        if shape[-1] == self.keys and shape[-1] is not None:
            return mask
        missing = op.Sub(op.Shape(self.k, start=2, end=3), op.Shape(mask, start=-1))
        if isinstance(shape[-1], int) and isinstance(self.keys, int):
            missing = constant(op, [self.keys - shape[-1]], missing)
        front = constant(op, [0] * (2 * len(shape) - 1), missing)
        pads = op.Concat(front, missing, axis=0)
        fill = constant(op, False if mask.dtype == ir.DataType.BOOL else -math.inf, mask)
        padded = op.Pad(mask, pads, fill)
        set_dims(padded, [*shape[:-1], self.keys])
        return padded

    def _grouped(self, x: ir.Value) -> ir.Value:
        """(B, H, S, ...) as (B, G, H / G · S, ...): one product then serves all query heads of a key head."""
        if self.heads == self.key_heads:
            return x
        rows = self.heads // self.key_heads * self.queries if isinstance(self.queries, int) else -1
        y = self.op.Reshape(x, [0, self.key_heads, rows, 0])
        shape = shape_of(self.node, x)
        set_dims(y, [shape[0], self.key_heads, rows if rows > 0 else None, shape[3]])
        return y

    def _ungrouped(self, x: ir.Value, last: Dim) -> ir.Value:
        shape: list[Dim] = [shape_of(self.node, self.q)[0], self.heads, self.queries, last]
        if self.heads != self.key_heads:
            x = self.op.Reshape(x, [0, self.heads, self.queries if isinstance(self.queries, int) else -1, 0])
        if not dims_equal(x, shape):
            set_dims(x, shape)
        return x


def _heads(op: Op, node: ir.Node, index: int) -> ir.Value:
    """q, k or v as (B, heads, positions, size)."""
    x = given(node, index)
    if len(shape_of(node, x)) == 4:
        return x
    name = "q_num_heads" if index == 0 else "kv_num_heads"
    heads = node.attributes.get_int(name, 0)
    if heads <= 0:
        raise refusal(node, f"has three-dimensional inputs without {name}", "Export it with the number of heads")
    return split_heads(op, node, x, heads)


def split_heads(op: Op, node: ir.Node, x: ir.Value, heads: int) -> ir.Value:
    """(B, S, H·D) as (B, H, S, D)."""
    size = static_dim(node, x, 2) // heads
    y = op.Reshape(x, [0, 0, heads, size])
    set_dims(y, [*shape_of(node, x)[:2], heads, size])
    return op.Transpose(y, perm=[0, 2, 1, 3])


def _packed(op: Op, node: ir.Node, x: ir.Value) -> ir.Value:
    """(B, H, S, D) as (B, S, H·D)."""
    batch, heads, positions, size = shape_of(node, x)
    assert isinstance(heads, int)
    whole = heads * size if isinstance(size, int) else -1
    y = op.Reshape(op.Transpose(x, perm=[0, 2, 1, 3]), [0, 0, whole])
    set_dims(y, [batch, positions, whole if whole > 0 else None])
    return y


def _capped(op: Op, x: ir.Value, cap: float) -> ir.Value:
    return op.Mul(op.Tanh(op.Div(x, cap)), cap) if cap > 0 else x


def _softmax(op: Op, node: ir.Node, x: ir.Value) -> ir.Value:
    precision = node.attributes.get_int("softmax_precision", 0)
    if not precision or precision == int(dtype_of(node, x)):
        return op.Softmax(x, axis=-1)
    return cast_like(op, op.Softmax(op.Cast(x, to=precision), axis=-1), x)
