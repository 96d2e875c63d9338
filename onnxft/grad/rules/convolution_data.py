"""The data gradient of a convolution.

dx[n, c, t] = sum over m, and over o and i with o * stride + i * dilation - begin = t, of dy[n, m, o] * w[m, c, i]

No formulation is fastest everywhere, so there are several, and `choose` picks one by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxft.grad.rules.convolution_matrix import data_by_matrix, fits_matrix
from onnxft.grad.rules.windows import Window
from onnxft.graph.builder import Op, constant, flip_axis, reshape
from onnxft.graph.shapes import static_dims

Variant = Callable[[Op, ir.Value, ir.Value, Sequence[Window], int], ir.Value]


def convolution_data(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx by the variant that `choose` names."""
    return choose(static_dims(w), over, group, _is_constant(w))(op, dy, w, over, group)


def choose(shape: Sequence[int], over: Sequence[Window], group: int, frozen: bool) -> Variant:
    """The variant for a weight of the given shape (G * M, C, *kernel); `frozen` says that it is constant."""
    # Where groups of several filters read one channel, the exchange of channels is a mere Reshape, and OpenVINO
    # (2025.4) does not open a model that has a constant product behind such a convolution.
    multiplied = group > 1 and shape[1] == 1 and shape[0] > group
    by_conv = runs_backwards(over) and (frozen or not multiplied)
    # A constant weight is reversed once, and the CPU provider has a fast kernel for it.
    if fits_matrix(shape, over, group) and not (frozen and by_conv):
        return data_by_matrix
    return data_by_conv if by_conv else data_by_conv_transpose


def runs_backwards(over: Sequence[Window]) -> bool:
    """Whether `data_by_conv` applies: it would need negative padding where a frame is wider than the kernel."""
    return all(v.stride == 1 and max(v.begin, v.end) <= _reach(v) for v in over)


def data_by_conv_transpose(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = conv^T(dy, w); output_padding stands for the positions that the last window does not reach."""
    w, over = apart(op, w, over, group)
    unread = [max(-v.end, 0) for v in over]
    dx: ir.Value = op.ConvTranspose(dy, w, group=group, pads=pads(over), output_padding=unread, **steps(over))
    return dx


def data_by_conv(op: Op, dy: ir.Value, w: ir.Value, over: Sequence[Window], group: int) -> ir.Value:
    """dx = conv(dy, w with its taps reversed and its channels exchanged), at stride 1

    Providers run Conv faster than ConvTranspose, and fold the reversed weight where it is frozen.
    """
    if all(v.kernel == 1 for v in over):  # nothing to reverse
        w, over = apart(op, w, over, group)
    m, c, *kernel = static_dims(w)
    rank = len(kernel)
    for axis, taps in enumerate(kernel, start=2):
        w = flip_axis(op, w, axis) if taps > 1 else w
    w = reshape(op, w, [group, m // group, c, *kernel])
    w = op.Transpose(w, perm=[0, 2, 1, *range(3, 3 + rank)])
    w = reshape(op, w, [group * c, m // group, *kernel])
    around = [_reach(v) - v.begin for v in over] + [_reach(v) - v.end for v in over]
    dx: ir.Value = op.Conv(dy, w, group=group, pads=around, dilations=[v.dilation for v in over])
    return dx


def apart(op: Op, w: ir.Value, over: Sequence[Window], group: int) -> tuple[ir.Value, Sequence[Window]]:
    """A computed weight in groups with a tap of zeros behind its last, and the windows of that kernel.

    OpenVINO (2025.4) moves a constant product behind a grouped convolution, as a frozen BatchNorm has it, into
    the reshaped weight, and does so for every convolution that reads the same one: the gradient would be scaled.
    With its own kernel size the weight is another one. (Pad would say it in a word, but ONNX Runtime 1.32 takes a
    Pad of the weight for one of the data, and fuses it into the Conv.)
    """
    if group == 1 or _is_constant(w):
        return w, over
    first, *others = over
    m, c, _, *kernel = static_dims(w)
    zeros = constant(op, np.zeros((m, c, 1, *kernel)), w)
    return op.Concat(w, zeros, axis=2), [replace(first, kernel=first.kernel + 1), *others]


def pads(over: Sequence[Window]) -> list[int]:
    """The attribute `pads` of a convolution with these windows."""
    return [v.begin for v in over] + [max(v.end, 0) for v in over]


def steps(over: Sequence[Window]) -> dict[str, list[int]]:
    """The attributes `strides` and `dilations`."""
    return {"strides": [v.stride for v in over], "dilations": [v.dilation for v in over]}


def _reach(v: Window) -> int:
    return (v.kernel - 1) * v.dilation


def _is_constant(w: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(w) is not None


VARIANTS: tuple[Variant, ...] = (data_by_conv, data_by_conv_transpose, data_by_matrix)
