"""Cases of activations, and their values at kinks."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case
from torch.nn import functional

A = (2, 3, 4)


def unary(op, function, note="", **attrs):
    return Case(op, (A,), function, attrs, note=note, batch=(0,))


def at(op, values, function, **attrs):
    return Case(op, (np.array(values),), function, attrs, note="at the kink", exempt="a tie or a bound")


CASES = [
    unary("Relu", functional.relu),
    at("Relu", [-1.0, 0.0, 2.0], functional.relu),
    unary("LeakyRelu", lambda x: functional.leaky_relu(x, 0.01)),
    unary("LeakyRelu", lambda x: functional.leaky_relu(x, 0.2), alpha=0.2),
    at("LeakyRelu", [-1.0, 0.0, 2.0], lambda x: functional.leaky_relu(x, 0.01)),
    Case("PRelu", ((2, 3, 4), (3, 1)), lambda x, slope: torch.where(x > 0, x, slope * x), batch=(0,)),
    Case(
        "PRelu",
        (np.array([-1.0, 0.0, 2.0]), np.array([0.25])),
        functional.prelu,
        exempt="a tie or a bound",
        note="at the kink",
    ),
    unary("ThresholdedRelu", lambda x: functional.threshold(x, 1.0, 0.0)),
    at("ThresholdedRelu", [-1.0, 0.5, 2.0], lambda x: functional.threshold(x, 0.5, 0.0), alpha=0.5),
    unary("Shrink", functional.hardshrink),
    unary("Shrink", lambda x: functional.softshrink(x, 0.7), lambd=0.7, bias=0.7),
    at("Shrink", [-1.0, -0.5, 0.0, 0.5, 1.0], functional.hardshrink),
    at("Shrink", [-1.0, -0.5, 0.0, 0.5, 1.0], lambda x: functional.softshrink(x, 0.5), bias=0.5),
    unary("HardSigmoid", lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    at("HardSigmoid", [-4.0, -3.0, 1.0, 3.0, 4.0], functional.hardsigmoid, alpha=1 / 6, beta=0.5),
    unary("HardSwish", functional.hardswish),
    at("HardSwish", [-4.0, -3.0, 1.0, 3.0, 4.0], functional.hardswish),
    unary("Sigmoid", torch.sigmoid),
    unary("Tanh", torch.tanh),
    unary("Erf", torch.erf),
    unary("Softplus", functional.softplus),
    unary("Softsign", functional.softsign),
    unary("Mish", functional.mish),
    unary("Elu", functional.elu),
    unary("Elu", lambda x: functional.elu(x, 0.5), alpha=0.5),
    at("Elu", [-1.0, 0.0, 2.0], lambda x: functional.elu(x, 0.5), alpha=0.5),
    unary("Selu", functional.selu),
    Case("Celu", (A,), functional.celu, batch=(0,), float32=True),
    Case("Celu", (A,), lambda x: functional.celu(x, 1.5), {"alpha": 1.5}, batch=(0,), float32=True),
    *(
        Case(op, (A,), lambda x, a=axis, f=function: f(x, a), {"axis": axis}, batch=(0,))
        for op, function in [("Softmax", torch.softmax), ("LogSoftmax", torch.log_softmax)]
        for axis in (0, 1, -1)
    ),
    unary("Softmax", lambda x: x.softmax(-1), note="default axis"),
    unary("LogSoftmax", lambda x: x.log_softmax(-1), note="default axis"),
    *(
        Case(
            op,
            (np.array([[1000.0, -1000.0, 999.0], [0.0, 0.0, 0.0]]),),
            function,
            exempt="a tie or a bound",
            note="large logits",
        )
        for op, function in [("Softmax", lambda x: x.softmax(-1)), ("LogSoftmax", lambda x: x.log_softmax(-1))]
    ),
]
