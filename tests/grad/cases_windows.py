"""Cases of pooling windows in one, two and three dimensions: pads of every kind, dilations, ceil_mode."""

from __future__ import annotations

import torch
from checking import Case
from torch.nn import functional

MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}

EVALUATOR = "onnx's own evaluator (1.23) takes other windows than the runtime"


def framed(x, pads, value=0.0):
    rank = len(pads) // 2
    return functional.pad(
        x, [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])], value=value
    )


def max_pool(x, kernel, pads=None, strides=None, dilations=None, ceil=False, auto_pad=None, exempt=""):
    """`auto_pad` is the attribute that says the same as `pads`."""
    rank = len(kernel)
    pads, strides, dilations = pads or [0] * 2 * rank, strides or [1] * rank, dilations or [1] * rank
    attrs = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "ceil_mode": int(ceil)}
    attrs |= {"auto_pad": auto_pad} if auto_pad else {"pads": pads}
    pool = MAX[rank]
    torch_pool = lambda x: pool(framed(x, pads, -torch.inf), kernel, strides, 0, dilations, ceil)  # noqa: E731
    return Case("MaxPool", (x,), torch_pool, attrs, exempt=exempt, batch=(0,))


def average_pool(x, kernel, pads=None, strides=None, count=False, behind=None, auto_pad=None, exempt=""):
    """Window sums of x divided by window sums of 1; `behind` is what ceil_mode reads behind the pads."""
    rank, channels = len(kernel), x[1]
    pads, strides = pads or [0] * 2 * rank, strides or [1] * rank
    attrs = {"kernel_shape": kernel, "strides": strides, "ceil_mode": int(behind is not None)}
    attrs |= {"count_include_pad": int(count)} | ({"auto_pad": auto_pad} if auto_pad else {"pads": pads})

    def sums(x, padding):
        x = framed(framed(x, pads, padding), [0] * rank + (behind or [0] * rank))
        return CONV[rank](x, torch.ones(channels, 1, *kernel, dtype=x.dtype), None, strides, groups=channels)

    torch_pool = lambda x: sums(x, 0.0) / sums(torch.ones_like(x), float(count))  # noqa: E731
    return Case("AveragePool", (x,), torch_pool, attrs, exempt=exempt, batch=(0,))


CASES = [
    max_pool((2, 3, 9), [3], [1, 0], [2], [2]),
    max_pool((2, 3, 10), [3], [0, 1], [3], [2], ceil=True),
    max_pool((2, 3, 9), [2], strides=[4]),
    max_pool((2, 3, 10), [2], strides=[3], ceil=True),
    max_pool((2, 3, 9), [4], [1, 2], [2], auto_pad="SAME_UPPER"),
    max_pool((2, 3, 9), [4], [2, 1], [2], auto_pad="SAME_LOWER", exempt=EVALUATOR),
    max_pool((2, 3, 9), [4], [0, 0], [2], auto_pad="VALID"),
    max_pool((2, 3, 9, 8), [2, 3], [1, 0, 0, 2], [2, 1], [3, 2], ceil=True),
    max_pool((2, 3, 6, 5), [3, 2], [1, 0, 1, 1], [1, 2], auto_pad="SAME_UPPER"),
    max_pool((2, 3, 6, 7), [3, 3], [1, 1, 1, 1], [1, 2], auto_pad="SAME_LOWER", exempt=EVALUATOR),
    max_pool((2, 2, 5, 6, 7), [2, 3, 2], [1, 0, 0, 0, 1, 1], [2, 2, 3], [2, 1, 3]),
    max_pool((2, 2, 5, 6, 4), [2, 3, 3], strides=[2, 2, 2], ceil=True),
    average_pool((2, 3, 9), [4], [1, 2], [2]),
    average_pool((2, 3, 9), [4], [1, 2], [2], count=True),
    average_pool((2, 3, 9), [2], strides=[4]),
    average_pool((2, 3, 10), [2], strides=[3], behind=[1]),
    average_pool((2, 3, 10), [3], [1, 0], [3], count=True, behind=[1]),
    average_pool((2, 3, 10), [3], [1, 0], [3], behind=[1]),
    average_pool((2, 3, 9), [4], [1, 2], [2], auto_pad="SAME_UPPER"),
    average_pool((2, 3, 9), [4], [2, 1], [2], auto_pad="SAME_LOWER"),
    average_pool((2, 3, 9), [4], [2, 1], [2], count=True, auto_pad="SAME_LOWER"),
    average_pool((2, 3, 9), [4], [0, 0], [2], auto_pad="VALID"),
    average_pool((2, 3, 6, 5), [3, 2], [2, 0, 1, 1], [2, 3]),
    average_pool((2, 3, 6, 5), [3, 2], [2, 0, 1, 1], [2, 3], count=True),
    average_pool((2, 3, 6, 8), [3, 3], [1, 0, 0, 1], [2, 2], count=True, behind=[0, 0]),
    average_pool((2, 3, 7, 6), [4, 3], [1, 1, 0, 1], [3, 2], behind=[2, 1], exempt=EVALUATOR),
    average_pool((2, 2, 5, 6, 4), [2, 3, 3], [0, 1, 1, 1, 0, 1], [2, 2, 1]),
    average_pool((2, 2, 5, 6, 4), [2, 3, 3], [0, 1, 1, 1, 0, 1], [2, 2, 1], count=True),
    average_pool((2, 2, 5, 6, 4), [2, 3, 3], strides=[2, 2, 2], behind=[1, 1, 1]),
]
