"""Constants that are put into a graph as it is, without a builder, and what constants hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register an initializer of that name and value."""
    shape, dtype = ir.Shape(tensor.numpy().shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=dtype)
    graph.register_initializer(value)
    return value


def constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    """What a constant holds; None where the value is absent or computed at run time."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())
