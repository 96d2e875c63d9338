"""Cases of pooling, with ties."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from torch.nn import functional

TIES = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0] * 3).reshape(
    1, 3, 4, 4
)
MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def torch_max_pool(x, kernel, strides, pads, dilations, ceil):
    rank = len(kernel)
    x = functional.pad(x, [p for a in reversed(range(rank)) for p in (pads[a], pads[a + rank])], value=-torch.inf)
    return MAX[rank](x, kernel, strides, 0, dilations, ceil)


def max_pool(x, kernel, strides=None, pads=None, dilations=None, ceil=False, note="", exempt="", outputs=1):
    rank = len(kernel)
    strides, pads, dilations = strides or [1] * rank, pads or [0] * 2 * rank, dilations or [1] * rank
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "ceil_mode": int(ceil)}
    function = lambda x: torch_max_pool(x, kernel, strides, pads, dilations, ceil)  # noqa: E731
    return Case("MaxPool", (x,), function, attrs, note=note, exempt=exempt, outputs=outputs, batch=(0,))


def average_pool(x, kernel, strides, pads, count=False, ceil=False, note=""):
    """Pads are symmetric, which torch has too."""
    rank = len(kernel)
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads * 2, "ceil_mode": int(ceil)}
    attrs["count_include_pad"] = int(count)
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[rank]
    return Case("AveragePool", (x,), lambda x: pool(x, kernel, strides, pads, ceil, count), attrs, note, batch=(0,))


def space(x):
    return tuple(range(2, x.ndim))


CASES = [
    max_pool((2, 3, 7), [3], [2]),
    max_pool((2, 3, 6, 5), [2, 3]),
    max_pool((2, 3, 6, 5), [2, 2], [2, 2], outputs=2, note="indices unread"),
    max_pool((2, 3, 7, 6), [3, 3], [2, 2], [1, 1, 1, 1]),
    max_pool((2, 3, 7, 6), [3, 2], [2, 3], [1, 0, 2, 1], note="asymmetric pads"),
    max_pool((2, 3, 7, 8), [2, 3], [2, 1], dilations=[3, 2]),
    max_pool((2, 3, 8, 7), [3, 2], [2, 2], ceil=True),
    max_pool((2, 2, 4, 5, 3), [2, 3, 2], [2, 1, 1], [0, 1, 1, 1, 0, 0]),
    max_pool(TIES, [2, 2], [2, 2], exempt="a tie or a bound", note="ties"),
    max_pool(TIES, [3, 3], [1, 1], [1, 1, 1, 1], exempt="a tie or a bound", note="ties"),
    average_pool((2, 3, 7), [3], [2], [1]),
    average_pool((2, 3, 6, 5), [2, 3], [1, 1], [0, 0]),
    average_pool((2, 3, 7, 6), [3, 3], [2, 2], [1, 1], count=True),
    average_pool((2, 3, 7, 6), [3, 3], [2, 2], [1, 1], count=False),
    average_pool((2, 3, 8, 5), [3, 2], [2, 2], [0, 0], ceil=True),
    average_pool((2, 2, 4, 5, 3), [2, 3, 2], [2, 1, 1], [0, 1, 1]),
    Case(
        "AveragePool",
        ((2, 3, 5, 6),),
        lambda x: functional.avg_pool2d(x, [2, 3], [2, 2], [0, 1], count_include_pad=False)[..., :2, :],
        {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [0, 1, 0, 1]},
        batch=(0,),
    ),
    Case(
        "AveragePool",
        ((2, 3, 6, 5),),
        lambda x: functional.avg_pool2d(x, [2, 3], [2, 2], [0, 1], count_include_pad=False),
        {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        batch=(0,),
    ),
    Case("GlobalAveragePool", ((2, 3, 4, 5),), lambda x: x.mean((2, 3), True), batch=(0,)),
    Case("GlobalAveragePool", ((2, 3, 4),), lambda x: x.mean(2, True), batch=(0,)),
    Case("GlobalMaxPool", ((2, 3, 4, 5),), lambda x: functional.adaptive_max_pool2d(x, 1), batch=(0,)),
    Case(
        "GlobalMaxPool",
        (TIES,),
        lambda x: functional.adaptive_max_pool2d(x, 1),
        exempt="a tie or a bound",
        note="ties",
        batch=(0,),
    ),
    *(
        Case(
            "GlobalLpPool",
            ((2, 3, 4, 5),),
            lambda x, p=p: (x.abs() ** p).sum((2, 3), True) ** (1 / p),
            {"p": p},
            batch=(0,),
        )
        for p in (1, 2, 3)
    ),
]
