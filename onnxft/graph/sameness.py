"""Which values of two graphs are the same: computed by the same operators from the same inputs and tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import onnx_ir as ir


def fingerprints(graph: ir.Graph, named: Collection[str]) -> dict[ir.Value, str]:
    """{value: what it is computed by}, equal for equal values of two graphs, whatever their names.

    Inputs go by their name, as do the initializers in `named`; all other tensors by their contents. A node with a body
    equals none but itself.
    """
    found: dict[ir.Value, str] = {v: _digest("input", str(v.name)) for v in graph.inputs}
    for name, value in graph.initializers.items():
        found[value] = _digest("tensor", name if name in named else _tensor(value.const_value))
    for node in graph:
        read = ["" if x is None else found.get(x, f"around {id(x)}") for x in node.inputs]
        if node.op_type == "Where" and read[1] == read[2]:  # the choice between gradients, of equal values
            found[node.outputs[0]] = read[1]
            continue
        parts = [node.domain, node.op_type, *(_attribute(a) for _, a in sorted(node.attributes.items())), *read]
        found.update({y: _digest("node", *parts, str(i)) for i, y in enumerate(node.outputs)})
    return found


def _attribute(attribute: ir.Attr) -> str:
    match attribute.type:
        case ir.AttributeType.TENSOR:
            value = _tensor(attribute.as_tensor())
        case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
            value = f"body {id(attribute)}"
        case _:
            value = repr(attribute.value)
    return f"{attribute.name}={value}"


def _tensor(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "none"
    return f"{tensor.dtype}{list(tensor.shape)}{hashlib.sha256(tensor.tobytes()).hexdigest()}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
