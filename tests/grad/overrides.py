"""Operators that onnx's reference evaluator lacks, or does not compute as the standard and its float64 input ask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from reference_recurrent import GRU, LSTM, RNN, Scan
from torch.nn import functional

from onnxft.arrays import Array

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def lp_pool(x, kernel_shape, strides=None, pads=None, dilations=None, auto_pad="NOTSET", ceil_mode=0, p=2):
    """LpPool of a torch tensor by its formula: a sum of |x|^p over each window, padding counting as 0."""
    n = len(kernel_shape)
    strides, dilations, pads = strides or [1] * n, dilations or [1] * n, list(pads or [0] * 2 * n)
    for i, size in enumerate(x.shape[2:]):
        extent = (kernel_shape[i] - 1) * dilations[i] + 1
        if auto_pad.startswith("SAME"):
            missing = max(0, (-(-size // strides[i]) - 1) * strides[i] + extent - size)
            pads[i] = missing // 2 if auto_pad == "SAME_UPPER" else (missing + 1) // 2
            pads[i + n] = missing - pads[i]
        if ceil_mode:
            pads[i + n] += -(size + pads[i] + pads[i + n] - extent) % strides[i]
    frame = [end for i in reversed(range(n)) for end in (pads[i], pads[i + n])]
    powers = functional.pad(x.abs() ** p, frame).flatten(0, 1)[:, None]
    sums = CONV[n](powers, torch.ones(1, 1, *kernel_shape, dtype=x.dtype), None, strides, 0, dilations)
    sums = sums.unflatten(0, x.shape[:2])[:, :, 0]
    return torch.where(sums == 0, 0.0, torch.where(sums == 0, 1.0, sums) ** (1 / p))


def lrn(x, size, alpha=1e-4, beta=0.75, bias=1.0):
    """LRN of a torch tensor by its formula."""
    channels = x.shape[1]
    first = (size - 1) // 2
    windows = [(x[:, max(0, c - first) : c - first + size] ** 2).sum(1) for c in range(channels)]
    return x / (bias + alpha / size * torch.stack(windows, 1)) ** beta


class ConvTranspose(OpRun):
    """That of onnx refuses groups."""

    op_domain = ""

    def _run(
        self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, output_padding=None, output_shape=None,
        pads=None, strides=None, **_,
    ):  # fmt: skip
        rank = x.ndim - 2
        strides, more, pads = strides or [1] * rank, output_padding or [0] * rank, pads or [0] * 2 * rank
        y = CONV_TRANSPOSE[rank](torch.tensor(x), torch.tensor(w), None, strides, 0, 0, group, dilations or 1)
        frame = []
        for i, full in enumerate(y.shape[2:]):
            length = full + more[i] - pads[i] - pads[i + rank]
            if auto_pad.startswith("SAME"):
                length = x.shape[i + 2] * strides[i]
            length = output_shape[i] if output_shape else length
            missing = max(0, full + more[i] - length)
            begin = pads[i] if auto_pad == "NOTSET" else missing // 2 if auto_pad == "SAME_UPPER" else -(-missing // 2)
            frame = [-begin, begin + length - full, *frame]  # negative pads crop
        y = functional.pad(y, frame).numpy()
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class Erf(OpRun):
    """That of onnx computes in float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.erf(torch.tensor(x)).numpy(),)


class GatherElements(OpRun):
    """That of onnx wants equal dimensions but for axis 0."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, axis: int) -> tuple[Array]:
        indices = torch.tensor(indices % x.shape[axis])
        return (torch.tensor(x).gather(axis, indices.long()).numpy(),)


class GlobalLpPool(OpRun):
    """onnx has none."""

    op_domain = ""

    def _run(self, x: Array, p: int) -> tuple[Array]:
        return (np.sum(np.abs(x) ** p, axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class GridSample(OpRun):
    """That of onnx has the names of opset 20 for the modes."""

    op_domain = ""

    def _run(self, x: Array, grid: Array, mode: str, padding_mode: str, align_corners: int) -> tuple[Array]:
        y = functional.grid_sample(torch.tensor(x), torch.tensor(grid), mode, padding_mode, bool(align_corners))
        return (y.numpy(),)


class LpNormalization(OpRun):
    """That of onnx takes no absolute value for p = 1, and axis 0 for the default axis."""

    op_domain = ""

    def _run(self, x: Array, axis: int, p: int) -> tuple[Array]:
        n = np.sum(np.abs(x) ** p, axis=axis, keepdims=True) ** (1 / p)
        return (np.divide(x, n, out=np.zeros_like(x), where=n != 0),)


class LpPool(OpRun):
    """That of onnx divides by the number of taps within x, and takes no dilations."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (lp_pool(torch.tensor(x), **attributes).numpy(),)


class LRN(OpRun):
    """That of onnx treats as many channels as the batch has rows."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (lrn(torch.tensor(x), **attributes).numpy(),)


class Pad(OpRun):
    """That of onnx has no negative pads: here they crop what is padded elsewhere."""

    op_domain = ""

    def _run(self, x, pads, value=None, axes=None, mode="constant"):
        axes = list(range(x.ndim)) if axes is None else list(axes)
        for i, axis in enumerate(axes):
            before, after = int(pads[i]), int(pads[i + len(axes)])
            frame = [(0, 0)] * x.ndim
            frame[axis] = (max(before, 0), max(after, 0))
            more = {"constant_values": 0.0 if value is None else value} if mode == "constant" else {}
            x = np.pad(x, frame, mode=mode, **more)
            x = x.take(range(max(-before, 0), x.shape[axis] - max(-after, 0)), axis=axis)
        return (x,)


ALL = [
    ConvTranspose, Erf, GatherElements, GlobalLpPool, GridSample, GRU, LpNormalization, LpPool, LRN, LSTM, Pad, RNN,
    Scan,
]  # fmt: skip
