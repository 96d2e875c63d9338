"""Cases of elementwise arithmetic and choices."""

from __future__ import annotations

import numpy as np
import torch
from checking import Case, Range

A = (2, 3, 4)
BOUND = {"exempt": "a tie or a bound"}
BROADCAST = [
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((3, 1), (2, 3, 4)),
    ((2, 1, 4), (3, 1)),
    ((2, 3), ()),
    ((), (2, 3)),
]


def binary(op, function, right=lambda shape: shape, **attrs):
    both = lambda a, b: (0, 1) if len(a) == len(b) == 3 and a[0] == b[0] else (0,) if len(a) == 3 else ()  # noqa: E731
    return [Case(op, (a, right(b)), function, attrs, batch=both(a, b)) for a, b in BROADCAST]


def unary(op, function, spec=A, **attrs):
    return Case(op, (spec,), function, attrs, batch=(0,))


CASES = [
    *binary("Add", torch.add),
    *binary("Sub", torch.sub),
    *binary("Mul", torch.mul),
    *binary("Div", torch.div, Range),
    *(Case("Pow", (Range(a), b), torch.pow, batch=(0, 1) if a == b == A else ()) for a, b in BROADCAST),
    Case("Pow", (A, np.array(2.0)), torch.pow, constant=(1,), batch=(0,), note="square"),
    Case("Pow", (A, np.array(3.0)), torch.pow, constant=(1,), batch=(0,), note="cube of negative numbers"),
    Case("Pow", (A, np.array(3)), torch.pow, note="integer exponent"),
    Case("Pow", (Range(A), np.array(-0.5)), torch.pow, constant=(1,)),
    Case(
        "Pow",
        (np.array([0.0, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0, 0.0])),
        torch.pow,
        exempt="a tie or a bound",
        note="zeros",
    ),
    Case(
        "Pow", (np.array([[0.0], [0.0], [2.0]]), np.array([0.0, 1.0, 3.0])), torch.pow, **BOUND, note="zeros, broadcast"
    ),
    Case(
        "Pow",
        (np.array([0.0, -2.0, 3.0]), np.array([[2.0], [2.0]])),
        torch.pow,
        constant=(1,),
        note="square, broadcast",
    ),
    Case("Pow", (np.array([0.0, -1.5]), np.array([3, 0])), torch.pow, note="integer exponents"),
    *binary("Mod", torch.fmod, Range, fmod=1),
    Case(
        "Mod",
        (np.array([5.3, -5.3, 5.3, -5.3, 0.2]), np.array([2.0, 2.0, -2.0, -2.0, 7.0])),
        torch.fmod,
        {"fmod": 1},
        note="signs",
    ),
    Case("CastLike", (A, np.array([0.5])), lambda x, _: x * 1, constant=(1,), batch=(0,)),
    Case("Sum", ((2, 3), (3,), (2, 1)), lambda a, b, c: a + b + c, batch=(0, 2)),
    Case("Sum", ((2, 3),), lambda a: a),
    Case("Mean", ((2, 3), (3,), (2, 1)), lambda a, b, c: (a + b + c) / 3),
    unary("Identity", lambda x: x * 1),
    unary("Cast", lambda x: x * 1, to=11),
    unary("Neg", torch.neg),
    unary("Exp", torch.exp),
    unary("Log", torch.log, Range(A)),
    unary("Sqrt", torch.sqrt, Range(A)),
    unary("Reciprocal", torch.reciprocal, Range(A)),
    unary("Abs", torch.abs),
    unary("Sin", torch.sin),
    unary("Cos", torch.cos),
    unary("Tan", torch.tan, Range(A, -1.0, 1.0)),
    unary("Sign", torch.sign),
    unary("Floor", torch.floor),
    unary("Ceil", torch.ceil),
    unary("Round", torch.round),
    Case("Abs", (np.array([-1.0, 0.0, 2.0]),), torch.abs, exempt="a tie or a bound", note="at 0"),
    Case("Where", (np.array([[True], [False]]), (2, 3), (3,)), torch.where, runtime=(0,)),
    Case("Where", (np.array([[True, False, True]]), (2, 1), ()), torch.where, batch=(1,)),
    *(
        case
        for op, function in [("Max", torch.maximum), ("Min", torch.minimum)]
        for case in [
            *binary(op, function),
            Case(op, ((2, 3),), lambda x: x * 1),
            Case(op, ((2, 3), (3,), (2, 1)), lambda a, b, c, f=function: f(f(a, b), c)),
            Case(
                op,
                (np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])),
                function,
                exempt="a tie or a bound",
                note="tie",
            ),
        ]
    ),
    Case(
        "Max",
        (np.array([-1.0, 0.5, 2.0]), np.array(0.5)),
        lambda x, low: x.clamp(min=0.5),
        constant=(1,),
        exempt="a tie or a bound",
        note="clamp at its bound",
    ),
    Case(
        "Min",
        (np.array([-1.0, 0.5, 2.0]), np.array([0.5])),
        lambda x, high: x.clamp(max=0.5),
        constant=(1,),
        exempt="a tie or a bound",
        note="clamp at its bound",
    ),
    *(
        Case(op, (np.array([[1.0], [3.0]]), np.array([1.0, 2.0, 3.0])), function, **BOUND, note="ties, broadcast")
        for op, function in [("Max", torch.maximum), ("Min", torch.minimum)]
    ),
    Case(
        "Max",
        ((2, 3), (3,), np.array(0.2)),
        lambda a, b, c: torch.maximum(torch.maximum(a, b), c),
        constant=(2,),
        note="two tensors and a bound",
    ),
    Case(
        "Clip", (A, np.array(-0.5), np.array(0.7)), lambda x, low, high: x.clamp(-0.5, 0.7), constant=(1, 2), batch=(0,)
    ),
    Case("Clip", (A, np.array(-0.5), np.array(0.7)), torch.clamp, note="trained bounds"),
    Case("Clip", (A, np.array(-0.5)), lambda x, low: x.clamp(min=low), constant=(1,)),
    Case("Clip", (A, None, np.array(0.5)), lambda x, _, high: x.clamp(max=high), constant=(2,)),
    Case("Clip", (A, np.array([-0.5]), np.array([0.7])), torch.clamp, note="bounds as arrays of one", batch=(0,)),
    Case("Clip", (A,), lambda x: x * 1),
    Case("Clip", (A, None, None), lambda x, *_: x * 1, note="bounds named and missing"),
    Case("Clip", (A, np.array(0.4), np.array(-0.3)), torch.clamp, note="crossed bounds", batch=(0,)),
    Case("Clip", (A, np.array(-0.5)), lambda x, low: x.clamp(min=low), note="trained bound"),
    Case("Clip", (A, None, np.array(0.5)), lambda x, _, high: x.clamp(max=high), note="trained bound"),
    Case(
        "Clip",
        (np.array([-1.0, 0.0, 3.0, 6.0, 7.0]), np.array(0.0), np.array(6.0)),
        lambda x, low, high: torch.nn.functional.relu6(x),
        constant=(1, 2),
        exempt="a tie or a bound",
        note="relu6 at its bounds",
    ),
    Case(
        "Clip",
        (np.array([-2.0, -1.0, 0.0, 1.0]), np.array(-1.0), np.array(1.0)),
        lambda x, low, high: torch.nn.functional.hardtanh(x),
        constant=(1, 2),
        exempt="a tie or a bound",
        note="hardtanh at its bounds",
    ),
    Case(
        "Clip",
        (np.array([-1.0, 0.5, 2.0]), np.array(0.5)),
        lambda x, low: x.clamp(min=0.5),
        constant=(1,),
        exempt="a tie or a bound",
        note="clamp at its bound",
    ),
]
