"""Frozen BatchNormalization as a product and a sum.

Left as it is, onnxruntime-training trains it on the statistics of the batch and moves the running ones.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxft.errors import GradientError
from onnxft.graph.constants import add_constant
from onnxft.graph.shapes import dims


def decompose_batch_norm(graph: ir.Graph, node: ir.Node, trainable: Collection[str]) -> None:
    """Y = scale * (x - mean) / sqrt(var + epsilon) + bias

    nothing trained:  y = x * a + b,  a = scale / sqrt(var + epsilon),  b = bias - mean * a
    otherwise:        y = (x * i + j) * scale + bias,  i = 1 / sqrt(var + epsilon),  j = -mean * i
    """
    if node.attributes.get_int("training_mode", 0) == 1 or len(node.outputs) > 1:
        raise GradientError(
            f"BatchNormalization '{node.name}' is in training mode; onnxruntime-training's does not train it as torch "
            "does. Export with normalisation frozen (the default), or use the native generator."
        )
    x, *channelwise = node.inputs
    assert x is not None
    scale, bias, mean, var = (_constant(node, value) for value in channelwise)
    affine = channelwise[:2]
    shape = (-1, *[1] * (len(dims(x)) - 2))
    inverse = 1.0 / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    trained = any(v is not None and v.name in trainable for v in affine)
    a, b = (inverse, -mean * inverse) if trained else (scale * inverse, bias - mean * scale * inverse)
    name = node.outputs[0].name
    nodes: list[ir.Node] = []

    def add(op_type: str, left: ir.Value, right: ir.Value, suffix: str) -> ir.Value:
        shape = None if op_type == "Reshape" else x.shape
        y = ir.Value(name=f"{name}.{suffix}", type=x.type, shape=shape)
        nodes.append(ir.node(op_type, [left, right], outputs=[y], name=f"{name}.{suffix}"))
        return y

    y = add("Mul", x, add_constant(graph, f"{name}.a", ir.tensor(a.reshape(shape).astype(np.float32))), "scaled")
    y = add("Add", y, add_constant(graph, f"{name}.b", ir.tensor(b.reshape(shape).astype(np.float32))), "shifted")
    if trained:
        target = add_constant(graph, f"{name}.shape", ir.tensor(np.array(shape, np.int64)))
        for op_type, value in zip(("Mul", "Add"), affine, strict=True):
            assert value is not None
            y = add(op_type, y, add("Reshape", value, target, f"reshaped_{op_type}"), f"affine_{op_type}")
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [y])


def _constant(node: ir.Node, value: ir.Value | None) -> NDArray[np.float64]:
    """A channelwise input in float64, so that folding rounds once."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        raise GradientError(
            f"BatchNormalization '{node.name}' reads '{value.name if value is not None else ''}', which is computed at "
            "run time, so it cannot be frozen. Use the native generator."
        )
    return np.asarray(tensor.numpy(), np.float64)
