"""Cases of inverse trigonometric and hyperbolic functions, each within its domain."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range

A = (2, 3, 4)


def unary(op, function, spec=A, **more):
    return Case(op, (spec,), function, batch=(0,), **more)


CASES = [
    unary("Asin", torch.asin, Range(A, -0.9, 0.9)),
    unary("Acos", torch.acos, Range(A, -0.9, 0.9)),
    unary("Atan", torch.atan),
    unary("Sinh", torch.sinh),
    unary("Cosh", torch.cosh),
    unary("Asinh", torch.asinh),
    unary("Acosh", torch.acosh, Range(A, 1.1, 3.0)),
    unary("Atanh", torch.atanh, Range(A, -0.9, 0.9)),
    *(
        Case(op, (np.array([0.0]),), function, note="at 0")
        for op, function in [
            ("Asin", torch.asin),
            ("Acos", torch.acos),
            ("Atan", torch.atan),
            ("Sinh", torch.sinh),
            ("Cosh", torch.cosh),
            ("Asinh", torch.asinh),
            ("Atanh", torch.atanh),
        ]
    ),
    *(
        Case(op, (np.array([-1.0, 1.0]),), function, exempt="a tie or a bound", note="at the bounds")
        for op, function in [("Asin", torch.asin), ("Acos", torch.acos)]
    ),
]
