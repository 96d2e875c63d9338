"""Constants that are put into a graph as it is, without a builder."""

from __future__ import annotations

import onnx_ir as ir


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register an initializer of that name and value."""
    shape, dtype = ir.Shape(tensor.numpy().shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=dtype)
    graph.register_initializer(value)
    return value
