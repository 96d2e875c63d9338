"""Operators that ONNX Runtime makes part of a convolution, so that their values never lie in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from onnxft.runtime.graph_values import Node


def fused(nodes: Collection[Node], constants: Collection[str], outputs: Collection[str]) -> list[Node]:
    """The nodes without padding before a convolution that alone reads it, and without BatchNorm behind one.

    A BatchNorm goes into the weights of the convolution, so both must be constant.
    """
    reads = Counter(name for node in nodes for name in node.reads)
    made_by = {name: node for node in nodes for name in node.outputs if name}
    gone: set[str] = set()
    becomes: dict[str, str] = {}
    for node in nodes:
        source = made_by.get(node.inputs[0]) if node.inputs else None
        if source is None or reads[node.inputs[0]] != 1 or node.inputs[0] in outputs:
            continue
        if node.op_type == "Conv" and source.op_type == "Pad":
            gone.add(source.outputs[0])
            becomes[source.outputs[0]] = source.inputs[0]
        constant = all(name in constants for name in (*source.inputs[1:], *node.inputs[1:]) if name)
        if node.op_type == "BatchNormalization" and source.op_type == "Conv" and constant:
            gone.add(source.outputs[0])
            becomes[source.outputs[0]] = node.outputs[0]
    kept = []
    for node in nodes:
        if node.op_type == "BatchNormalization" and node.inputs[0] in gone:
            continue
        if node.op_type == "Pad" and node.outputs[0] in gone:
            continue
        inputs = tuple(becomes.get(name, name) for name in node.inputs)
        out = tuple(becomes.get(name, name) for name in node.outputs)
        kept.append(node if (inputs, out) == (node.inputs, node.outputs) else replace(node, inputs=inputs, outputs=out))
    return kept
