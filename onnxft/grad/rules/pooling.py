"""Pooling. Windows over several axes are taken one axis after another, so k x k taps cost 2 * k."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.grad.rules.windows import Window, add_taps, taps, windows
from onnxft.graph.builder import Op, constant, expand_like, reshape, static_ints
from onnxft.graph.shapes import dims, static_dims


@vjp("MaxPool")
def max_pool(op: Op, node: ir.Node, dy: ir.Value | None, *_: ir.Value | None) -> Gradients:
    """y = max over the taps of x      dx: each dy goes to the first tap that equals y, as in torch

    With several axes the maximum is taken along the last axis first and along axis 2 last. Going
    back, the first row that holds the maximum is found first and then the first column in it: which
    is the first place in row-major order.
    """
    (x,), y = node.inputs, node.outputs[0]
    assert x is not None and x.dtype is not None and dy is not None
    lowest = constant(op, np.finfo(x.dtype.numpy()).min, x)
    stages, rows = [], x
    for window in reversed(windows(node, x, y, node.attributes.get_ints("kernel_shape"))):
        candidates = taps(op, rows, window, lowest)
        rows = op.Max(*candidates) if window.axis > 2 else y
        stages.append((window, candidates, rows))
    for window, candidates, best in reversed(stages):
        dy = add_taps(op, _to_first(op, dy, candidates, best), window)
    return (dy,)


def _to_first(op: Op, dy: ir.Value, candidates: list[ir.Value], best: ir.Value) -> list[ir.Value]:
    """For each candidate dy where it is the first that equals `best`, else 0."""
    parts, rest = [], dy
    for candidate in candidates:
        hit = op.Equal(candidate, best)
        parts.append(op.Where(hit, rest, 0.0))
        rest = op.Where(hit, 0.0, rest)
    return parts


@vjp("AveragePool")
def average_pool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum over the taps of x / n      dx = sum over the taps of dy / n

    n counts the taps inside x, or inside x and its padding (count_include_pad).
    """
    (x,), (y,) = node.inputs, node.outputs
    assert x is not None
    padding = node.attributes.get_int("count_include_pad", 0)
    pads = node.attributes.get_ints("pads") or []
    found = windows(node, x, y, node.attributes.get_ints("kernel_shape"))
    counts = np.ones([1, 1], np.int64)
    for i, w in enumerate(found):
        after = pads[len(found) + i] if pads else max(0, w.end)
        counts = np.multiply.outer(counts, _counts(w, w.begin, after) if padding else _counts(w, 0, 0))
    dx = op.Div(dy, constant(op, counts, dy))
    for w in reversed(found):
        dx = add_taps(op, [dx] * w.kernel, w)
    return (dx,)


def _counts(w: Window, before: int, after: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each position the number of taps that lie in the axis extended by `before` and `after`."""
    starts = np.arange(w.outputs) * w.stride - w.begin
    positions = starts[:, None] + np.arange(w.kernel) * w.dilation
    counts: np.ndarray[tuple[int], np.dtype[np.int64]] = np.sum(
        (positions >= -before) & (positions < w.size + after), axis=1
    )
    return counts


@vjp("LpPool")
def lp_pool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (sum over the taps of |x|^p)^(1/p)      dx = sign(x) * |x|^(p - 1) * (sum over the taps of dy * y^(1 - p))

    0 where y = 0. y^(1 - p) is finite elsewhere: y^p did not vanish in the forward sum.
    """
    (x,), (y,) = node.inputs, node.outputs
    assert x is not None
    p = _norm_order(node)
    zero = op.Equal(y, 0.0)
    dx = op.Where(zero, 0.0, op.Mul(dy, op.Pow(op.Where(zero, 1.0, y), float(1 - p))))
    for w in reversed(windows(node, x, y, node.attributes.get_ints("kernel_shape"))):
        dx = add_taps(op, [dx] * w.kernel, w)
    return (op.Mul(dx, op.Mul(op.Sign(x), op.Pow(op.Abs(x), float(p - 1)))),)


@vjp("MaxUnpool")
def max_unpool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 0 but for y[indices[i]] = x[i], over the values of y in order      dx[i] = dy[indices[i]]"""
    x, indices, *output_shape = node.inputs
    assert x is not None
    if output_shape and output_shape[0] is not None:
        _refuse_padded_unpool(node, x)
    return (op.Gather(reshape(op, dy, [None]), indices), *[None] * (len(node.inputs) - 1))


def _refuse_padded_unpool(node: ir.Node, x: ir.Value) -> None:
    """GradientError where an output_shape is not the one that kernel, strides and pads give."""
    kernel = node.attributes.get_ints("kernel_shape")
    n = len(kernel)
    strides, pads = node.attributes.get_ints("strides") or [1] * n, node.attributes.get_ints("pads") or [0] * (2 * n)
    own = [(s - 1) * strides[i] - pads[i] - pads[i + n] + kernel[i] for i, s in enumerate(static_dims(x, 2))]
    given = list(static_dims(node.outputs[0], 2))
    if given != own:
        raise GradientError(
            f"MaxUnpool '{node.name}' is given the output_shape {given}, where its own is {own}. The standard takes "
            "indices for places in the latter, ONNX Runtime in the former. Leave output_shape out, and Pad after it."
        )


@vjp("Col2Im")
def col2im(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum of the blocks that the columns of x are      dx = the blocks of dy as columns

    `x` (batch, channels * taps, blocks), `y` (batch, channels, space...).
    """
    x = node.inputs[0]
    assert x is not None
    image, kernel = static_ints(node, 1) or [], static_ints(node, 2) or []
    n = len(kernel)
    strides = node.attributes.get_ints("strides") or [1] * n
    dilations = node.attributes.get_ints("dilations") or [1] * n
    pads = node.attributes.get_ints("pads") or [0] * (2 * n)
    columns = dy
    for i in range(n):  # (batch, channels, i taps, i outputs, space left...)
        room = image[i] + pads[i] + pads[i + n] - dilations[i] * (kernel[i] - 1) - 1
        outputs = room // strides[i] + 1
        window = Window(2 + 2 * i, image[i], outputs, kernel[i], strides[i], dilations[i], pads[i])
        parts = [op.Unsqueeze(part, [2 + i]) for part in taps(op, columns, window)]
        columns = op.Concat(*parts, axis=2 + i) if len(parts) > 1 else parts[0]
    return reshape(op, columns, dims(x)), None, None


@vjp("GlobalAveragePool")
def global_average_pool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum over space of x / n      dx = dy / n"""
    (x,) = node.inputs
    assert x is not None
    n = float(np.prod(static_dims(x, 2)))
    return (expand_like(op, op.Mul(dy, 1.0 / n), x),)


@vjp("GlobalMaxPool")
def global_max_pool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max over space of x      dx: dy goes to the first place that equals y, as torch.adaptive_max_pool does"""
    (x,) = node.inputs
    assert x is not None
    n = int(np.prod(static_dims(x, 2)))
    batch, channels = dims(x)[:2]
    first = op.ArgMax(reshape(op, x, [batch, channels, n]), axis=2, keepdims=1)
    hit = op.Equal(first, list(range(n)))
    return (reshape(op, op.Where(hit, reshape(op, dy, [batch, channels, 1]), 0.0), dims(x)),)


@vjp("GlobalLpPool")
def global_lp_pool(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (sum over space of |x|^p)^(1/p)      dx = dy * sign(x) * (|x| / y)^(p - 1), and 0 where y = 0"""
    (x,), (y,) = node.inputs, node.outputs
    p = _norm_order(node)
    scale = op.Where(op.Equal(y, 0.0), 1.0, y)
    ratio = op.Pow(op.Div(op.Abs(x), scale), float(p - 1))
    return (op.Mul(dy, op.Mul(op.Sign(x), ratio)),)


def _norm_order(node: ir.Node) -> int:
    p = node.attributes.get_int("p", 2)
    if p < 1:
        raise GradientError(f"{node.op_type} '{node.name}' has p = {p}; its rule needs p >= 1")
    return p
