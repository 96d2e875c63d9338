"""Cases of normalisation and of Dropout at inference."""

from __future__ import annotations

import numpy as np
from checking import Case, Range
from torch.nn import functional


def batch_norm(x, epsilon=1e-5):
    c = (x[1],)
    function = lambda x, s, b, mean, var: functional.batch_norm(x, mean, var, s, b, eps=epsilon)  # noqa: E731
    inputs = (x, c, c, c, Range(c))
    return Case("BatchNormalization", inputs, function, {"epsilon": epsilon}, frozen=(3, 4), batch=(0,))


def layer_norm(x, axis, bias=True, outputs=1, epsilon=1e-5):
    shape = x[axis:]
    function = lambda x, s, b=None: functional.layer_norm(x, shape, s, b, epsilon)  # noqa: E731
    inputs = (x, shape, shape) if bias else (x, shape)
    attrs = {"axis": axis, "epsilon": epsilon}
    return Case("LayerNormalization", inputs, function, attrs, outputs=outputs, batch=(0,))


CASES = [
    batch_norm((2, 3, 4, 5)),
    batch_norm((2, 3, 4), epsilon=1e-3),
    batch_norm((2, 3)),
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
    Case("Dropout", ((2, 3, 4),), lambda x: x * 1, batch=(0,)),
    Case("Dropout", ((2, 3, 4), np.array(0.3), np.array(False)), lambda x, *_: x * 1, constant=(1,), outputs=2),
]
