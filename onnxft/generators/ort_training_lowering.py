"""From the internal form to what onnxruntime-training 1.19.2 differentiates correctly."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxft.errors import GradientError, ModelError, SelectionError, near
from onnxft.graph.constants import add_constant
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims

MAX_OPSET = 21
MAX_IR_VERSION = 10
MAX_BYTES = 2**31 - 1
"""Of a protobuf message: the worker's graphs embed what is frozen."""

_OUTPUTS = {"Dropout": 2, "LayerNormalization": 3}
"""Outputs that its gradient builder reads, and asserts on where the node leaves them out."""


def lower(forward: Forward, trainable: Sequence[str], loss_output: str) -> ir.Model:
    """A copy of `forward.train` that onnxruntime-training trains as torch would.

    Frozen BatchNormalization is decomposed: left in, it trains on batch statistics and moves the running ones.

    Raises:
        SelectionError: a trained name is no float32 initializer, or does not reach the loss.
        GradientError: a BatchNormalization is in training mode, or its statistics are computed.
        ModelError: an operator set, the number of bytes or the output of the loss does not fit.
    """
    model = forward.train.clone()
    graph = model.graph
    _check_size(model)
    _check_trainable(graph, trainable)
    names = {v.name for v in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs))}
    for node in list(graph):
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            _decompose_batch_norm(graph, node, trainable)
        elif len(node.outputs) < _OUTPUTS.get(node.op_type, 0):
            first = len(node.outputs)
            node.resize_outputs(_OUTPUTS[node.op_type])
            for index, value in enumerate(node.outputs[first:], first):
                value.name = _free_name(f"{node.outputs[0].name}_{index}", names)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
    _check_reach(graph, trainable, loss_output)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model


def _free_name(name: str, taken: set[str | None]) -> str:
    """`name`, lengthened where it is taken: exporters number their nodes in the same way. It is taken then."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _check_size(model: ir.Model) -> None:
    opset = model.graph.opset_imports.get("", 0)
    if opset > MAX_OPSET:
        raise ModelError(
            f"the model has opset {opset}; onnxruntime-training 1.19.2 reads at most {MAX_OPSET}. Export it again."
        )
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if size > MAX_BYTES:
        raise ModelError(
            f"the model's tensors have {size} bytes; onnxruntime-training's files hold at most {MAX_BYTES}. "
            "Use the native generator."
        )


def _check_trainable(graph: ir.Graph, trainable: Sequence[str]) -> None:
    if not trainable:
        raise SelectionError("no parameter is selected for training. Name at least one pattern with --train.")
    for name in trainable:
        if name not in graph.initializers:
            raise SelectionError(f"'{name}' is no parameter of the exported graph.{near(name, graph.initializers)}")
        dtype = graph.initializers[name].dtype
        if dtype != ir.DataType.FLOAT:
            raise SelectionError(
                f"'{name}' has the element type {dtype}; onnxruntime-training trains float32 on the CPU. "
                "Freeze it, or use the native generator."
            )


def _check_reach(graph: ir.Graph, trainable: Sequence[str], loss_output: str) -> None:
    """Every trained parameter lies behind the loss; otherwise the package says `couldn't find the consumer node`."""
    found = {v.name: v for v in graph.outputs}
    if loss_output not in found:
        raise ModelError(f"the model has no output '{loss_output}'.{near(loss_output, [n for n in found if n])}")
    behind: set[ir.Value] = set()
    stack = [found[loss_output]]
    while stack:
        value = stack.pop()
        if value not in behind:
            behind.add(value)
            producer = value.producer()
            stack.extend(v for v in (producer.inputs if producer is not None else ()) if v is not None)
    for name in trainable:
        if name not in graph.initializers or graph.initializers[name] not in behind:
            raise SelectionError(
                f"'{name}' does not reach the output '{loss_output}' of the loss, so it would never be trained. "
                "Freeze it, or choose another output for the loss."
            )


def _decompose_batch_norm(graph: ir.Graph, node: ir.Node, trainable: Collection[str]) -> None:
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
