"""Gelu, which exporters write in five operators, (x (1 + erf(x / √2))) / 2 with its factors in any order.

The CPU provider makes one operator of it in the order above alone: a forward pass has it in that order. While a model
is differentiated it is one operator, so that the backward pass needs its input alone: one by one, it would read three
tensors of the five. The rule of Gelu reads x, which costs another Erf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.constants import add_constant, constant_array
from onnxft.graph.lowering.activations import gelu_erf
from onnxft.graph.shapes import dims, set_dims

_CLOSE = 1e-5
"""Relative difference of a constant from the number that it stands for."""


@dataclass(frozen=True)
class _Gelu:
    x: ir.Value
    erf: ir.Node
    inner: ir.Value
    """1 + erf(x / √2)"""
    last: ir.Node
    """Whose output is y."""


def order_gelu(graph: ir.Graph) -> None:
    """Write each Gelu as the runtime knows it, in place."""
    for found in _found(graph):
        x, last, (y,) = found.x, found.last, found.last.outputs
        assert x.dtype is not None
        dtype = x.dtype.numpy()
        root, half = (
            add_constant(graph, f"{y.name}.{name}", ir.tensor(np.array(number, dtype)))
            for name, number in (("root", math.sqrt(2.0)), ("half", 0.5))
        )
        quotient = ir.Node("", "Div", [x, root], num_outputs=1, name=f"{last.name}/quotient")
        product = ir.Node("", "Mul", [x, found.inner], num_outputs=1, name=f"{last.name}/product")
        for new in (*quotient.outputs, *product.outputs):
            new.type, new.shape = x.type, x.shape
        graph.insert_before(found.erf, quotient)
        graph.insert_before(last, product)
        found.erf.replace_input_with(0, quotient.outputs[0])
        last.op_type = "Mul"
        last.replace_input_with(0, product.outputs[0])
        last.replace_input_with(1, half)


def gather_gelu(graph: ir.Graph) -> None:
    """Make one operator of each Gelu, in place."""
    for found in _found(graph):
        (y,) = found.last.outputs
        gelu = ir.Node("", "Gelu", [found.x], num_outputs=1, name=f"{found.last.name}/Gelu")
        (new,) = gelu.outputs
        new.name, new.type, new.shape = f"{y.name}.gelu", y.type, y.shape
        graph.insert_after(found.last, gelu)
        y.replace_all_uses_with(new, replace_graph_outputs=True)


def spread_gelu(op: Op) -> None:
    """Write each Gelu as arithmetic in that order, in place; the old nodes stay, without readers."""
    graph = op.builder.graph
    for gelu in [node for node in graph if node.op_type == "Gelu" and not node.domain]:
        (x,), (y,) = gelu.inputs, gelu.outputs
        assert x is not None
        new = gelu_erf(op, x)
        set_dims(new, dims(y))
        y.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.sort()


def _found(graph: ir.Graph) -> list[_Gelu]:
    erfs = [node for node in graph if node.op_type == "Erf" and not node.domain]
    return [found for erf in erfs if (found := _gelu(erf)) is not None]


def _gelu(erf: ir.Node) -> _Gelu | None:
    """The Gelu that has the node as its Erf."""
    x, factor = _scaled(erf.inputs[0])
    value = _times(erf.outputs[0], "Add")
    if x is None or value is None or not _is(factor, math.sqrt(0.5)) or not _is(value[1], 1.0):
        return None
    y, factor, has_x = value[0], 1.0, False
    while not (has_x and _is(factor, 0.5)):
        user = _only_user(y)
        if user is None or user.op_type not in ("Mul", "Div") or user.domain:
            return None
        a, b = user.inputs
        other = b if a is y else a
        base, scale = _scaled(other)
        if (number := _number(other)) is not None and (user.op_type == "Mul" or other is b):
            factor *= number if user.op_type == "Mul" else 1 / number
        elif user.op_type == "Mul" and base is x and not has_x:
            factor, has_x = factor * scale, True
        else:
            return None
        y = user.outputs[0]
    last = y.producer()
    assert last is not None
    return _Gelu(x, erf, value[0], last)


def _times(value: ir.Value, op_type: str) -> tuple[ir.Value, float] | None:
    """What the only user of a value makes of it with a number, and the number."""
    user = _only_user(value)
    if user is None or user.op_type != op_type or user.domain:
        return None
    a, b = user.inputs
    number = _number(b if a is value else a)
    return None if number is None else (user.outputs[0], number)


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """x and k where the value is k x."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type in ("Mul", "Div") and not node.domain:
        a, b = node.inputs
        if (number := _number(b)) is not None and number != 0:
            return a, number if node.op_type == "Mul" else 1 / number
        if node.op_type == "Mul" and (number := _number(a)) is not None:
            return b, number
    return value, 1.0


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _number(value: ir.Value | None) -> float | None:
    """The only element of a constant."""
    array = constant_array(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _is(found: float, expected: float) -> bool:
    return abs(found - expected) <= _CLOSE * expected
