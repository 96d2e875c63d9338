"""LoRA: linear layers and convolutions get a second way, through few channels, which alone is trained.

y = W x + b + s B A dropout(x)  with s = alpha / rank, A (rank, in), B (out, rank); Hu et al. 2021, arXiv 2106.09685.
Of a convolution A is one of the same window and steps to `rank` channels, and B one of 1 x 1, as in peft.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxft.graph.builder import Op, builder
from onnxft.graph.constants import add_constant
from onnxft.graph.forward import Forward, Tensor
from onnxft.graph.shapes import dims, set_dims
from onnxft.merge import LORA_A, LORA_B, Merge, Rule
from onnxft.step.methods.layers import Layer, find_layers
from onnxft.step.methods.method import Lora


def add_lora(forward: Forward, lora: Lora, weights: Sequence[str]) -> Forward:
    """The model with adapters at the layers of `weights`; both graphs are rewritten as copies.

    A is uniform on ±1 / sqrt(fan in), which is torch's kaiming_uniform(a = sqrt 5) and the start that peft takes, from
    a seed that is the name's; B is 0, so that nothing changes before the first step.
    """
    made = replace(forward, train=forward.train.clone(), infer=forward.infer.clone())
    writers = builder(made.train.graph), builder(made.infer.graph)
    before = {node for op in writers for node in op.builder.graph}
    sums: list[tuple[ir.Value, ir.Value]] = []
    found, _ = find_layers(made)
    added: dict[str, Merge] = {}
    tensors: dict[str, list[Tensor]] = {}
    for weight in weights:
        ways = found[weight]
        shapes = _shapes(ways[0], lora.rank)
        dtype = next(t.dtype for t in forward.tensors if t.name == weight)
        start = _start(shapes, dtype)
        for name in shapes:
            rule: Rule = LORA_A if name.endswith(LORA_A) else LORA_B
            added[name] = Merge(weight, rule, lora.alpha, ways[0].shape, ways[0].transposed, lora.dropout)
        tensors[weight] = [Tensor(name, shape, dtype, "parameter") for name, shape in shapes.items()]
        for op, layer, dropout in zip(writers, ways, (lora.dropout, 0.0), strict=True):
            graph = op.builder.graph
            a, b = (add_constant(graph, name, ir.tensor(value, name=name)) for name, value in start.items())
            for index, node in enumerate(layer.nodes):
                # Numbers get names of their own: builders that come later count theirs anew.
                names = f"{weight}.lora.{index}"
                scale = lora.alpha / lora.rank * node.attributes.get_float("alpha", 1.0)  # as its Gemm multiplies W
                factor = add_constant(graph, f"{names}.scale", ir.tensor(np.asarray(scale, dtype)))
                x = _dropped(op, node, dropout, names, dtype) if dropout else node.inputs[0]
                sums.append(_add_way(op, node, x, a, b, factor))
    for model in (made.train, made.infer):
        _rename(node for node in model.graph if node not in before)
    for y, total in sums:  # the sum stands for what the layer gave, under its name
        y.name, total.name = f"{y.name}.base", y.name
    for model in (made.train, made.infer):
        common.TopologicalSortPass()(model)
    return replace(
        made,
        tensors=tuple(t for own in forward.tensors for t in (own, *tensors.get(own.name, ()))),
        original=forward.infer,
        added={**forward.added, **added},
    )


def _shapes(layer: Layer, rank: int) -> dict[str, tuple[int, ...]]:
    taken, given = layer.features
    ones = (1,) * len(layer.kernel)
    return {
        f"{layer.weight}.{LORA_A}": (rank, taken, *layer.kernel),
        f"{layer.weight}.{LORA_B}": (given, rank, *ones),
    }


def _start(shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, NDArray[Any]]:
    (a, shape_a), (b, shape_b) = shapes.items()
    seed = int.from_bytes(hashlib.sha256(a.encode()).digest()[:8])
    bound = 1 / math.sqrt(math.prod(shape_a[1:]))
    drawn = np.random.Generator(np.random.Philox(seed)).uniform(-bound, bound, shape_a)
    return {a: drawn.astype(dtype), b: np.zeros(shape_b, dtype)}


def _rename(nodes: Iterable[ir.Node]) -> None:
    """Give new nodes names that no builder makes up: one that comes later counts its nodes anew."""
    for index, node in enumerate(nodes):
        node.name = f"lora.{index}"
        for value in node.outputs:
            value.name = f"lora.{index}.output"


def _dropped(op: Op, node: ir.Node, ratio: float, names: str, dtype: str) -> ir.Value:
    """What `node` reads, with a Dropout of its own."""
    x, graph = node.inputs[0], op.builder.graph
    assert x is not None
    active = add_constant(graph, f"{names}.active", ir.tensor(True))
    y = op.Dropout(x, add_constant(graph, f"{names}.ratio", ir.tensor(np.asarray(ratio, dtype))), active)
    set_dims(y, dims(x))
    return y


def _add_way(
    op: Op, node: ir.Node, x: ir.Value | None, a: ir.Value, b: ir.Value, scale: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Add s B A x to what `node` gives, in place; return what it gave, and the sum, which all others read now."""
    y, graph = node.outputs[0], op.builder.graph
    users = list(y.uses())
    if node.op_type == "Conv":
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        z = op.Conv(op.Mul(op.Conv(x, a, **attributes), scale), b)
    else:
        inner = op.MatMul(x, op.Transpose(a, perm=[1, 0]))
        z = op.MatMul(op.Mul(inner, scale), op.Transpose(b, perm=[1, 0]))
    total = op.Add(y, z)
    set_dims(total, dims(y))
    for user, index in users:
        user.replace_input_with(index, total)
    for index, output in enumerate(graph.outputs):
        if output is y:
            graph.outputs[index] = total
    return y, total
