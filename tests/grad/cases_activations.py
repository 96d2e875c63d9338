"""Cases of activations, and their values at kinks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from checking import Case

A = (2, 3, 4)


def unary(op, function, note="", **attrs):
    return Case(op, (A,), function, attrs, note=note, batch=(0,))


def at(op, values, function, **attrs):
    return Case(op, (np.array(values),), function, attrs, note="at the kink", exempt="a tie or a bound")


CASES = [
    unary("Relu", F.relu),
    at("Relu", [-1.0, 0.0, 2.0], F.relu),
    unary("LeakyRelu", lambda x: F.leaky_relu(x, 0.01)),
    unary("LeakyRelu", lambda x: F.leaky_relu(x, 0.2), alpha=0.2),
    at("LeakyRelu", [-1.0, 0.0, 2.0], lambda x: F.leaky_relu(x, 0.01)),
    Case("PRelu", ((2, 3, 4), (3, 1)), lambda x, slope: torch.where(x > 0, x, slope * x), batch=(0,)),
    Case("PRelu", (np.array([-1.0, 0.0, 2.0]), np.array([0.25])), F.prelu, exempt="a tie or a bound", note="at the kink"),
    unary("ThresholdedRelu", lambda x: F.threshold(x, 1.0, 0.0)),
    at("ThresholdedRelu", [-1.0, 0.5, 2.0], lambda x: F.threshold(x, 0.5, 0.0), alpha=0.5),
    unary("HardSigmoid", lambda x: (0.2 * x + 0.5).clamp(0, 1)),
    at("HardSigmoid", [-4.0, -3.0, 1.0, 3.0, 4.0], F.hardsigmoid, alpha=1 / 6, beta=0.5),
    unary("HardSwish", F.hardswish),
    at("HardSwish", [-4.0, -3.0, 1.0, 3.0, 4.0], F.hardswish),
    unary("Sigmoid", torch.sigmoid),
    unary("Tanh", torch.tanh),
    unary("Erf", torch.erf),
    unary("Softplus", F.softplus),
    unary("Softsign", F.softsign),
    unary("Mish", F.mish),
    unary("Elu", F.elu),
    unary("Elu", lambda x: F.elu(x, 0.5), alpha=0.5),
    at("Elu", [-1.0, 0.0, 2.0], lambda x: F.elu(x, 0.5), alpha=0.5),
    unary("Selu", F.selu),
    Case("Celu", (A,), F.celu, batch=(0,), float32=True),
    Case("Celu", (A,), lambda x: F.celu(x, 1.5), {"alpha": 1.5}, batch=(0,), float32=True),
    *(
        Case(op, (A,), lambda x, a=axis, f=function: f(x, a), {"axis": axis}, batch=(0,))
        for op, function in [("Softmax", torch.softmax), ("LogSoftmax", torch.log_softmax)]
        for axis in (0, 1, -1)
    ),
    unary("Softmax", lambda x: x.softmax(-1), note="default axis"),
    unary("LogSoftmax", lambda x: x.log_softmax(-1), note="default axis"),
    *(
        Case(op, (np.array([[1000.0, -1000.0, 999.0], [0.0, 0.0, 0.0]]),), function, exempt="a tie or a bound", note="large logits")
        for op, function in [("Softmax", lambda x: x.softmax(-1)), ("LogSoftmax", lambda x: x.log_softmax(-1))]
    ),
]
