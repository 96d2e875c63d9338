"""Which operator is rewritten how: one table, filled by the decorators of `graph/lowering/`.

A rewrite is `rewrite(op, node)`: it writes operators of opset 18 through `op` and returns what replaces
the outputs of `node` (one value, or one for each output), or it brings the attributes and inputs of
`node` to the form of opset 18 in place and returns None. It knows nothing of names, of where the
nodes are put or of subgraphs; `graph/opset.py` sees to those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxft.errors import ModelError
from onnxft.graph.builder import Op
from onnxft.graph.shapes import Dim

Rewritten = ir.Value | Sequence[ir.Value | None] | None
Rewrite = Callable[[Op, ir.Node], Rewritten]

OPSET = 18
"""The opset of the internal form."""
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Entry:
    rewrite: Rewrite
    since: int
    until: int


_rewrites: dict[tuple[str, str], list[_Entry]] = {}


def rewrites(*op_types: str, since: int = 1, until: int = 28, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite of operators that got their form at opset `since` to `until`; returns the function unchanged.

    Without `until`, that is the newest opset that was looked at.
    """

    def register(rewrite: Rewrite) -> Rewrite:
        for op_type in op_types:
            _rewrites.setdefault((domain, op_type), []).append(_Entry(rewrite, since, until))
        return rewrite

    return register


def rewrite_of(domain: str, op_type: str, since: int) -> Rewrite | None:
    """The rewrite of an operator in the form that it got at opset `since`, None where it has none."""
    for entry in _rewrites.get((domain, op_type), ()):
        if entry.since <= since <= entry.until:
            return entry.rewrite
    return None


def rewritten(domain: str) -> tuple[str, ...]:
    """Operators of a domain that have a rewrite, sorted."""
    return tuple(sorted(op_type for of, op_type in _rewrites if of == domain))


def refusal(node: ir.Node, reason: str, way_out: str) -> ModelError:
    """The error of a node that has no form in opset 18."""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    output = node.outputs[0].name if node.outputs else ""
    return ModelError(f"'{name}' (node '{node.name}', output '{output}') {reason}. {way_out}.")


def inputs_of(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The first `count` inputs, None for those left out at the end."""
    return [*node.inputs, *[None] * count][:count]


def given(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator must have."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise refusal(node, f"lacks its input {index}", "Export the model again; onnx.checker says what is wrong")
    return value


def wanted(node: ir.Node, index: int) -> bool:
    """Whether something reads that output."""
    if index >= len(node.outputs):
        return False
    value = node.outputs[index]
    return bool(value.uses()) or value.is_graph_output()


def shape_of(node: ir.Node, value: ir.Value) -> tuple[Dim, ...]:
    """Shape of an input; ModelError if even its rank is unknown."""
    if value.shape is None:
        raise refusal(
            node,
            f"is lowered to opset {OPSET} only where the rank of its input '{value.name}' is known",
            "Export the model with shapes (static except for the batch and sequence dimension)",
        )
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def dtype_of(node: ir.Node, value: ir.Value) -> ir.DataType:
    """Element type of an input; ModelError if it is unknown."""
    if value.dtype is None:
        raise refusal(
            node,
            f"is lowered to opset {OPSET} only where the element type of its input '{value.name}' is known",
            f"Export the model with types, or with opset_version={OPSET}",
        )
    return value.dtype


def static_dim(node: ir.Node, value: ir.Value, axis: int) -> int:
    """A dimension of an input that must be static."""
    shape = shape_of(node, value)
    dim = shape[axis]
    if not isinstance(dim, int):
        raise refusal(
            node,
            f"is lowered to opset {OPSET} only where dimension {axis} of '{value.name}' {list(shape)} is static",
            "Export the model with that size fixed",
        )
    return dim


def constant_ints(node: ir.Node, index: int) -> list[int] | None:
    """Integers that an operator takes as its `index`-th input, None where absent; ModelError if they are computed."""
    value = inputs_of(node, index + 1)[index]
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise refusal(
            node,
            f"is lowered to opset {OPSET} only where its input {index} ('{value.name}') is a constant",
            "Export the model with static shapes except for the batch dimension",
        )
    return [int(i) for i in np.asarray(tensor.numpy()).reshape(-1)]


def integers(op: Op, values: object) -> ir.Value:
    """A constant of int64."""
    return op.initializer(
        ir.tensor(np.asarray(values, np.int64)), name=f"integers_{len(op.builder.graph.initializers)}"
    )


def places(op: Op, node: ir.Node, x: ir.Value, axis: int, unsqueeze: Sequence[int] = ()) -> ir.Value:
    """0, 1, ... along an axis of `x`, with axes of size 1 put in; counted at run time where it is symbolic.

    A constant has its axes from the start: shape inference takes a line of integers for a shape, and
    then stumbles over arithmetic with two lines of different lengths.
    """
    size = shape_of(node, x)[axis]
    if isinstance(size, int):
        return integers(op, np.expand_dims(np.arange(size), tuple(unsqueeze)))
    y = op.Range(integers(op, 0), op.Squeeze(op.Shape(x, start=axis, end=axis + 1), [0]), integers(op, 1))
    y.shape = ir.Shape([size])
    return op.Unsqueeze(y, list(unsqueeze)) if unsqueeze else y
