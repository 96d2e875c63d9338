"""Optional outputs that onnxruntime-training's gradients read, and assert on where they are left out or unnamed."""

from __future__ import annotations

import onnx_ir as ir

from onnxft.graph.lowering.splice import Names

_COUNTS = {"Dropout": 2, "LayerNormalization": 3, "SoftmaxCrossEntropyLoss": 2}


def add_missing_outputs(node: ir.Node, names: Names) -> None:
    """Give a Dropout its mask, a LayerNormalization mean and inverse deviation, a cross entropy its log softmax."""
    if node.op_type not in _COUNTS:
        return
    node.resize_outputs(max(_COUNTS[node.op_type], len(node.outputs)))
    for index, value in enumerate(node.outputs):
        value.name = value.name or names.fresh(f"{node.outputs[0].name}_{index}")
