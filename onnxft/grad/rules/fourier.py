"""Fourier transforms. A complex number is two floats on the last axis.

F is the matrix of the transform and F^H its adjoint. F is symmetric, so F^H is its conjugate, which is n times the
inverse transform.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.grad.registry import Gradients, vjp
from onnxft.graph.builder import Op, expand_like, pad_axis, reshape, slice_axis, static_ints, table, zeros_like
from onnxft.graph.shapes import dims, normalize_axis, static_dims


@vjp("DFT")
def dft(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = F x along axis, or F^H x / n (inverse)      dx = F^H dy, or F dy / n

    Case 1: x is real: the real part of dx.
    Case 2: onesided: the rows that y lacks count as zeros.
    Case 3: x was padded or cut to n = dft_length: dx is cut or padded.
    """
    x = node.inputs[0]
    assert x is not None
    rank = len(dims(x))
    axis = normalize_axis(node.attributes.get_int("axis", 1), rank)
    inverse = node.attributes.get_int("inverse", 0)
    (size,) = static_dims(x, axis, axis + 1)
    (n,) = static_ints(node, 1) or [size]
    if node.attributes.get_int("onesided", 0):
        if inverse:
            raise GradientError(
                f"DFT '{node.name}' is inverse and onesided, which opset 18 leaves undefined; export irfft another way"
            )
        dy = pad_axis(op, dy, axis, 0, n - (n // 2 + 1))
    dx = op.Mul(op.DFT(dy, axis=axis, inverse=1 - inverse), 1.0 / n if inverse else float(n))
    dx = slice_axis(op, dx, rank - 1, 0, static_dims(x, rank - 1)[0])
    dx = pad_axis(op, slice_axis(op, dx, axis, 0, min(size, n)), axis, 0, max(size - n, 0))
    return [dx, None][: len(node.inputs)]


@vjp("STFT")
def stft(op: Op, node: ir.Node, dy: ir.Value) -> Gradients:
    """y[f] = F (window * x[f * step : f * step + n])      dx[f * step : f * step + n] += window * (F^H dy[f])

    dwindow = sum over the frames and the batch of x[f * step : f * step + n] * (F^H dy[f])

    `x` (batch, length, 1) or (batch, length, 2), `window` (n,), `y` (batch, frames, n or n // 2 + 1, 2).
    """
    x, _step, window, *_length = [*node.inputs, None, None][:4]
    assert x is not None
    (step,) = static_ints(node, 1) or [1]
    (n,) = static_dims(window) if window is not None else static_ints(node, 3) or [0]
    length, parts = static_dims(x, 1)
    frames = (length - n) // step + 1
    if node.attributes.get_int("onesided", 1):
        dy = pad_axis(op, dy, 2, 0, n - (n // 2 + 1))
    back = slice_axis(op, op.Mul(op.DFT(dy, axis=2, inverse=1), float(n)), 3, 0, parts)  # (batch, frames, n, parts)
    places = np.arange(frames)[:, None] * step + np.arange(n)
    dwindow = None
    if window is not None:
        read = op.Gather(x, table(op, places), axis=1)
        dwindow = op.ReduceSum(op.Mul(read, back), [0, 1, 3], keepdims=0)
        back = op.Mul(back, reshape(op, window, [n, 1]))
    back = reshape(op, back, [dims(x)[0], frames * n, parts])
    rows = table(op, places.reshape(1, -1, 1))
    dx = op.ScatterElements(zeros_like(op, x), expand_like(op, rows, back), back, axis=1, reduction="add")
    return [dx, None, dwindow, None][: len(node.inputs)]
