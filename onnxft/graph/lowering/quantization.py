"""Quantisation: 16-bit integers, blocks and other result types, none of which opset 18 has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op, constant
from onnxft.graph.lowering.registry import (
    Rewritten,
    dtype_of,
    given,
    inputs_of,
    refusal,
    rewrites,
    shape_of,
    static_dim,
)
from onnxft.graph.shapes import normalize_axis

_FLOAT = ir.DataType.FLOAT
_QUANTIZED = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}


@rewrites("DequantizeLinear", since=19)
def dequantize_linear(op: Op, node: ir.Node) -> Rewritten:
    """y = (x - zero) scale; scale a scalar, (channels,) or one value for each block of `block_size` along `axis`"""
    x, scale = given(node, 0), given(node, 1)
    zero = inputs_of(node, 3)[2]
    block = _take(node, "block_size")
    out = ir.DataType(_take(node, "output_dtype") or int(dtype_of(node, scale)))
    plain = dtype_of(node, x) in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
    if plain and not block and out == dtype_of(node, scale) == _FLOAT:
        return None
    number = op.Cast(x, to=int(ir.DataType.INT32))
    if zero is not None:
        number = op.Sub(number, op.Cast(_along(op, node, zero, x, block), to=int(ir.DataType.INT32)))
    # The result type is also that of the product.
    wide = op.Cast(_along(op, node, scale, x, block), to=int(out))
    return op.Mul(op.Cast(number, to=int(out)), wide)


@rewrites("QuantizeLinear", since=19)
def quantize_linear(op: Op, node: ir.Node) -> Rewritten:
    """y = saturate(round(x / scale) + zero)"""
    x, scale = given(node, 0), given(node, 1)
    zero = inputs_of(node, 3)[2]
    block, asked, precision = (_take(node, k) for k in ("block_size", "output_dtype", "precision"))
    _take(node, "saturate")  # speaks of 8-bit floats alone
    out = dtype_of(node, zero) if zero is not None else ir.DataType(asked or int(ir.DataType.UINT8))
    plain = out in (ir.DataType.INT8, ir.DataType.UINT8) and dtype_of(node, x) in (_FLOAT, ir.DataType.INT32)
    same = precision in (0, int(_FLOAT)) and dtype_of(node, scale) == _FLOAT
    if plain and same and not block and (zero is not None or out == ir.DataType.UINT8):
        return None
    if out not in _QUANTIZED:
        raise refusal(node, f"gives {out}, which opset 18 does not have", "Export the model unquantized")
    division = ir.DataType(precision or int(dtype_of(node, scale)))
    divisor = op.Cast(_along(op, node, scale, x, block), to=int(division))
    # float32 holds every 16-bit integer; float16 does not.
    y = op.Cast(op.Round(op.Div(op.Cast(x, to=int(division)), divisor)), to=int(_FLOAT))
    if zero is not None:
        y = op.Add(y, op.Cast(_along(op, node, zero, x, block), to=int(_FLOAT)))
    limits = np.iinfo(out.numpy())
    y = op.Clip(y, constant(op, float(limits.min), y), constant(op, float(limits.max), y))
    return op.Cast(y, to=int(out))


def _along(op: Op, node: ir.Node, value: ir.Value, x: ir.Value, block: int) -> ir.Value:
    """A scale or zero point so that it broadcasts to `x`."""
    shape, target = shape_of(node, value), shape_of(node, x)
    rank = len(target)
    axis = normalize_axis(node.attributes.get_int("axis", 1), rank)
    if block:
        if len(shape) != rank:
            raise refusal(node, f"has blocks but a scale {list(shape)} for {list(target)}", "Give one of equal rank")
        blocks = op.Unsqueeze(value, [axis + 1])
        repeats = [block if i == axis + 1 else 1 for i in range(rank + 1)]
        merged = [-1 if i == axis else 0 if i < axis else static_dim(node, value, i) for i in range(rank)]
        wide = op.Reshape(op.Tile(blocks, repeats), merged)
        return op.Slice(wide, [0], [static_dim(node, x, axis)], [axis])
    if len(shape) == 1 and shape != (1,):
        return op.Reshape(value, [-1 if i == axis else 1 for i in range(rank)])
    return value


def _take(node: ir.Node, name: str) -> int:
    """An integer attribute that opset 18 does not have, removed from the node; 0 where absent."""
    attribute = node.attributes.pop(name, None)
    return 0 if attribute is None else attribute.as_int()
