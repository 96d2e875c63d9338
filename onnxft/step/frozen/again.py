"""Widening frozen weights once more on the way back, so that none stays in float32 from its layer's forward pass on.

A runtime keeps a value as long as something reads it, merges nodes that compute the same, and may run what needs no
data at any time. So what the backward pass reads is computed by nodes of its own, which wait for the gradient that they
are multiplied with: they read the stored weight, or its scales, through a Where whose condition is made of it and whose
two sides are the same.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxft.graph.builder import Op, is_float, reshape, slice_axis
from onnxft.graph.shapes import dims, set_dims, static_dims


def widen_again(op: Op, forward: Collection[ir.Node], stored: Collection[str]) -> None:
    """Let nodes that are not in `forward` read weights that are widened anew, in place.

    Args:
        op: writes into the graph.
        forward: the nodes before differentiation.
        stored: names of the initializers that hold stored weights.
    """
    graph: ir.Graph = op.builder.graph
    widened = _widened(graph, stored)
    for node in list(graph):
        if node in forward or node in widened:
            continue
        read = [i for i, x in enumerate(node.inputs) if x is not None and x.producer() in widened]
        others = [x for x in node.inputs if x is not None and is_float(x) and x.producer() is not None]
        gradient = next((x for x in others if x.producer() not in widened), None)
        if not read or gradient is None:
            continue
        again = _Again(op, widened, gradient)
        for i in read:
            value = node.inputs[i]
            assert value is not None
            node.replace_input_with(i, again.value(value))


def _widened(graph: ir.Graph, stored: Collection[str]) -> set[ir.Node]:
    """The nodes that compute something of stored weights and constants alone."""
    constants = set(graph.initializers.values())
    found: set[ir.Node] = set()
    for node in graph:
        read = [x for x in node.inputs if x is not None]
        from_weights = [x for x in read if (x.name in stored and x in constants) or x.producer() in found]
        if from_weights and all(x in from_weights or x in constants for x in read):
            found.add(node)
    return found


class _Again:
    """Widened weights that wait for a gradient."""

    def __init__(self, op: Op, widened: Collection[ir.Node], gradient: ir.Value) -> None:
        self._op, self._nodes = op, widened
        first = slice_axis(op, reshape(op, gradient, [None]), 0, 0, 1)
        self._condition = op.Cast(first, to=int(ir.DataType.BOOL))
        self._copies: dict[ir.Value, ir.Value] = {}

    def value(self, value: ir.Value) -> ir.Value:
        """A copy of `value` that is computed after the gradient."""
        node = value.producer()
        if node is None or node not in self._nodes:
            return value
        if value not in self._copies:
            inputs = [None if x is None else self.value(x) for x in node.inputs]
            if node.op_type == "DequantizeLinear":
                inputs[1] = self._waiting_scale(inputs[1])
            elif node.op_type == "Cast":
                inputs[0] = self._waiting_half(inputs[0])
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            copy = getattr(self._op, node.op_type)(*inputs, **attributes)
            set_dims(copy, dims(value))
            self._copies[value] = copy
        return self._copies[value]

    def _waiting_scale(self, scale: ir.Value | None) -> ir.Value:
        return self._op.Where(self._condition, scale, scale)

    def _waiting_half(self, half: ir.Value | None) -> ir.Value:
        """A Slice of everything, because Where does not take half precision on the CPU."""
        assert half is not None
        start = self._op.Where(self._condition, [0], [0])
        size = static_dims(half, 0, len(dims(half)))
        whole = self._op.Slice(half, start, [size[0]], [0])
        # OpenVINO takes no convolution whose weight has a size that is computed, as that of the Slice seems to be.
        whole = self._op.Reshape(whole, size)
        set_dims(whole, dims(half))
        return whole
