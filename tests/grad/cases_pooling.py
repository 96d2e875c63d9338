"""Cases of pooling, with ties."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from overrides import lp_pool
from torch.nn import functional

TIES = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0] * 3).reshape(
    1, 3, 4, 4
)
SPARSE = np.array([0.0, 0.0, 3.0, 0.0, 0.0, 0.0, -4.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0]).reshape(1, 1, 4, 4)
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


def lp_pooling(x, kernel, exempt="", note="", **attrs):
    attrs = {"kernel_shape": kernel, **attrs}
    return Case("LpPool", (x,), lambda x: lp_pool(x, **attrs), attrs, note, exempt=exempt, batch=(0,))


def max_unpool(shape, kernel, strides, output_shape=None):
    """Unpooling of values with the places of a pooling, counted over the whole tensor as ONNX does."""
    pooled = [2, *shape[1:2], *(s // k for s, k in zip(shape[2:], kernel, strict=True))]
    count = int(np.prod(pooled))
    corner = np.arange(np.prod(shape)).reshape(shape)
    for axis, k in enumerate(kernel):
        corner = corner.take(np.arange(0, shape[axis + 2], k), axis + 2)
    step = np.random.default_rng(0).integers(0, kernel[-1], count).reshape(pooled)
    indices = corner + step

    def in_torch(x, i, *_):
        y = torch.zeros(int(np.prod(shape)), dtype=x.dtype).index_put((i.reshape(-1),), x.reshape(-1))
        return y.reshape(shape)

    inputs = (tuple(pooled), indices, *([] if output_shape is None else [np.array(output_shape)]))
    attrs = {"kernel_shape": kernel, "strides": strides}
    note, batch = ("given shape", ()) if output_shape else ("", (0, 1))
    return Case("MaxUnpool", inputs, in_torch, attrs, note, runtime=(1,), batch=batch)


def columns(x, image, block, note="", **attrs):
    n = len(image)
    strides, dilations = attrs.get("strides", [1] * n), attrs.get("dilations", [1] * n)
    pads = attrs.get("pads", [0] * 2 * n)

    def in_torch(x, *_):
        """`fold` into the padded image, of which the frame is cropped; one axis as two."""
        padded = [s + pads[i] + pads[i + n] for i, s in enumerate(image)]
        one = [1] if n == 1 else []
        y = functional.fold(x, one + padded, one + block, one + dilations, 0, one + strides)
        y = y[:, :, 0] if n == 1 else y
        for i, s in enumerate(image):
            y = y.narrow(i + 2, pads[i], s)
        return y

    inputs = (x, np.array(image), np.array(block))
    return Case("Col2Im", inputs, in_torch, attrs, note, batch=(0,))


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
    *(lp_pooling((2, 3, 6, 5), [2, 3], p=p) for p in (1, 2, 3)),
    lp_pooling((2, 3, 7), [3], strides=[2], pads=[1, 0]),
    lp_pooling((2, 3, 7, 6), [3, 2], strides=[2, 3], pads=[1, 0, 2, 1], p=3),
    lp_pooling((2, 3, 7, 8), [2, 3], strides=[2, 1], dilations=[3, 2]),
    lp_pooling((2, 3, 8, 7), [3, 2], strides=[2, 2], ceil_mode=1),
    lp_pooling((2, 2, 4, 5, 3), [2, 3, 2], strides=[2, 1, 1], pads=[0, 1, 1, 1, 0, 0]),
    *(
        lp_pooling((2, 3, 6, 5), [3, 2], strides=[2, 2], auto_pad=auto_pad)
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    *(lp_pooling(SPARSE, [2, 2], strides=[2, 2], p=p, exempt="a tie or a bound", note="zeros") for p in (1, 2, 3)),
    *(
        max_unpool(x, kernel, **more)
        for x, kernel, more in [
            ((2, 3, 4, 6), [2, 2], {"strides": [2, 2]}),
            ((2, 3, 8), [2], {"strides": [2]}),
            ((2, 3, 6, 9), [2, 3], {"strides": [2, 3]}),
            ((2, 1, 4, 6), [2, 2], {"strides": [2, 2], "output_shape": [2, 1, 4, 6]}),
        ]
    ),
    columns((2, 12, 6), [3, 4], [2, 2]),
    columns((2, 18, 16), [4, 5], [2, 3], pads=[0, 1, 1, 0]),
    columns((2, 8, 6), [5, 10], [2, 2], strides=[2, 3], dilations=[2, 1], note="strides and dilations"),
    columns((2, 6, 5), [9], [3], strides=[2], pads=[1, 1], note="one axis"),
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
