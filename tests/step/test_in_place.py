"""What may be written over what it replaces: each reader is element by element, and done before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxft.graph.builder import Op, add_input, builder, table
from onnxft.graph.normalize import OPSET
from onnxft.runtime.keys import STATE_SLOTS
from onnxft.step.in_place import may_overwrite
from onnxft.step.optimizers import _OPTIMIZERS, describe_optimizer, update_of
from onnxft.step.updates import Scalars

Written = Callable[[Op, ir.Value, ir.Value], ir.Value]


def read_elsewhere(op: Op, x: ir.Value, g: ir.Value) -> ir.Value:
    new = op.Add(op.Mul(x, 0.5), g)
    op.builder.graph.outputs.append(op.Mul(x, 2.0))
    return new


def read_before(op: Op, x: ir.Value, g: ir.Value) -> ir.Value:
    twice = op.Mul(x, 2.0)
    return op.Add(op.Mul(x, 0.5), op.Add(op.Relu(twice), g))


def looked_up(op: Op, x: ir.Value, g: ir.Value) -> ir.Value:
    rows = op.Gather(x, table(op, np.array([2, 0])))
    return op.Sub(op.Mul(x, 0.9), op.Mul(g, op.ReduceSum(rows, keepdims=0)))


def handed_on(op: Op, x: ir.Value, g: ir.Value) -> ir.Value:
    op.builder.graph.outputs.append(x)
    return op.Add(x, g)


@pytest.mark.parametrize(
    ("write", "allowed"),
    [
        (lambda op, x, g: op.Add(x, g), True),
        (lambda op, x, g: op.Add(op.Mul(x, 0.9), op.Mul(g, 0.1)), True),
        (lambda op, x, g: op.Sub(x, op.Mul(g, op.Mul(x, 0.1))), True),
        (lambda op, x, g: op.Identity(g), True),  # nothing reads the old value
        (read_before, True),
        (looked_up, True),
        (lambda op, x, g: op.Sub(x, op.Add(op.Transpose(x, perm=[1, 0]), g)), False),
        (lambda op, x, g: op.Sub(x, op.Mul(op.Reshape(x, [4, 4]), g)), False),  # whose result may be x itself
        (read_elsewhere, False),
        (handed_on, False),
        (lambda op, x, g: op.MatMul(x, g), False),
        (lambda op, x, g: op.Add(op.Transpose(x, perm=[1, 0]), g), False),
        (lambda op, x, g: op.Sub(g, op.ReduceSum(x, keepdims=0)), False),
    ],
    ids=[
        "sum", "moving average", "decay", "new", "read before", "looked up", "transposed before", "view",
        "read elsewhere", "handed on", "product", "transposed", "reduced",
    ],
)  # fmt: skip
def test_may_overwrite(write: Written, allowed: bool) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    x, g = (add_input(op, name, ir.DataType.FLOAT, [4, 4]) for name in "xg")
    graph.outputs.append(new := write(op, x, g))
    assert may_overwrite(x, new) is allowed


IN_PLACE = {
    "adamw": {"exp_avg": True, "exp_avg_sq": True},
    "adam": {"exp_avg": True, "exp_avg_sq": True},
    "sgd": {"momentum_buffer": True},
    # Its direction reads the average as well, and is no part of the new one.
    "lion": {"exp_avg": False},
}


@pytest.mark.parametrize("kind", _OPTIMIZERS)
def test_state_of_optimizers(kind: str) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET})
    op = builder(graph)
    update = update_of(describe_optimizer(kind, {"momentum": 0.9} if kind == "sgd" else {}))
    assert set(update.slots) <= set(STATE_SLOTS)
    p, g, *state = (add_input(op, name, ir.DataType.FLOAT, [3, 5]) for name in ("p", "g", *update.slots))
    lr, decay, step = (add_input(op, name, ir.DataType.FLOAT, []) for name in ("lr", "decay", "step"))
    old = dict(zip(update.slots, state, strict=True))
    moved, new = update.apply(op, g, p, old, Scalars(lr, decay, step))
    graph.outputs.extend([moved, *new.values()])
    assert {slot: may_overwrite(old[slot], new[slot]) for slot in old} == IN_PLACE[kind]
    assert may_overwrite(p, moved)
