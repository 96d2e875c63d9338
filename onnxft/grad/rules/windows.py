"""Sliding windows along one axis, and their adjoint: what convolution, pooling and Slice share.

A window reads position `o * stride + i * dilation - begin` for output o and tap i; positions outside
the axis are padding. Windows over several axes are windows along one axis after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxft.errors import GradientError
from onnxft.graph.builder import Op, pad_axis, reshape, slice_axis, zeros_like
from onnxft.graph.shapes import dims, static_dims


@dataclass(frozen=True)
class Window:
    """A window along one axis."""

    axis: int
    size: int
    """Length of the axis."""
    outputs: int
    """Number of positions the window takes."""
    kernel: int = 1
    """Number of taps."""
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    """Padding before the axis; negative where the first positions are skipped."""

    @property
    def extent(self) -> int:
        """Length of the padded axis that is read."""
        return (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    @property
    def end(self) -> int:
        """Padding read after the axis; negative where its last positions are not read."""
        return self.extent - self.begin - self.size


def windows(node: ir.Node, x: ir.Value, y: ir.Value, kernel: Sequence[int]) -> list[Window]:
    """The windows of a convolution or pooling node from `x` to `y`, one for each spatial axis.

    The number of positions is read from the shape of `y`. GradientError where that shape is not the runtime's.
    """
    n = len(kernel)
    strides = node.attributes.get_ints("strides") or [1] * n
    dilations = node.attributes.get_ints("dilations") or [1] * n
    pads = node.attributes.get_ints("pads") or [0] * (2 * n)
    extra = node.attributes.get_ints("output_padding") or [0] * n
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    found = []
    for i, (size, outputs) in enumerate(zip(static_dims(x, 2), static_dims(y, 2), strict=True)):
        window = Window(i + 2, size, outputs, kernel[i], strides[i], dilations[i])
        missing = max(0, window.extent + extra[i] - size)
        if node.attributes.get_int("ceil_mode", 0) and (outputs - 1) * strides[i] >= size + pads[i]:
            raise GradientError(
                f"the last window of {node.op_type} '{node.name}' starts behind its input {list(dims(x))}. Runtimes "
                "drop such a window, but shape inference counts it. Use ceil_mode = 0, or other pads."
            )
        begin = {"NOTSET": pads[i], "VALID": 0, "SAME_UPPER": missing // 2, "SAME_LOWER": (missing + 1) // 2}[auto_pad]
        found.append(Window(i + 2, size, outputs, kernel[i], strides[i], dilations[i], begin))
    return found


def taps(op: Op, x: ir.Value, w: Window, fill: ir.Value | None = None) -> list[ir.Value]:
    """For each tap i the values x[o * stride + i * dilation - begin] for all o; `fill` (or 0) in the padding."""
    padded = _fit(op, x, w.axis, -w.begin, w.extent, fill)
    last = (w.outputs - 1) * w.stride + 1
    return [slice_axis(op, padded, w.axis, i, i + last, w.stride) for i in range(0, w.kernel * w.dilation, w.dilation)]


def add_taps(op: Op, parts: Sequence[ir.Value], w: Window) -> ir.Value:
    """The adjoint of `taps`: dx[t] = sum of parts[i][o] over all o and i with o * stride + i * dilation - begin = t.

    Positions t with the same remainder of (t + begin) / stride form a phase. Within a phase the taps are
    shifted and summed; then the phases are interleaved. So nothing is stretched by zeros for each tap.
    """
    slots = -(-w.extent // w.stride)
    phases: dict[int, ir.Value] = {}
    for i, part in enumerate(parts):
        shift, phase = divmod(i * w.dilation, w.stride)
        part = pad_axis(op, part, w.axis, shift, slots - w.outputs - shift)
        phases[phase] = op.Add(phases[phase], part) if phase in phases else part
    return _fit(op, _interleave(op, phases, w), w.axis, w.begin, w.size)


def _interleave(op: Op, phases: dict[int, ir.Value], w: Window) -> ir.Value:
    """(..., slots, ...) for each phase -> (..., slots * stride, ...)"""
    if w.stride == 1:
        return phases[0]
    shape = list(dims(phases[0]))
    present = max(phases) + 1
    columns = [
        op.Unsqueeze(phases[p] if p in phases else zeros_like(op, phases[0]), [w.axis + 1]) for p in range(present)
    ]
    stacked = op.Concat(*columns, axis=w.axis + 1) if present > 1 else columns[0]
    stacked = pad_axis(op, stacked, w.axis + 1, 0, w.stride - present)
    slots = static_dims(phases[0], w.axis, w.axis + 1)[0]
    shape[w.axis] = slots * w.stride
    return reshape(op, stacked, shape)


def _fit(op: Op, x: ir.Value, axis: int, start: int, length: int, fill: ir.Value | None = None) -> ir.Value:
    """Positions start to start + length of `axis`, of which those outside `x` are `fill` (or 0)."""
    (size,) = static_dims(x, axis, axis + 1)
    first, stop = max(start, 0), min(start + length, size)
    inner = slice_axis(op, x, axis, first, stop)
    return pad_axis(op, inner, axis, first - start, start + length - stop, fill)
