"""Putting what a rewrite wrote into the place of the node that it replaces."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxft.graph.builder import Op
from onnxft.graph.lowering.registry import OPSET


class Names:
    """Names of values that are not taken."""

    def __init__(self, model: ir.Model) -> None:
        """Take what every graph of `model` has."""
        self.taken = {
            value.name
            for graph in model.graphs()
            for values in (graph.inputs, graph.initializers.values(), *(node.outputs for node in graph))
            for value in values
        }

    def fresh(self, wish: str) -> str:
        """`wish`, or a name like it."""
        name, count = wish, 0
        while name in self.taken:
            count += 1
            name = f"{wish}_{count}"
        self.taken.add(name)
        return name


def replace(graph: ir.Graph, node: ir.Node, op: Op, results: Sequence[ir.Value | None], names: Names) -> None:
    """Replace `node` by the nodes of `op`; `results` succeed its outputs, None where nothing reads one."""
    scratch = op.builder.graph
    successors = list(results)
    for i, value in enumerate(successors):
        # What is handed through, or handed on twice, still needs a value with the old name.
        if value is not None and (value in successors[:i] or _outside(value, scratch)):
            successors[i] = op.Identity(value)
    _move(scratch, graph, node, names)
    for old, new in zip(node.outputs, successors, strict=True):
        if new is not None and old.name:
            _succeed(old, new)
    graph.remove(node, safe=True)


def _outside(value: ir.Value, scratch: ir.Graph) -> bool:
    producer = value.producer()
    return producer is None or producer.graph is not scratch


def _move(scratch: ir.Graph, graph: ir.Graph, node: ir.Node, names: Names) -> None:
    """Put what was written for `node` before it, under names that begin with that of its output."""
    stem = node.outputs[0].name or node.name or node.op_type
    for name, value in list(scratch.initializers.items()):
        del scratch.initializers[name]
        if value.uses():
            value.name = names.fresh(f"{stem}.{name}")
            graph.register_initializer(value)
    nodes = list(scratch)
    scratch.remove(nodes)
    for new in nodes:
        new.version = OPSET
        new.metadata_props.clear()
        for value in new.outputs:
            value.name = names.fresh(f"{stem}.{new.op_type}")
        new.name = f"{node.name or stem}.{(new.outputs[0].name or '').removeprefix(stem + '.')}"
    graph.insert_before(node, nodes)


def _succeed(old: ir.Value, new: ir.Value) -> None:
    """Give `new` the name, the readers and what is known of `old`."""
    new.name = old.name
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        known, found = list(old.shape), list(new.shape) if new.shape is not None else [None] * len(old.shape)
        if len(known) == len(found):
            new.shape = ir.Shape(
                [f if isinstance(f, int) or _unnamed(k) else k for k, f in zip(known, found, strict=True)]
            )
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _unnamed(dim: object) -> bool:
    return not isinstance(dim, int) and getattr(dim, "value", None) is None
