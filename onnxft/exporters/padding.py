"""The padding row of an embedding: torch never gives it a gradient, and a graph does not say so by itself."""

from __future__ import annotations

import onnx_ir as ir
from torch import nn

from onnxft.graph.builder import STOP_GRADIENT
from onnxft.graph.constants import add_constant
from onnxft.graph.forward import Forward
from onnxft.graph.shapes import dims


def stop_at_padding(forward: Forward, module: nn.Module) -> None:
    """y = W[i] becomes y = W[i] where i is not the padding, else W[i] without gradient; in place, for training."""
    places = _padding(forward, module)
    graph = forward.train.graph
    for node in [n for n in graph if n.op_type == "Gather" and n.attributes.get_int("axis", 0) == 0]:
        table, indices = node.inputs
        if table is None or indices is None or table.name not in places or indices.dtype is None:
            continue
        y = node.outputs[0]
        readers = list(y.uses())
        padding = add_constant(graph, f"{y.name}.padding", ir.tensor(places[str(table.name)], dtype=indices.dtype))
        axis = add_constant(graph, f"{y.name}.axis", ir.tensor([len(dims(indices))], dtype=ir.DataType.INT64))
        equal = _after(graph, node, "Equal", [indices, padding], f"{y.name}.is_padding")
        at_padding = _after(graph, equal, "Unsqueeze", [equal.outputs[0], axis], f"{y.name}.at_padding")
        same = _after(graph, at_padding, "Gather", [table, indices], f"{y.name}.stopped")
        same.metadata_props[STOP_GRADIENT] = "padding"
        same.attributes.update(node.attributes)
        where = _after(graph, same, "Where", [at_padding.outputs[0], same.outputs[0], y], f"{y.name}.kept")
        kept = where.outputs[0]
        for made in (equal, at_padding):
            made.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
        equal.outputs[0].shape, at_padding.outputs[0].shape = indices.shape, ir.Shape([*dims(indices), 1])
        for value in (same.outputs[0], kept):
            value.shape, value.type = y.shape, y.type
        for user, index in readers:
            user.replace_input_with(index, kept)
        for i, output in enumerate(graph.outputs):
            if output is y:
                graph.outputs[i] = kept


def _after(graph: ir.Graph, node: ir.Node, op_type: str, inputs: list[ir.Value], name: str) -> ir.Node:
    made = ir.Node("", op_type, inputs, name=name)
    made.outputs[0].name = name
    graph.insert_after(node, made)
    return made


def _padding(forward: Forward, module: nn.Module) -> dict[str, int]:
    """{table: its padding row}, where all embeddings that share a table agree on it."""
    owner = {name: t.name for t in forward.tensors for name in (t.name, *t.tied_to)}
    found: dict[str, set[int | None]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        name = owner.get(f"{prefix}.weight" if prefix else "weight")
        if isinstance(part, nn.Embedding) and name is not None:
            found.setdefault(name, set()).add(part.padding_idx)
    return {name: row for name, rows in found.items() if len(rows) == 1 and (row := next(iter(rows))) is not None}
