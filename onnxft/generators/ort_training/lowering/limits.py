"""What the files of onnxruntime-training 1.19.2 cannot hold, refused before its worker starts."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.errors import ModelError, SelectionError, near

MAX_OPSET = 21
MAX_IR_VERSION = 10
MAX_BYTES = 2**31 - 1
"""Of a protobuf message: the worker's graphs embed what is frozen."""


def check_limits(model: ir.Model) -> None:
    """ModelError where the operator set or the number of bytes is beyond what it reads."""
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


def check_trainable(graph: ir.Graph, trainable: Sequence[str]) -> None:
    """SelectionError where a trained name is no float32 initializer."""
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
