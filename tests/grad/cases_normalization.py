"""Cases of normalisation and of Dropout at inference."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range
from overrides import lrn
from torch.nn import functional

ZEROS = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]])


def batch_norm(x, epsilon=1e-5):
    c = (x[1],)

    def function(x, s, b, mean, var):  # torch's own has no gradient of mean and var
        s, b, mean, var = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (s, b, mean, var))
        return (x - mean) / torch.sqrt(var + epsilon) * s + b

    inputs = (x, c, c, c, Range(c))
    return Case("BatchNormalization", inputs, function, {"epsilon": epsilon}, batch=(0,))


def trained_batch_norm(x, epsilon=1e-5):
    c = (x[1],)
    function = lambda x, s, b, *_: functional.batch_norm(x, None, None, s, b, training=True, eps=epsilon)  # noqa: E731
    inputs = (x, c, c, c, Range(c))
    attrs = {"epsilon": epsilon, "training_mode": 1, "momentum": 0.0}
    return Case("BatchNormalization", inputs, function, attrs, outputs=3, frozen=(3, 4), batch=(0,))


def layer_norm(x, axis, bias=True, outputs=1, epsilon=1e-5):
    shape = x[axis:]
    function = lambda x, s, b=None: functional.layer_norm(x, shape, s, b, epsilon)  # noqa: E731
    inputs = (x, shape, shape) if bias else (x, shape)
    attrs = {"axis": axis, "epsilon": epsilon}
    return Case("LayerNormalization", inputs, function, attrs, outputs=outputs, batch=(0,))


def lp_normalize(x, p, axis=None, **more):
    def in_torch(x):
        total = (x.abs() ** p).sum(-1 if axis is None else axis, True)
        return torch.where(total == 0, 0.0, x / torch.where(total == 0, 1.0, total) ** (1 / p))

    attrs = {"p": p} | ({} if axis is None else {"axis": axis})
    return Case("LpNormalization", (x,), in_torch, attrs, **more)


def local_response(x, size, **attrs):
    return Case("LRN", (x,), lambda x: lrn(x, size, **attrs), {"size": size, **attrs}, batch=(0,))


def mean_variance(x, axes, batch=()):
    def in_torch(x):
        centred = x - x.mean(axes, True)
        return centred / ((centred * centred).mean(axes, True).sqrt() + 1e-9)

    # The function body in the standard has a float32 constant.
    return Case("MeanVarianceNormalization", (x,), in_torch, {"axes": axes}, batch=batch, float32=True)


CASES = [
    batch_norm((2, 3, 4, 5)),
    batch_norm((2, 3, 4), epsilon=1e-3),
    batch_norm((2, 3)),
    trained_batch_norm((2, 3, 4, 5)),
    trained_batch_norm((4, 3, 5), epsilon=1e-2),
    trained_batch_norm((5, 3)),
    trained_batch_norm((2, 3, 4, 1, 2)),
    layer_norm((2, 3, 4), -1),
    layer_norm((2, 3, 4), 1),
    layer_norm((2, 3, 4), 2, bias=False, epsilon=1e-2),
    layer_norm((2, 3, 5), -1, outputs=3),
    Case(
        "InstanceNormalization",
        ((2, 3, 4, 5), (3,), (3,)),
        lambda x, s, b: functional.instance_norm(x, weight=s, bias=b, eps=1e-5),
        batch=(0,),
    ),
    Case(
        "InstanceNormalization",
        ((2, 3, 4), (3,), (3,)),
        lambda x, s, b: functional.instance_norm(x, weight=s, bias=b, eps=1e-2),
        {"epsilon": 1e-2},
        batch=(0,),
    ),
    *(lp_normalize((2, 3, 4), p, axis, batch=(0,)) for p in (1, 2) for axis in (0, 1, -1, None)),
    *(lp_normalize(ZEROS, p, 1, exempt="a tie or a bound", note="zero vector") for p in (1, 2)),
    local_response((2, 5, 3, 4), 3),
    local_response((2, 5, 3, 4), 3, alpha=0.5, beta=0.6, bias=2.0),
    local_response((2, 3, 4, 5), 5, alpha=0.3),
    local_response((2, 6, 3, 2), 7, alpha=1.0, beta=1.5),
    mean_variance((2, 3, 4, 5), [0, 2, 3]),
    mean_variance((2, 3, 4, 5), [1, -1]),
    mean_variance((4, 3), [0]),
    mean_variance((2, 3, 4), [2], batch=(0,)),
    Case("Dropout", ((2, 3, 4),), lambda x: x * 1, batch=(0,)),
    Case("Dropout", ((2, 3, 4), np.array(0.3), np.array(False)), lambda x, *_: x * 1, constant=(1,), outputs=2),
]
