"""Which results of a graph may be written over what they replace, so that no second buffer is needed."""

from __future__ import annotations

import onnx_ir as ir

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Identity")


def may_overwrite(old: ir.Value, new: ir.Value) -> bool:
    """Whether `new` may be written where `old`, an input of the graph, lies.

    So it is where each reader of `old` is done by then whatever the order in which a runtime executes: it works element
    by element and writes `new`, or `new` depends on it. Other operators are left out but for the lookup in a table: a
    runtime takes a Transpose for a part of the products behind it, which may come later.
    """
    writer = new.producer()
    readers = [use.node for use in old.uses()]
    return not old.is_graph_output() and all(
        (reader is writer and _is_elementwise(reader, old))
        or ((_is_elementwise(reader, old) or reader.op_type == "Gather") and _leads_to(reader, writer))
        for reader in readers
    )


def _is_elementwise(reader: ir.Node, old: ir.Value) -> bool:
    return reader.op_type in _ELEMENTWISE and reader.outputs[0].shape == old.shape


def _leads_to(node: ir.Node, goal: ir.Node | None) -> bool:
    """Whether `goal` depends on a node."""
    seen, ahead = {node}, [node]
    while ahead:
        for user in {use.node for value in ahead.pop().outputs for use in value.uses()} - seen:
            if user is goal:
                return True
            seen.add(user)
            ahead.append(user)
    return False
